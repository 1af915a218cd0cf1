"""Spending a budget of parameters over layers where it lowers the output error most."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from ..errors import NPTError


def spend(gains: Mapping[int, Sequence[float]], cost: int, budget: int) -> dict[int, int]:
    """A rank of at least 1 for every layer, of which `cost` parameters each buy one.

    gains[layer][i] is what rank i + 1 lowers the layer's error by, falling with i; so taking the best next one each
    time is the best that the budget can buy. Raises NPTError where it does not pay for rank 1 everywhere.
    """
    affordable = budget // cost
    if affordable < len(gains):
        raise NPTError(
            f"a budget of {budget:,} parameters is too small: {len(gains)} layers need at least {cost * len(gains):,}; "
            "give more, or convert fewer layers"
        )
    ranks = dict.fromkeys(gains, 1)
    heap = [(-g[1], layer) for layer, g in gains.items() if len(g) > 1]
    heapq.heapify(heap)
    for _ in range(affordable - len(gains)):
        if not heap:
            break
        _, layer = heapq.heappop(heap)
        ranks[layer] += 1
        if ranks[layer] < len(gains[layer]):
            heapq.heappush(heap, (-gains[layer][ranks[layer]], layer))
    return ranks


def as_text(ranks: Mapping[int, int]) -> str:
    """Ranks as `layer_ranks` holds them, such as 0:128,8-9:32."""
    parts: list[list[int]] = []
    for layer, rank in sorted(ranks.items()):
        if parts and parts[-1][1:] == [layer - 1, rank]:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer, rank])
    return ",".join(f"{first}:{rank}" if first == last else f"{first}-{last}:{rank}" for first, last, rank in parts)
