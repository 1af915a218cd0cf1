"""Times taken in turns, so that whatever else the machine does meets all of them; and what every script prints."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import nn

import neuroplastic as npt
from neuroplastic.console import Terminal
from neuroplastic.surgery import plastic_layers, revert, set_mode

BARS: dict[str, float] = {
    "prefill, top two layers": 1.03,
    "prefill, all layers": 1.20,
    "prefill, all layers, analytic": 1.50,
    "decode, top two layers": 1.05,
    "decode, all layers": 1.30,
    "standard mode": 1.01,
    "with edits": 1.01,
    "statistics pass": 1.30,
}
"""Largest ratios to the pretrained model, medians of paired runs."""


@dataclass(frozen=True)
class Ratio:
    """Of one thing's time to another's."""

    median: float
    low: float
    high: float
    """quartiles of the ratios of neighbouring runs"""
    seconds: float
    """median of the thing itself"""

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def paired(base: Callable[[], object], other: Callable[[], object], repeat: int) -> Ratio:
    """other / base. Each is run once to warm up; then in turns, the first of a pair changing from pair to pair."""
    base(), other()
    ratios, own = [], []
    for i in range(repeat):
        taken = {}
        for f in (base, other) if i % 2 == 0 else (other, base):
            began = time.perf_counter()
            f()
            taken[f] = time.perf_counter() - began
        ratios.append(taken[other] / taken[base])
        own.append(taken[other])
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return Ratio(middle, low, high, statistics.median(own))


@contextmanager
def plastic(model: nn.Module, config: npt.PlasticityConfig) -> Iterator[None]:
    """The model converted so, in standard mode; pretrained again afterwards."""
    npt.convert(model, config)
    set_mode(model, "standard")
    try:
        yield
    finally:
        revert(model)


def in_mode(model: nn.Module, dynamic: bool, run: Callable[[], object]) -> Callable[[], object]:
    """`run`, after all converted layers are switched to the mode."""
    states = [p.state for p in plastic_layers(model).values()]

    def switched() -> object:
        for s in states:
            s.dynamic = dynamic
        with torch.inference_mode():
            return run()

    return switched


def low_rank(**axes: Any) -> npt.PlasticityConfig:
    return npt.PlasticityConfig(**{"generator": "low_rank", "input": "effect", **axes})


def arithmetic(model: nn.Module, config: npt.PlasticityConfig) -> float:
    """Multiply-adds per token of the converted model over those of the pretrained one, without attention's products.

    The generator: its bottleneck once, its payload per site; learned keys as much again, times k, which the self key
    does not pay. This is what dynamic mode must cost where arithmetic is all that counts.
    """
    base = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    if config.generator == "analytic":
        return 1.0
    with plastic(model, config):
        own = 0.0
        for p in plastic_layers(model).values():
            numbers = {name: t.numel() for name, t in p.generator.named_parameters()}
            alike = config.key == "self" and config.rank_weights == "fixed"  # their payloads are added up first
            used = (1 if alike else config.top_ranks or config.num_ranks) / config.num_ranks
            own += sum(n * (used if name.startswith("payload") else 1) for name, n in numbers.items())
    return 1 + own / base


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], as_json: bool) -> None:
    """A table on standard output, or one JSON object."""
    if as_json:
        named = [dict(zip(columns, map(_plain, row), strict=True)) for row in rows]
        print(json.dumps({"title": title, "threads": torch.get_num_threads(), "rows": named}))
        return
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*map(str, row))
    Terminal(width=150).print(table)


def verdict(name: str, ratio: float, bars: Mapping[str, float] = BARS) -> str:
    """Whether a bar is met; empty if there is none."""
    if name not in bars:
        return ""
    return f"<= {bars[name]}: {'met' if ratio <= bars[name] else 'NOT MET'}"


def _plain(value: object) -> object:
    return vars(value) if isinstance(value, Ratio) else value
