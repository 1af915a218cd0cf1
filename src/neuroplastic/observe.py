"""What each layer of the pretrained model reads and makes, seen on its own forward pass.

Everything that learns a generator learns from this: calibration from sums over it, distillation from its tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from .capture import capturing, read_until
from .structure import LayerParts, projection

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class Seen:
    """One layer in one forward pass in standard mode: y = mlp(x_c), x_c = n(h + attention_scale a)."""

    parts: LayerParts
    h: Tensor
    """residual stream entering the layer (B, T, d)"""
    a: Tensor
    """attention output (B, T, d)"""
    x_c: Tensor
    """what the MLP read (B, T, d)"""
    g: Tensor
    """output of the gate projection (B, T, f)"""
    u: Tensor
    """output of the up projection (B, T, f)"""
    y: Tensor
    """output of the MLP (B, T, d), before any norm that follows"""

    def at(self, select: Callable[[Tensor], Tensor]) -> Seen:
        """The same layer at some of its tokens."""
        tensors = {name: select(t) for name, t in vars(self).items() if isinstance(t, Tensor)}
        return Seen(self.parts, **tensors)

    @property
    def x(self) -> Tensor:
        """n(h): what the MLP would have read without attention (B, T, d); computed anew at each call."""
        norm = self.parts.norm
        x: Tensor = self.h if norm is None else norm(self.h)
        return x

    @property
    def carried(self) -> Tensor:
        """What must be added to y if the layer no longer adds attention itself (B, T, d)."""
        return self.a * (self.parts.attention_scale / self.parts.mlp_scale)


@contextmanager
def observing(parts: Sequence[LayerParts], see: Callable[[Seen], None]) -> Iterator[None]:
    """While it lasts, `see` is called with each of the layers as soon as its MLP is done.

    They must be in standard mode. Nothing of a layer is kept beyond that call.
    """
    modules, look = _listening(parts, see)
    with capturing(modules, look):
        yield


def read_layers(
    model: PreTrainedModel, parts: Sequence[LayerParts], see: Callable[[Seen], None], **inputs: Tensor
) -> None:
    """One forward pass as far as the last of the layers, which must be in standard mode; the rest is not computed."""
    modules, look = _listening(parts, see)
    read_until(model, modules, look, **inputs)


Part = tuple[int, str]


def _listening(
    parts: Sequence[LayerParts], see: Callable[[Seen], None]
) -> tuple[dict[Part, nn.Module], Callable[[Part, Tensor, Tensor], None]]:
    """The modules of these layers to capture, and what to do with what each of them reads and gives."""
    by_index = {p.index: p for p in parts}
    found: dict[int, dict[str, Tensor]] = {p.index: {} for p in parts}
    modules: dict[Part, nn.Module] = {}
    for p in parts:
        gate, up = projection(p.mlp, "gate"), projection(p.mlp, "up")
        of_layer = {"h": p.entry, "a": p.attention_end, "g": gate, "u": up, "y": p.mlp}
        modules |= {(p.index, name): module for name, module in of_layer.items()}

    def look(part: Part, given: Tensor, output: Tensor) -> None:
        layer, name = part
        found[layer][name] = given if name == "h" else output
        if name == "y":
            see(Seen(by_index[layer], x_c=given, **found[layer]))
            found[layer].clear()

    return modules, look
