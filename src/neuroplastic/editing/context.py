"""What a method of editing works with, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..capture import adding
from ..config import Place, Site
from ..console import Progress
from ..errors import NPTError
from ..modulation import compress, frobenius_norm
from ..statistics import TextInputs, Whitening
from ..structure import LayerParts, projection
from ..text.tokens import context_length
from .edit import Factors
from .fact import Fact
from .targets import Row, rows_of
from .units import Units

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .injector import Injector


@dataclass(frozen=True, eq=False)
class EditContext:
    """What a method works with: a model in standard mode, with the edits that it has."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    parts: Sequence[LayerParts]
    """the layers that may change"""
    sites: Sequence[Site]
    whitening: Whitening
    text: Tensor
    """ordinary text [N, T]"""
    held: Mapping[Place, Tensor]
    """keys of earlier edits [n, d_in]"""
    injector: Injector | None
    """the network that method `learned` asks, or None if the model has none"""
    unedited: Callable[[], AbstractContextManager[None]]
    """while it lasts, the model has none of its edits"""
    inputs: Callable[[Sequence[int]], dict[int, TextInputs]] = lambda layers: {}
    """what the unedited MLPs of some layers read on ordinary text"""
    unit_keys: Mapping[int, Tensor] = field(default_factory=dict)
    """per layer, the keys [n, d] of the gated units that are there"""

    def beside(self, keys: Mapping[int, Tensor]) -> EditContext:
        """The same, with further keys of gated units by layer [n, d]."""
        joined = {
            layer: torch.cat([self.unit_keys[layer].to(k), k]) if layer in self.unit_keys else k
            for layer, k in keys.items()
        }
        return replace(self, unit_keys=joined)

    def prefixes(self, count: int) -> list[list[int]]:
        """Beginnings of unrelated texts, four to ten tokens long."""
        return [self.text[i % len(self.text), 1 : 1 + prefix_length(i)].tolist() for i in range(count)]


def prefix_length(i: int) -> int:
    """The number of tokens of the i-th beginning."""
    return 4 + (3 * i) % 7


class EditMethod(Protocol):
    """A frozen configuration that turns facts into updates, and touches no weight."""

    def solve(self, context: EditContext, facts: Sequence[Fact], progress: Progress | None = None) -> list[Solution]:
        """One solution for each fact; `progress` is called as the work proceeds. Raises NPTError for bad input."""


@runtime_checkable
class ChecksFacts(Protocol):
    """A method that knows of facts, before anything is measured, that it cannot teach them."""

    def check(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        injector: Injector | None,
    ) -> None:
        """Raises NPTError for facts that `solve` would refuse. Reads no text, and asks the model nothing."""


@dataclass(frozen=True, eq=False)
class Solution:
    """What a method found for one fact."""

    factors: dict[Place, Factors]
    keys: dict[Place, Tensor]
    """the keys [n, d_in] that the factors answer to, kept so that later edits leave them alone"""
    figures: dict[str, float]
    """for the edit's report"""
    rho: float | None = None
    """the ridge of the joint solution with other edits; None for an edit that is added as it is"""
    units: dict[int, Units] = field(default_factory=dict)
    """the gated form, if the method has one: then the factors are for adapters alone"""


def check_facts_with_prefixes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], num_prefixes: int
) -> None:
    """Raises NPTError if a fact has no question, or does not fit into the model's context after the longest of some
    beginnings of unrelated texts, which need not be known for that."""
    rows, _ = rows_of(tokenizer, facts, [[0] * max((prefix_length(i) for i in range(num_prefixes)), default=0)])
    check_length(model, rows)


def check_length(model: PreTrainedModel, rows: Sequence[Row]) -> None:
    """Raises NPTError if a row does not fit into the model's context."""
    longest, room = max(len(r.ids) for r in rows), context_length(model)
    if longest > room:
        raise NPTError(
            f"the statement is too long: after unrelated text it takes {longest} tokens, and the model reads at "
            f"most {room}"
        )


def finished(solution: Solution, alpha: float, rank: int | None) -> Solution:
    """A solution as the ledger keeps it: scaled by `alpha`, at most of that rank, on the CPU, laid out as in a file.

    Raises NPTError if an update is not finite.
    """
    factors: dict[Place, Factors] = {}
    for (layer, site), (A, unscaled) in sorted(solution.factors.items()):
        B = unscaled * alpha
        if not (torch.isfinite(A).all() and torch.isfinite(B).all()):
            raise NPTError(f"the update of layer {layer}, {site} is not finite; nothing was changed")
        if rank is not None and len(A) > rank:
            A, B, _ = compress(A, B, rank)
        # contiguous and in order, as they will be read from the file: products depend on the layout in the last bit
        factors[layer, site] = Factors(_fresh(A), _fresh(B))
    keys = {place: _fresh(k) for place, k in sorted(solution.keys.items())}
    units = {layer: u._replace(V=_fresh(u.V * alpha)) for layer, u in sorted(solution.units.items())}
    if not all(torch.isfinite(t).all() for u in units.values() for t in u):
        raise NPTError("the units of the edit are not finite; nothing was changed")
    return replace(solution, factors=factors, keys=keys, units=units)


def acting(
    linears: Mapping[Place, nn.Module], factors: Mapping[Place, Factors], B: Mapping[Place, Tensor]
) -> AbstractContextManager[None]:
    """While it lasts, each projection also gives B (A z)."""

    def term(A: Tensor, b: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda z: (z.to(A) @ A.T) @ b.T

    return adding({linears[place]: term(factors[place].A, b) for place, b in B.items()})


def _fresh(t: Tensor) -> Tensor:
    return t.detach().cpu().clone(memory_format=torch.contiguous_format)


def relative_norms(parts: Sequence[LayerParts], factors: dict[Place, Factors]) -> dict[str, dict[str, float]]:
    """|dW|_F / |W|_F by layer and site."""
    by_index = {p.index: p for p in parts}
    norms: dict[str, dict[str, float]] = {}
    for (layer, site), f in sorted(factors.items()):
        weight: Any = projection(by_index[layer].mlp, site).weight
        norms.setdefault(str(layer), {})[site] = frobenius_norm(*f).item() / weight.detach().float().norm().item()
    return norms
