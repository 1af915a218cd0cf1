"""From figures of single records to means with intervals: percentiles of a seeded bootstrap over records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Interval = tuple[float, float, float]
"""mean, and the ends of its 95 % interval"""
DRAWS = 2000


def harmonic(*shares: float) -> float:
    """The harmonic mean; 0 if one of them is 0."""
    return len(shares) / sum(1 / s for s in shares) if min(shares) > 0 else 0.0


def summary(
    rows: Sequence[Mapping[str, float]],
    parts_of_s: Sequence[str],
    seed: int = 0,
    shares: Mapping[str, tuple[str, str]] | None = None,
) -> dict[str, Interval]:
    """Mean and interval of S, the harmonic mean of the means of `parts_of_s` (of those that are there), and of every
    figure in `rows`, which has one mapping per record. A figure that some records lack is averaged over the others.

    `shares` names further figures, each the ratio of the means of two others, with the interval of that ratio. One is
    absent if a figure is, or if the second mean is 0; draws in which it is 0 are left out. Both means are over the
    records that have both figures.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    pairs = {name: pair for name, pair in (shares or {}).items() if {*pair} <= {*names}}
    columns = [(n, (n,)) for n in names] + [(n, pair) for pair in pairs.values() for n in pair]
    drawn = bootstrap(
        _table([[row[n] if {*has} <= row.keys() else torch.nan for n, has in columns] for row in rows]), seed
    )
    parts = [names.index(p) for p in parts_of_s if p in names]
    found = {"S": _interval(_harmonic(drawn[:, parts]))}
    found |= {n: _interval(column) for n, column in zip(names, drawn.T, strict=False)}
    for i, name in enumerate(pairs):
        part, whole = drawn[:, len(names) + 2 * i :][:, :2].T
        if whole[0] > 0:
            found[name] = _interval(torch.where(whole > 0, part / whole, torch.nan))
    return found


def bootstrap(table: Tensor, seed: int = 0, draws: int = DRAWS) -> Tensor:
    """Column means of a table (N, k), then those of `draws` tables of N rows drawn from it with replacement:
    (1 + draws, k). Entries that are NaN are left out."""
    rng = torch.Generator(table.device).manual_seed(seed)
    chosen = torch.randint(len(table), (draws, len(table)), generator=rng, device=rng.device)
    # one column at a time: the drawn tables of a long run would not fit into memory at once
    means = torch.stack([column[chosen].nanmean(1) for column in table.T], 1)
    return torch.cat([table.nanmean(0)[None], means])


def mean_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """The mean and interval of one figure."""
    return _interval(bootstrap(_table([[v] for v in values]), seed)[:, 0])


def _interval(means: Tensor) -> Interval:
    """The first one, and the percentiles of the others."""
    low, high = torch.nanquantile(means[1:], means.new_tensor([0.025, 0.975])).tolist()
    return means[0].item(), low, high


def _table(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64, device="cpu")


def _harmonic(shares: Tensor) -> Tensor:
    """(N, k) -> (N,)"""
    return torch.where((shares > 0).all(1), shares.shape[1] / shares.reciprocal().sum(1), 0.0)
