"""From moments to the parameters of one layer's generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import PlasticityConfig, Site, parse_ranks
from ..errors import NPTError
from ..generators.low_rank import LowRankActivations, LowRankWeights
from ..structure import projection
from ..surgery import Plasticity
from .moments import Moments
from .regression import RIDGE, Subspace, linear_fit, subspace


@dataclass(frozen=True)
class Solution:
    """One layer solved for every rank at once; `write` puts a rank of it into a generator."""

    space: Subspace
    cross: dict[Site, Tensor]
    """E[y s^T] of each site [d_out, d]"""
    power: float
    """the weighed sum of E|y|^2: the error of no modulation at all"""
    stream: float
    """E|h + a|^2, to compare layers by"""
    growth: Tensor
    """the row w [d] of d_mult = w . s"""

    def explained(self, rank: int) -> float:
        """The share of `power` that a code of this width accounts for; 1 where there is nothing to modulate."""
        return min(1.0, float(self.space.gains[:rank].sum()) / self.power) if self.power > 0 else 1.0


def check_calibratable(config: PlasticityConfig) -> None:
    """Raises NPTError where no closed form exists."""
    if config.key == "learned":
        raise NPTError(
            "a learned key has no closed form (its effect is a product of two things to be learned): use key='self', "
            "or train from init='random'"
        )
    if config.bottleneck == "relu" and min(config.np_rank, *parse_ranks(config.layer_ranks).values(), 2) < 2:
        raise NPTError("a ReLU bottleneck carries a linear code in pairs: np_rank must be at least 2")


def solve(plasticity: Plasticity, moments: Moments, ridge: float = RIDGE) -> Solution:
    """The reduced-rank regression of one layer.

    Errors at gate and up count as much as they change the layer's output, on average and to first order: with
    m = act(g) u and y = W_d m,

        beta^2 = mean_j |W_d[:, j]|^2 E[(dm_j/dg_j)^2 + (dm_j/du_j)^2] / 2

    is the weight of their squared errors, 1 that of down's, which are changes of the output as they are. So gate and
    up are weighed alike (for `dual` the weight changes nothing), and `triple` shares its code fairly.
    """
    mlp, axes = plasticity.parts.mlp, plasticity.config.axes
    beta2 = float((matrix(projection(mlp, "down")).square().sum(0) * moments.slopes).mean())
    cross: dict[Site, Tensor] = {}
    weighed, power = [], 0.0
    for site in axes.sites:
        if site == "down":
            cross[site] = moments.carried
            weighed.append(moments.carried)
            power += moments.carried_power
        else:
            W = matrix(projection(mlp, site))
            cross[site] = W @ moments.ts
            weighed.append(beta2**0.5 * cross[site])
            power += beta2 * float((W.T @ W * moments.tt).sum())
    growth = linear_fit(moments.ss, moments.growth, ridge)
    return Solution(subspace(moments.ss, weighed, ridge), cross, power, moments.stream, growth)


@torch.no_grad()
def write(plasticity: Plasticity, solution: Solution) -> float:
    """Sets the generator's parameters to the solution of its own rank; returns the share of power explained."""
    generator = plasticity.generator
    if isinstance(generator, LowRankWeights):
        width = _width(generator.rank, plasticity.config)
        A = solution.space.rows[:width]
        k = plasticity.config.num_ranks
        _write_code(generator.code, A, plasticity.config)
        for site, payload in generator.payload.items():
            # with the self key all components answer alike, so each carries its share
            Q = _payload(solution.cross[site] @ A.T, generator.rank, plasticity.config) / k  # type: ignore[index]
            _set(payload, Q.repeat(1, k))
        return solution.explained(width)
    assert isinstance(generator, LowRankActivations)
    explained = 1.0
    for part, code in generator.code.items():
        width = _width(generator.rank, plasticity.config)
        if part == "add":
            A = solution.space.rows[:width]
            Q = solution.cross["gate"] @ A.T
            explained = solution.explained(width)
        else:  # the scalar rho/rho' - 1 of section 3, the same for every unit: rank 1
            A = solution.growth[None]
            Q = torch.ones(generator.d_ffn, 1, dtype=A.dtype, device=A.device)
        _write_code(code, A, plasticity.config)
        _set(generator.payload[part], _payload(Q, generator.rank, plasticity.config))
    return explained


def matrix(linear: nn.Linear) -> Tensor:
    """The matrix that a projection applies, in float64 [d_out, d_in]; asked of the module, which may be quantised."""
    reference = next(linear.parameters())
    dtype = reference.dtype if reference.is_floating_point() else torch.float32
    with torch.no_grad():
        basis = torch.eye(linear.in_features, dtype=dtype, device=reference.device)
        out: Tensor = linear(basis).double() - linear(torch.zeros_like(basis[:1])).double()
    return out.T


# A ReLU bottleneck carries a linear code c in pairs of units: relu(c) - relu(-c) = c.


def _width(rank: int, config: PlasticityConfig) -> int:
    return rank if config.bottleneck == "linear" else rank // 2


def _write_code(code: nn.Module, A: Tensor, config: PlasticityConfig) -> None:
    """Rows that A does not fill stay as they were initialised; their payload is zero."""
    weight: Tensor = code.weight  # type: ignore[assignment]
    rows = A if config.bottleneck == "linear" else torch.cat([A, -A])
    weight[: len(rows)] = rows.to(weight.dtype)


def _set(payload: nn.Module, Q: Tensor) -> None:
    weight: Tensor = payload.weight  # type: ignore[assignment]
    weight.copy_(Q)


def _payload(Q: Tensor, rank: int, config: PlasticityConfig) -> Tensor:
    columns = Q if config.bottleneck == "linear" else torch.cat([Q, -Q], 1)
    return nn.functional.pad(columns, (0, rank - columns.shape[1]))
