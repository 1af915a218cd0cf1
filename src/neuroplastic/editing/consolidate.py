"""Method `consolidate`: a context written into the weights in closed form, layer by layer, in one pass.

The teacher reads the statement twice; on the second reading its states know what the first one said. The student reads
the statement alone. Going up through the student's layers, each projection gets the smallest change, measured by the
covariance C of ordinary text, that makes its output what the teacher's was:

    keys K [n, d_in], residuals R [n, d_out]:   dW = R^T G,   G = (I + K Z)^-1 Z^T,   Z = (lambda C)^-1 K^T

which minimises |dW K^T - R^T|^2 + lambda tr(dW C dW^T) (ridge regression under C; the closed form of MEMIT,
Meng et al. 2210.07229, with targets from the model's own reading instead of from optimisation). Gate and up are asked
for W x_teacher; down for whatever the residual stream still lacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..config import Site
from ..statistics import Whitening
from ..structure import LayerParts, projection
from .edit import Factors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Place = tuple[int, Site]
STRENGTH = 0.1
"""lambda: how much ordinary text resists the change."""


def ridge_factor(keys: Tensor, whitened: Tensor) -> Tensor:
    """G = (I + K Z)^-1 Z^T. keys K [n, d_in], whitened Z^T = (lambda C)^-1 K [n, d_in] -> [n, d_in]."""
    gram = keys @ whitened.T
    return torch.linalg.solve(gram + torch.eye(len(keys), dtype=gram.dtype, device=gram.device), whitened)


@dataclass
class _Reading:
    """What one layer did on the tokens of a statement, [n, d] each."""

    x: Tensor
    """the MLP's input"""
    mlp: Tensor
    """the MLP's output"""
    out: Tensor
    """the layer's output"""


@torch.no_grad()
def consolidate_factors(
    model: PreTrainedModel,
    parts: Sequence[LayerParts],
    whitening: Whitening,
    taught: Tensor,
    alone: Tensor,
    strength: float = STRENGTH,
) -> dict[Place, Factors]:
    """dW of gate, up and down in the layers of `parts`.

    taught (1, T): start token, context, statement. alone (1, 1 + n): start token, statement. The last n tokens of both
    are the statement. The model must be in standard mode; its weights are not touched.
    """
    n = alone.shape[1] - 1
    teacher: dict[int, _Reading] = {}
    with _listening(parts, n, teacher):
        model.base_model(input_ids=taught, use_cache=False)
    factors: dict[Place, Factors] = {}
    with _solving(parts, n, teacher, whitening, strength, factors):
        model.base_model(input_ids=alone, use_cache=False)
    return factors


@contextmanager
def _listening(parts: Sequence[LayerParts], n: int, found: dict[int, _Reading]) -> Iterator[None]:
    """Fills `found` with what each layer reads and gives on the last n tokens."""
    handles = []
    for p in parts:

        def heard(module: nn.Module, args: Any, output: Tensor, p: LayerParts = p) -> None:
            found[p.index] = _Reading(args[0][0, -n:], output[0, -n:], output[0, -n:])

        def ended(module: nn.Module, args: Any, output: Any, p: LayerParts = p) -> None:
            found[p.index].out = (output[0] if isinstance(output, tuple) else output)[0, -n:]

        handles += [p.mlp.register_forward_hook(heard), p.layer.register_forward_hook(ended)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _solving(
    parts: Sequence[LayerParts],
    n: int,
    teacher: dict[int, _Reading],
    whitening: Whitening,
    strength: float,
    factors: dict[Place, Factors],
) -> Iterator[None]:
    """Solves each projection as the student's pass reaches it, and goes on with the change in effect."""
    handles: list[Any] = []
    stream: dict[int, Tensor] = {}  # r = h + a, in front of the MLP

    def solve(layer: int, site: Site, z: Tensor) -> tuple[Tensor, Tensor]:
        keys = z[0, -n:]
        keys = keys.to(torch.promote_types(keys.dtype, torch.float32))
        return keys, ridge_factor(keys, whitening.solve(layer, site, keys) / strength)

    for p in parts:
        gate, up, down = (projection(p.mlp, s) for s in ("gate", "up", "down"))

        def passing(module: nn.Module, args: Any, p: LayerParts = p) -> None:
            stream[p.index] = args[0][0, -n:]

        def entering(
            module: nn.Module, args: Any, p: LayerParts = p, gate: nn.Module = gate, up: nn.Module = up
        ) -> None:
            if p.norm is None:
                stream[p.index] = args[0][0, -n:]
            keys, G = solve(p.index, "gate", args[0])
            missing = (teacher[p.index].x - args[0][0, -n:]).to(args[0].dtype)
            factors[p.index, "gate"] = Factors(G, _linear(gate, missing).to(keys.dtype).T.contiguous())
            factors[p.index, "up"] = Factors(G.clone(), _linear(up, missing).to(keys.dtype).T.contiguous())

        def descending(module: nn.Module, args: Any, p: LayerParts = p, down: nn.Module = down) -> None:
            keys, G = solve(p.index, "down", args[0])
            read = teacher[p.index]
            # what a norm behind the MLP makes of a correction is not linear: there, the teacher's own MLP output
            lacking = (read.out - stream[p.index]) / p.mlp_scale
            missing = (lacking if p.norm_behind_mlp is None else read.mlp) - _bare(down, args[0][0, -n:])
            factors[p.index, "down"] = Factors(G, missing.to(keys.dtype).T.contiguous())

        def changed(module: nn.Module, args: Any, output: Tensor, place: Place) -> Tensor:
            A, B = (t.to(output.dtype) for t in factors[place])
            return output + (args[0] @ A.T) @ B.T

        if p.norm is not None:
            handles.append(p.norm.register_forward_pre_hook(passing))
        handles.append(p.mlp.register_forward_pre_hook(entering))
        handles.append(down.register_forward_pre_hook(descending))
        for site, linear in (("gate", gate), ("up", up), ("down", down)):
            hook = lambda m, a, o, place=(p.index, site): changed(m, a, o, place)  # noqa: E731
            handles.append(linear.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _linear(module: nn.Module, z: Tensor) -> Tensor:
    """W z of a projection that may have a bias, or be quantised, or wrapped: called, never opened."""
    return _bare(module, z) - _bare(module, torch.zeros_like(z[:1]))


def _bare(module: nn.Module, z: Tensor) -> Tensor:
    """The projection without the hooks of this pass."""
    out: Tensor = module.forward(z)
    return out
