"""From moments to the parameters of one layer's generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import BottleneckKind, PlasticityConfig
from ..errors import NPTError
from ..generators.low_rank import LowRank, LowRankActivations, LowRankWeights
from ..structure import projection
from ..surgery import Plasticity
from .moments import Moments
from .regression import RIDGE, Subspace, linear_fit, subspace


@dataclass(frozen=True)
class Coarse:
    """A layer's share in the coarse code z = A_0 s_0 of its group, E[z z^T] = I; made before its own code is."""

    rows: Tensor
    """A_0 [r_0, d]"""
    payload: dict[str, Tensor]
    """E[y z^T] of each head [d_out, r_0]"""
    overlap: Tensor
    """E[s z^T] [d, r_0]: what the layer's own code need not say again"""
    gain: float
    """how much the coarse code lowers the weighed error"""


@dataclass(frozen=True)
class Solution:
    """One layer solved for every rank at once; `write` puts a rank of it into a generator."""

    space: Subspace
    cross: dict[str, Tensor]
    """E[y s^T] of each head [d_out, d], less what the coarse code says: of the sites, and of `input` [d, d], what a
    projected head adds to the input of gate and up"""
    power: float
    """the weighed sum of E|y|^2: the error of no modulation at all"""
    stream: float
    """E|h + a|^2, to compare layers by"""
    growth: Tensor
    """the row w [d] of d_mult = w . s"""
    coarse: Coarse | None = None

    def explained(self, rank: int) -> float:
        """The share of `power` that a code of this width accounts for; 1 if there is nothing to modulate."""
        gained = float(self.space.gains[:rank].sum()) + (self.coarse.gain if self.coarse else 0.0)
        return min(1.0, gained / self.power) if self.power > 0 else 1.0


def check_calibratable(config: PlasticityConfig) -> None:
    """Raises NPTError if some layer has no closed form."""
    for own in (config, *map(config.at, config.overridden)):
        if own.key == "learned":
            raise NPTError(
                "a learned key has no closed form (its effect is a product of two things to be learned): "
                "use key='self', or train from init='random'"
            )
        if own.bottleneck == "relu" and min(own.np_rank, own.coarse_rank or 2) < 2:
            raise NPTError(
                "a ReLU bottleneck carries a linear code in pairs: np_rank and coarse_rank must be at least 2"
            )


def coarse_rows(group: Sequence[tuple[Plasticity, Moments]], ridge: float = RIDGE) -> Tensor:
    """A_0 [r_0, d] of a group: the directions of s_0 that say most of what all its layers' payloads need, each layer's
    errors relative to the residual stream that they fall into."""
    weighed = []
    for p, m in group:
        _, t0, carried0 = m.with_first
        weighed += [(scale / m.stream) ** 0.5 * cross for cross, scale in _heads(p, m, t0, carried0)[1]]
    first, moments = group[0]
    width = _width(first.config.coarse_rank, first.config)
    return subspace(moments.ss, weighed, ridge).rows[:width]


def solve(plasticity: Plasticity, moments: Moments, ridge: float = RIDGE, coarse: Tensor | None = None) -> Solution:
    """The reduced-rank regression of one layer; with the rows A_0 of a coarse code, that of what this leaves over.

    Errors at gate and up count as much as they change the layer's output, on average and to first order: with
    m = act(g) u and y = W_d m,

        beta^2 = mean_j |W_d[:, j]|^2 E[(dm_j/dg_j)^2 + (dm_j/du_j)^2] / 2

    is the weight of their squared errors, 1 that of down's, which are changes of the output as they are. So gate and
    up are weighed alike (for `dual` the weight changes nothing), and `triple` shares its code fairly.

    With z = A_0 s_0, E[z z^T] = I, and s' = s - E[s z^T] z, the part of s that z does not predict, the payload is
    E[y z^T] z + Q A s', and Q A is the regression of y on s'.
    """
    ss, share = moments.ss, None
    cross, weighed = _heads(plasticity, moments, moments.ts, moments.carried)
    if coarse is not None:
        s0, t0, carried0 = moments.with_first
        overlap = s0 @ coarse.T
        payload, shares = _heads(plasticity, moments, t0 @ coarse.T, carried0 @ coarse.T)
        gain = sum(scale * float(c.square().sum()) for c, scale in shares)
        ss = ss - overlap @ overlap.T
        cross = {head: c - payload[head] @ overlap.T for head, c in cross.items()}
        weighed = [(c - own @ overlap.T, scale) for (c, scale), (own, _) in zip(weighed, shares, strict=True)]
        share = Coarse(coarse, payload, overlap, gain)
    space = subspace(ss, [scale**0.5 * c for c, scale in weighed], ridge)
    growth = linear_fit(moments.ss, moments.growth, ridge)
    return Solution(space, cross, _power(plasticity, moments), moments.stream, growth, share)


