"""Spending a budget of parameters over layers where it lowers the output error most."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from ..errors import NPTError


def spend(gains: Mapping[int, Sequence[float]], cost: Mapping[int, int], budget: int) -> dict[int, int]:
    """A rank of at least 1 for every layer, of which cost[layer] parameters each buy one.

    gains[layer][i] is what rank i + 1 lowers the layer's error by, falling with i; so taking what lowers it most per
    parameter each time is the best that the budget can buy, but for its last few parameters. Raises NPTError if it
    does not pay for rank 1 everywhere.
    """
    least = sum(cost[layer] for layer in gains)
    if budget < least:
        raise NPTError(
            f"a budget of {max(0, budget):,} parameters is too small: {len(gains)} layers need at least {least:,}; "
            "give more, or convert fewer layers"
        )
    left, ranks = budget - least, dict.fromkeys(gains, 1)
    heap = [(-g[1] / cost[layer], layer) for layer, g in gains.items() if len(g) > 1]
    heapq.heapify(heap)
    while heap:
        _, layer = heapq.heappop(heap)
        if cost[layer] > left:
            continue
        left -= cost[layer]
        ranks[layer] += 1
        if ranks[layer] < len(gains[layer]):
            heapq.heappush(heap, (-gains[layer][ranks[layer]] / cost[layer], layer))
    return ranks


def as_overrides(ranks: Mapping[int, int]) -> tuple[str, ...]:
    """Ranks as `layer_overrides` holds them, such as ("0:np_rank=128", "8-9:np_rank=32")."""
    parts: list[list[int]] = []
    for layer, rank in sorted(ranks.items()):
        if parts and parts[-1][1:] == [layer - 1, rank]:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer, rank])
    return tuple(f"{a if a == b else f'{a}-{b}'}:np_rank={rank}" for a, b, rank in parts)
