"""The edit suite, one edit or one group of them at a time: every method on every record, its cost and its harm.

A row is one record under one method. Edits are made in memory: the workspace's own stay in the weights, and its
folder is not touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ..console import Progress
from .evaluator import Evaluator
from .memory import peak_memory
from .methods import BatchMethod, EditingMethod
from .ordinary import Ordinary
from .records import Record
from .result_store import ResultStore
from .suite import Suite
from .summary import harmonic, summary
from .teaching import one_after_another, teach_group


@dataclass(frozen=True)
class Row:
    """One record under one method."""

    method: str
    record: str
    figures: dict[str, float]
    """those of the suite and of `written`; `asking`, seconds spent on asking, and `per_question`; `context_tokens`;
    `seconds`, the time that teaching took; and, if weights changed, `perplexity` and `kl`, the effect on ordinary text
    (`perplexity_text` and `kl_text` on a text that was given), and `peak`, bytes of memory"""
    refused: str = ""
    """why the method could not teach the record; the figures are then those of the model without it"""
    untaught: str = ""
    """what of the record it left out, and why"""


def evaluate(
    evaluator: Evaluator,
    records: Sequence[Record],
    methods: Mapping[str, EditingMethod],
    store: ResultStore[Row] | None = None,
    progress: Progress | None = None,
    together: int = 1,
    batches: Mapping[str, BatchMethod] | None = None,
) -> list[Row]:
    """Every record under every method, each alone; or in groups of `together` records, all of which are taught and stay
    in place while each of them is asked. `batches` has the methods that teach a group by one call.

    Rows in `store` are not made again, and new ones are added to it. A method is entered once before it is measured,
    so that what is made once per model, and imports, count for none of its edits. A record that a method cannot teach,
    for which it raises NPTError, is asked without it, and its row says why.
    """
    known = {(r.method, r.record): r for r in (store.done if store is not None else ())}
    if new := [r for r in records if any((method, r.id) not in known for method in methods)]:
        evaluator.remember(new)
        ordinary = evaluator.ordinary()
    groups = [records[i : i + together] for i in range(0, len(records), together)]
    done = 0
    for method, teach in methods.items():
        teach_all, warm = (batches or {}).get(method) or one_after_another(teach), False
        for group in groups:
            missing = [record for record in group if (method, record.id) not in known]
            if missing and not warm:
                with ExitStack() as stack:
                    warm = teach_group(stack, evaluator.engine, group[:1], teach_all)[0] is not None
            for row in _rows(evaluator, method, group, missing, teach_all, ordinary) if missing else ():
                known[method, row.record] = row
                if store is not None:
                    store.keep(row)
                if progress is not None:
                    progress(done + sum((method, record.id) in known for record in group), len(methods) * len(records))
            done += len(group)
            if progress is not None:
                progress(done, len(methods) * len(records))
    return [known[method, record.id] for method in methods for record in records]


def _rows(
    evaluator: Evaluator,
    method: str,
    group: Sequence[Record],
    asked: Sequence[Record],
    teach: BatchMethod,
    ordinary: Ordinary,
) -> Iterator[Row]:
    """Rows of those records of a group that are asked, with all of the group in place."""
    with ExitStack() as stack:
        with peak_memory() as peak:
            taught, refused = teach_group(stack, evaluator.engine, group, teach)
        costs: dict[str, float] = {}
        if taught is not None:
            costs["seconds"] = taught.seconds
            if taught.weights:
                costs |= ordinary.drift()
                if peak.bytes is not None:
                    costs["peak"] = float(peak.bytes)
                else:
                    evaluator.missing.add(str(peak.missing))
        for record in asked:
            figures = evaluator.ask(record, "" if taught is None else taught.context)
            own = {} if record.id in refused else costs
            untaught = "" if taught is None else taught.untaught.get(record.id, "")
            yield Row(method, record.id, figures | own, refused.get(record.id, ""), untaught)


def summarise(rows: Sequence[Row], suite: Suite, seed: int = 0) -> dict[str, Any]:
    """Per method the figures with their intervals, and why it could not teach some records; and, if `unedited` is among
    the methods, the ceiling of S: its value if every edit and paraphrase succeeds and neighbours are as unedited."""
    methods: dict[str, Any] = {}
    for method in dict.fromkeys(r.method for r in rows):
        own = [r.figures for r in rows if r.method == method]
        refused = {r.record: r.refused for r in rows if r.method == method and r.refused}
        figures = summary(own, suite.parts_of_s, seed, suite.shares)
        untaught = {r.record: r.untaught for r in rows if r.method == method and r.untaught}
        methods[method] = {"records": len(own), "figures": figures, "refused": refused, "untaught": untaught}
    near = methods["unedited"]["figures"].get(suite.parts_of_s[2], (None,))[0] if "unedited" in methods else None
    return {
        "suite": suite.name,
        "parts_of_s": suite.parts_of_s,
        "shares": list(suite.shares),
        "seed": seed,
        "records": list(dict.fromkeys(r.record for r in rows)),
        "ceiling": None if near is None else harmonic(1, 1, near),
        "methods": methods,
    }