def _heads(
    p: Plasticity, m: Moments, ts: Tensor, carried: Tensor
) -> tuple[dict[str, Tensor], list[tuple[Tensor, float]]]:
    """E[y .^T] of every head for some E[t .^T] and E[carried .^T] [d, n]; and those of the sites with their weights."""
    cross: dict[str, Tensor] = {"input": ts}
    weighed = []
    for site in p.config.axes.sites:
        down = site == "down"
        cross[site] = carried if down else matrix(projection(p.parts.mlp, site)) @ ts
        weighed.append((cross[site], 1.0 if down else _beta2(p, m)))
    return cross, weighed


def _power(p: Plasticity, m: Moments) -> float:
    """The weighed sum of E|y|^2."""
    power = 0.0
    for site in p.config.axes.sites:
        if site == "down":
            power += m.carried_power
        else:
            W = matrix(projection(p.parts.mlp, site))
            power += _beta2(p, m) * float((W.T @ W * m.tt).sum())
    return power


def _beta2(p: Plasticity, m: Moments) -> float:
    """beta^2 of `solve`."""
    return float((matrix(projection(p.parts.mlp, "down")).square().sum(0) * m.slopes).mean())


@torch.no_grad()
def write(plasticity: Plasticity, solution: Solution) -> float:
    """Sets the generator's parameters to the solution of its own rank; returns the share of power explained.

    A gate is set to the same value for every token, and the payload divided by it.
    """
    generator, config, coarse = plasticity.generator, plasticity.config, solution.coarse
    assert isinstance(generator, LowRank)
    width = _width(generator.rank, config)
    A = solution.space.rows[:width]
    scale = 1.0
    if generator.gate is not None:
        generator.gate.open_all()
        scale = 1 / generator.gate.constant
    if generator.coarse is not None:
        assert coarse is not None
        _write_code(generator.coarse, coarse.rows, "linear")

    def payload(head: str, A: Tensor) -> Tensor:
        """[coarse part, own part] of a head's payload, as the code is laid out."""
        own = solution.cross[head] @ A.T
        parts = [_payload(own, generator.rank, config)]
        if coarse is not None:
            parts.insert(0, _payload(coarse.payload[head] - own @ (A @ coarse.overlap), config.coarse_rank, config))
        return scale * torch.cat(parts, 1)

    if isinstance(generator, LowRankWeights):
        k = config.num_ranks
        _write_code(generator.code, A, config.bottleneck)
        for head, module in generator.payload.items():
            # with the self key all components answer alike, so each carries its share
            _set(module, (payload(head, A) / k).repeat(1, k))
        return solution.explained(width)
    assert isinstance(generator, LowRankActivations)
    for part, code in generator.code.items():
        if part == "add":
            _write_code(code, A, config.bottleneck)
            _set(generator.payload[part], payload("gate", A))
        else:  # the scalar rho/rho' - 1 of section 3, the same for every unit: rank 1
            row = solution.growth[None]
            ones = scale * torch.ones(generator.d_ffn, 1, dtype=A.dtype, device=A.device)
            _write_code(code, row, config.bottleneck)
            own = _payload(ones, generator.rank, config)
            _set(generator.payload[part], nn.functional.pad(own, (config.coarse_rank, 0)))
    return solution.explained(width) if "add" in generator.code else 1.0


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


def _write_code(code: nn.Module, A: Tensor, bottleneck: BottleneckKind) -> None:
    """Rows that A does not fill stay as they were initialised; their payload is zero."""
    weight: Tensor = code.weight  # type: ignore[assignment]
    rows = A if bottleneck == "linear" else torch.cat([A, -A])
    weight[: len(rows)] = rows.to(weight.dtype)


def _set(payload: nn.Module, Q: Tensor) -> None:
    weight: Tensor = payload.weight  # type: ignore[assignment]
    weight.copy_(Q)


def _payload(Q: Tensor, rank: int, config: PlasticityConfig) -> Tensor:
    columns = Q if config.bottleneck == "linear" else torch.cat([Q, -Q], 1)
    return nn.functional.pad(columns, (0, rank - columns.shape[1]))
