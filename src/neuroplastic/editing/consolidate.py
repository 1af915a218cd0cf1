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

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..config import SITES, Site
from ..statistics import READS, Whitening
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
class _Taught:
    """What one layer of the teacher did on the tokens of the statement."""

    outputs: dict[Site, Tensor] = field(default_factory=dict)
    """of each projection [n, d_out]"""
    stream: Tensor | None = None
    """the residual stream behind the layer [n, d]"""


@torch.no_grad()
def consolidate_factors(
    model: PreTrainedModel,
    parts: Sequence[LayerParts],
    whitening: Whitening,
    taught: Tensor,
    alone: Tensor,
    strength: float = STRENGTH,
) -> dict[Place, Factors]:
    """dW of gate, up and down in the layers of `parts`, at the cost of two forward passes and the solves.

    taught (1, T): start token, context, statement. alone (1, 1 + n): start token, statement. The last n tokens of both
    are the statement. The model must be in standard mode; its weights are not touched.
    """
    n = alone.shape[1] - 1
    teacher = {p.index: _Taught() for p in parts}
    with _hooks([hook for p in parts for hook in _listen(p, teacher[p.index], n)]):
        model.base_model(input_ids=taught, use_cache=False)
    factors: dict[Place, Factors] = {}
    with _hooks([hook for p in parts for hook in _solve(p, teacher[p.index], n, whitening, strength, factors)]):
        model.base_model(input_ids=alone, use_cache=False)
    return factors


Hook = tuple[nn.Module, Callable[[nn.Module, Any, Any], Any]]


@contextmanager
def _hooks(hooks: Sequence[Hook]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _listen(p: LayerParts, taught: _Taught, n: int) -> Iterator[Hook]:
    """Writes down what the teacher's layer gives on the last n tokens."""

    def projected(site: Site) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, output: taught.outputs.__setitem__(site, output[0, -n:])

    def ended(module: nn.Module, args: Any, output: Any) -> None:
        taught.stream = (output[0] if isinstance(output, tuple) else output)[0, -n:]

    yield from ((projection(p.mlp, site), projected(site)) for site in SITES)
    yield p.layer, ended


def _solve(
    p: LayerParts, taught: _Taught, n: int, whitening: Whitening, strength: float, factors: dict[Place, Factors]
) -> Iterator[Hook]:
    """Solves each projection as the student's pass reaches it, and goes on with the change in effect."""
    stream: list[Tensor] = []  # r = h + a, what the MLP adds to
    solved: dict[str, Tensor] = {}  # G by what a projection reads: gate and up share theirs

    def passing(module: nn.Module, args: Any, output: Any) -> None:
        stream[:] = [args[0][0, -n:]]

    def target(site: Site) -> Tensor:
        if site != "down" or p.norm_behind_mlp is not None:
            # what a norm behind the MLP makes of a correction is not linear: there, the teacher's own MLP output
            return taught.outputs[site]
        assert taught.stream is not None
        return (taught.stream - stream[0]) / p.mlp_scale

    def change(site: Site) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            z: Tensor = args[0]
            if p.norm is None and site != "down":  # the MLP reads the residual stream itself
                stream[:] = [z[0, -n:]]
            wide = torch.promote_types(z.dtype, torch.float32)
            if READS[site] not in solved:
                keys = z[0, -n:].to(wide)
                solved[READS[site]] = ridge_factor(keys, whitening.solve(p.index, site, keys).to(wide) / strength)
            G, R = solved[READS[site]], (target(site) - output[0, -n:]).to(wide)
            factors[p.index, site] = Factors(G, R.T)
            return output + ((z.to(wide) @ G.T) @ R).to(output.dtype)

        return hook

    if p.norm is not None:
        yield p.norm, passing
    yield from ((projection(p.mlp, site), change(site)) for site in SITES)
