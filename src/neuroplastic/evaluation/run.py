"""One call from records and methods to figures, and to a report folder from which an interrupted run continues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import progress
from ..errors import NPTError
from .edits import Row, evaluate, summarise
from .evaluator import Evaluator
from .methods import EditingMethod
from .plots import need_matplotlib
from .records import Record
from .report import heat_section, record_section, write_report
from .result_store import ResultStore
from .sequential import Step, in_a_row, summarise_steps
from .suite import Suite

if TYPE_CHECKING:
    from ..editing.engine import EditableModel


def run_suite(
    engine: EditableModel,
    suite: Suite,
    records: Sequence[Record],
    methods: Mapping[str, EditingMethod],
    data: str,
    seed: int = 0,
    in_row: bool = False,
    generate: bool = False,
    report: Path | None = None,
    malformed: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What `npt eval edits --json` prints. `data` names the records' source; `in_row` makes sequential edits.

    Raises NPTError without methods, if `report` belongs to another run or cannot be made, and, with `in_row`, for a
    method that makes no edit.
    """
    if not methods:
        raise NPTError("there is no method to evaluate")
    if report is not None:
        need_matplotlib()
    settings = {"suite": suite.name, "base": engine.sha256, "data": data, "methods": list(methods), "seed": seed}
    settings |= {"generate": generate, "sequential": in_row}
    settings |= {"records": [r.id for r in records], "edits": [e.name for e in engine.ledger.active]}
    evaluator = Evaluator(engine, suite, generate, seed)
    rows: list[Row] = []
    if in_row:
        steps_store = None if report is None else ResultStore(report, settings, Step)
        with progress("teaching one after another") as step:
            steps = [s for m, t in methods.items() for s in in_a_row(evaluator, records, m, t, steps_store, step)]
        found = summarise_steps(steps, records, suite, seed)
    else:
        rows_store = None if report is None else ResultStore(report, settings, Row)
        with progress("evaluating edits") as step:
            rows = evaluate(evaluator, records, methods, rows_store, step)
        found = summarise(rows, suite, seed)
    found |= {"malformed": dict(malformed or {}), "missing": sorted(evaluator.missing)}
    if report is not None:
        more = heat_section(evaluator, next(iter(records[0].sentences), records[0].statement))
        if rows:
            more.append(record_section(records, rows, suite.parts_of_s))
        write_report(report, found, settings, more)
    return found
