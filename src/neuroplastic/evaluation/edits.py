"""The edit suite, one edit at a time: every method on every record, what it costs and what it harms.

A row is one record under one method. Edits are made in memory: the workspace's own stay in the weights, and its
folder is not touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ..console import Progress
from .evaluator import Evaluator
from .memory import peak_memory
from .methods import EditingMethod
from .ordinary import OrdinaryText
from .records import Record
from .result_store import ResultStore
from .suite import Suite
from .summary import harmonic, summary


@dataclass(frozen=True)
class Row:
    """One record under one method."""

    method: str
    record: str
    figures: dict[str, float]
    """those of the suite and of `written`; `asking`, seconds spent on asking; and, if weights changed, `seconds`, the
    edit's duration, `perplexity` and `kl`, its effect on ordinary text, and `peak`, bytes of memory"""


def evaluate(
    evaluator: Evaluator,
    records: Sequence[Record],
    methods: Mapping[str, EditingMethod],
    store: ResultStore[Row] | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Every record under every method, each alone.

    Rows in `store` are not made again, and new ones are added to it. A method is entered once before it is measured,
    so that what is made once per model, and imports, count for none of its edits.
    """
    known = {(r.method, r.record): r for r in (store.done if store is not None else ())}
    rows, ordinary = [], None
    for method, teach in methods.items():
        warm = False
        for record in records:
            row = known.get((method, record.id))
            if row is None:
                evaluator.remember([record])
                ordinary = ordinary or OrdinaryText(evaluator.engine)
                if not warm:
                    with teach(evaluator.engine, record):
                        warm = True
                row = Row(method, record.id, _alone(evaluator, record, teach, ordinary))
                if store is not None:
                    store.keep(row)
            rows.append(row)
            if progress is not None:
                progress(len(rows), len(methods) * len(records))
    return rows


def _alone(evaluator: Evaluator, record: Record, teach: EditingMethod, ordinary: OrdinaryText) -> dict[str, float]:
    with ExitStack() as stack:
        with peak_memory() as peak:
            taught = stack.enter_context(teach(evaluator.engine, record))
        figures = evaluator.ask(record, taught.context)
        if taught.weights:
            figures |= {"seconds": taught.seconds, **ordinary.drift()._asdict()}
            if peak.bytes is not None:
                figures["peak"] = float(peak.bytes)
            else:
                evaluator.missing.add(str(peak.missing))
    return figures


def summarise(rows: Sequence[Row], suite: Suite, seed: int = 0) -> dict[str, Any]:
    """Per method the figures with their intervals; and, if `unedited` is among the methods, the ceiling of S: its value
    if every edit and paraphrase succeeds and neighbours are as unedited."""
    methods: dict[str, Any] = {}
    for method in dict.fromkeys(r.method for r in rows):
        own = [r.figures for r in rows if r.method == method]
        methods[method] = {"records": len(own), "figures": summary(own, suite.parts_of_s, seed, suite.shares)}
    near = methods["unedited"]["figures"].get(suite.parts_of_s[2], (None,))[0] if "unedited" in methods else None
    return {
        "suite": suite.name,
        "parts_of_s": suite.parts_of_s,
        "seed": seed,
        "records": list(dict.fromkeys(r.record for r in rows)),
        "ceiling": None if near is None else harmonic(1, 1, near),
        "methods": methods,
    }
