"""The search for the baselines' settings, on records that the comparison does not report.

make search-edits METHOD=ft|lora|rome|memit
    or, in benchmarks/: python -m baselines.search METHOD [--data FILE] [--records 8] [--report DIR] [--json]

smollm2-135m in float32; CounterFact records number 100 to 107 of a shuffle with seed 0, of which the first hundred are
what is reported; with --data counterfact_train.json there is no doubt. One grid of SEARCHED after another, the best S
kept, of equals the first; what is in no grid is the paper's. What was chosen stands in the method's `Settings`. With
--report, an interrupted run continues.
"""

from __future__ import annotations

import argparse
import itertools
import json
import operator
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import neuroplastic as npt
from neuroplastic.console import progress
from neuroplastic.evaluation.baselines.ft import Settings as Ft
from neuroplastic.evaluation.baselines.ft import ft
from neuroplastic.evaluation.baselines.lora import Settings as Lora
from neuroplastic.evaluation.baselines.lora import lora
from neuroplastic.evaluation.baselines.memit import Settings as Memit
from neuroplastic.evaluation.baselines.memit import memit
from neuroplastic.evaluation.baselines.rome import Settings as Rome
from neuroplastic.evaluation.baselines.rome import rome
from neuroplastic.evaluation.edits import Row, evaluate, summarise
from neuroplastic.evaluation.evaluator import Evaluator
from neuroplastic.evaluation.methods import EditingMethod
from neuroplastic.evaluation.records import Record, choose, read_records
from neuroplastic.evaluation.result_store import ResultStore
from neuroplastic.evaluation.suites import SUITES

from .data import records_file

REPORTED, SEED = 100, 0
"""Largest number of records that docs/comparison.md reports on, the first ones of the shuffle with this seed."""

Grid = Mapping[str, tuple[Any, ...]]
SEARCHED: dict[str, tuple[Callable[[Any], EditingMethod], Any, tuple[Grid, ...]]] = {
    "ft": (
        ft,
        Ft(layer="4", rate=5e-4, bound=5e-4),
        ({"bound": (5e-4, 2e-3, 8e-3)}, {"rate": (5e-4, 2e-3)}, {"layer": ("0", "4", "12")}),
    ),
    "lora": (
        lora,
        Lora(where="qv", rate=1e-3, steps=10),
        ({"rate": (1e-3, 3e-4, 1e-4), "where": ("qv", "all")}, {"steps": (10, 20)}),
    ),
    "rome": (rome, Rome(layer="4"), ({"layer": ("2", "4", "6")}, {"search.steps": (10, 20)})),
    "memit": (
        memit,
        Memit(layers="3-7", strength=15000.0),
        ({"strength": (15000.0, 1500.0)}, {"layers": ("3-7", "2-4")}),
    ),
}
"""Per baseline: the method, the settings that the search begins with, and the grids, tried one after another."""


def search(
    evaluator: Evaluator,
    records: Sequence[Record],
    make: Callable[[Any], EditingMethod],
    start: Any,
    grids: Sequence[Grid],
    store: ResultStore[Row] | None = None,
) -> tuple[Any, dict[str, dict[str, Any]]]:
    """The chosen settings, and every tried one's figures by its description."""
    axes = [axis for grid in grids for axis in grid]
    rows: dict[str, list[Row]] = {}

    def tried(settings: Any) -> float:
        name = described(settings, axes)
        if name not in rows:
            with progress(name) as step:
                rows[name] = evaluate(evaluator, records, {name: make(settings)}, store, step)
        found: float = summarise(rows[name], evaluator.suite)["methods"][name]["figures"]["S"][0]
        return found

    for grid in grids:
        points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
        start = max((changed(start, point) for point in points), key=tried)
    every = [row for own in rows.values() for row in own]
    return start, summarise(every, evaluator.suite)["methods"]


def value(settings: Any, axis: str) -> Any:
    """A field, or one of a field's own fields: `search.steps`."""
    return operator.attrgetter(axis)(settings)


def changed(settings: Any, point: Mapping[str, Any]) -> Any:
    """The settings with other values on some axes."""
    for axis, to in point.items():
        first, _, rest = axis.partition(".")
        settings = replace(settings, **{first: changed(getattr(settings, first), {rest: to}) if rest else to})
    return settings


def described(settings: Any, axes: Iterable[str]) -> str:
    return ", ".join(f"{axis} {value(settings, axis)}" for axis in axes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=SEARCHED)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--records", type=int, default=8)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    suite = SUITES["counterfact"]
    data = records_file(options.data)
    everything, _ = read_records(data, suite.parse)
    records = choose(everything, None, SEED)[REPORTED:][: options.records]
    if options.records < 1 or not records:
        raise npt.NPTError(f"{data} has {len(everything)} records; the search needs some beside the first {REPORTED}")
    make, start, grids = SEARCHED[options.method]
    axes = [axis for grid in grids for axis in grid]
    with tempfile.TemporaryDirectory() as folder:
        engine = npt.Workspace.create(Path(folder) / "w", "smollm2-135m").engine
        settings = {"method": options.method, "data": data.name, "records": [r.id for r in records]}
        store = (
            None if options.report is None else ResultStore(options.report, {**settings, "base": engine.sha256}, Row)
        )
        chosen, table = search(Evaluator(engine, suite), records, make, start, grids, store)
    if options.json:
        print(json.dumps({**settings, "chosen": {a: value(chosen, a) for a in axes}, "tried": table}))
        return
    print(f"{'ES':>5} {'PS':>5} {'NS':>5} {'S':>5} {'seconds':>8} {'drift':>7}  settings ({len(records)} records)")
    for name, own in table.items():
        S, *parts = (own["figures"][n][0] for n in ("S", *suite.parts_of_s))
        seconds, drift = (own["figures"][n][0] for n in ("seconds", "perplexity"))
        print(" ".join(f"{p:5.2f}" for p in parts), f"{S:5.3f} {seconds:8.2f} {drift:+7.2%}  {name}")
    print("chosen:", described(chosen, axes))


if __name__ == "__main__":
    try:
        main()
    except npt.NPTError as e:
        print(f"search: {e}", file=sys.stderr)
        sys.exit(2)
