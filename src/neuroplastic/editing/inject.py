"""From facts to weight updates: one call, several methods, one result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..config import Site
from ..console import Progress
from ..errors import NPTError
from ..modulation import compress, frobenius_norm
from ..structure import LayerParts, projection
from ..surgery import mode
from ..text import context_length, encode, start_token
from .consolidate import Bench, Solution, consolidate
from .edit import Factors
from .fact import Fact
from .learned import learned
from .options import InjectOptions
from .refine import refine
from .token import token_factors


def solve(
    bench: Bench, facts: Sequence[Fact], options: InjectOptions, progress: Progress | None = None
) -> list[Solution]:
    """The update that each fact asks for, alpha in its factors. Touches no weight.

    Raises NPTError for a fact that does not fit into the model's context, and where an update is not finite.
    """
    if options.method == "token":
        found = [_token(bench, fact) for fact in facts]
    else:
        with mode(bench.model, "standard"):
            if options.source == "token":
                found = [_token(bench, fact) for fact in facts]
            elif options.source == "learned":
                found = learned(bench, facts, options.quick, progress)
            else:
                found = consolidate(bench, facts, options.keep, progress=progress)
            if options.method == "refine":
                found = refine(bench, facts, found, options.keep)
    return [_finish(s, options) for s in found]


def _token(bench: Bench, fact: Fact) -> Solution:
    ids = [start_token(bench.tokenizer), *encode(bench.tokenizer, fact.statement)]
    if len(ids) > (room := context_length(bench.model)):
        raise NPTError(f"the statement is too long: it takes {len(ids)} tokens, and the model reads at most {room}")
    layers = tuple(p.index for p in bench.parts)
    factors = token_factors(bench.model, torch.tensor([ids], device=bench.model.device), layers)
    chosen = {place: f for place, f in factors.items() if place[1] in bench.sites}
    if not chosen:
        raise NPTError(
            f"the generator modulates {', '.join(sorted({site for _, site in factors}))}, none of the sites "
            f"{', '.join(bench.sites)}"
        )
    return Solution(chosen, {}, {})


def _finish(solution: Solution, options: InjectOptions) -> Solution:
    factors: dict[tuple[int, Site], Factors] = {}
    for (layer, site), (A, unscaled) in sorted(solution.factors.items()):
        B = unscaled * options.strength
        if not (torch.isfinite(A).all() and torch.isfinite(B).all()):
            raise NPTError(f"the update of layer {layer}, {site} is not finite; nothing was changed")
        if options.rank is not None and len(A) > options.rank:
            A, B, _ = compress(A, B, options.rank)
        # contiguous and in order, as they will be read from the file: products depend on the layout in the last bit
        factors[layer, site] = Factors(_fresh(A), _fresh(B))
    keys = {place: _fresh(k) for place, k in sorted(solution.keys.items())}
    return replace(solution, factors=factors, keys=keys)


def _fresh(t: Tensor) -> Tensor:
    return t.clone(memory_format=torch.contiguous_format)


def relative_norms(
    parts: Sequence[LayerParts], factors: dict[tuple[int, Site], Factors]
) -> dict[str, dict[str, float]]:
    """|dW|_F / |W|_F by layer and site."""
    by_index = {p.index: p for p in parts}
    norms: dict[str, dict[str, float]] = {}
    for (layer, site), f in sorted(factors.items()):
        weight: Any = projection(by_index[layer].mlp, site).weight
        norms.setdefault(str(layer), {})[site] = frobenius_norm(*f).item() / weight.detach().float().norm().item()
    return norms
