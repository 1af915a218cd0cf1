"""What each layer of the pretrained model reads and makes, seen on its own forward pass.

Everything that learns a generator learns from this: calibration from sums over it, distillation from its tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

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
    """output of the MLP (B, T, d), before any norm behind it"""

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
        """What must be added to y where the layer no longer adds attention itself (B, T, d)."""
        return self.a * (self.parts.attention_scale / self.parts.mlp_scale)


@contextmanager
def observing(parts: Sequence[LayerParts], see: Callable[[Seen], None]) -> Iterator[None]:
    """While it lasts, `see` is called with each of the layers as soon as its MLP is done.

    They must be in standard mode. Nothing of a layer is kept beyond that call.
    """
    handles = [handle for p in parts for handle in _listen(p, see)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def read_layers(
    model: PreTrainedModel, parts: Sequence[LayerParts], see: Callable[[Seen], None], **inputs: Tensor
) -> None:
    """One forward pass as far as the last of the layers, which must be in standard mode; the rest is not computed."""
    last = max(p.index for p in parts)

    def look(seen: Seen) -> None:
        see(seen)
        if seen.parts.index == last:
            raise _Enough

    with observing(parts, look), suppress(_Enough):
        model.base_model(use_cache=False, **inputs)


class _Enough(Exception):
    """Raised behind the last layer that is looked at."""


def _listen(p: LayerParts, see: Callable[[Seen], None]) -> Iterator[Any]:
    found: dict[str, Tensor] = {}

    def first(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found["h"] = args[0] if args else kwargs["hidden_states"]

    def output(name: str) -> Any:
        def hook(module: Any, args: Any, out: Any) -> None:
            found[name] = out[0] if isinstance(out, tuple) else out

        return hook

    def whole(module: Any, args: Any, y: Tensor) -> None:
        see(Seen(p, x_c=args[0], y=y, **found))
        found.clear()

    yield p.entry.register_forward_pre_hook(first, with_kwargs=True)
    yield p.attention_end.register_forward_hook(output("a"))
    yield projection(p.mlp, "gate").register_forward_hook(output("g"))
    yield projection(p.mlp, "up").register_forward_hook(output("u"))
    yield p.mlp.register_forward_hook(whole)
