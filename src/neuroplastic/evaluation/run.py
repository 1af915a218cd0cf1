"""One call from records and methods to figures, and to a report folder from which an interrupted run continues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import progress
from ..errors import NPTError
from .edits import Row, evaluate, summarise
from .evaluator import Evaluator, Remembered
from .methods import BatchMethod, EditingMethod, why_not
from .ordinary import rows_of_text
from .plots import need_matplotlib
from .records import Record
from .report import heat_section, record_section, write_report
from .result_store import ResultStore
from .sequential import Step, in_a_row, summarise_steps
from .suite import Suite, no_reference

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
    together: int = 1,
    batches: Mapping[str, BatchMethod] | None = None,
    text: Path | None = None,
) -> dict[str, Any]:
    """What `npt eval edits --json` prints. `data` names the records' source; `in_row` makes sequential edits, and
    `together` puts that number of records in place at the same time, by one call if `batches` has the method. Drift is
    measured on the file `text`, too.

    Raises NPTError without methods, for one that can teach this model nothing, if `report` belongs to another run or
    cannot be made, and, with `in_row`, for a method that makes no edit.
    """
    if not methods:
        raise NPTError("there is no method to evaluate")
    for method in methods:
        if (why := why_not(engine, method)) is not None:
            raise NPTError(f"method {method!r} can teach nothing: {why}")
    if together < 1:
        raise NPTError(f"together must be at least 1, not {together}")
    if together > 1 and in_row:
        raise NPTError("sequential edits are made one by one; give either sequential or together")
    if report is not None:
        need_matplotlib()
    settings = {"suite": suite.name, "base": engine.sha256, "data": data, "seed": seed}
    settings |= {"generate": generate, "sequential": in_row, "together": together}
    settings |= {"text": None if text is None else text.name}
    settings |= {"records": [r.id for r in records], "edits": [e.name for e in engine.ledger.active]}
    evaluator = Evaluator(engine, suite, generate, seed)
    if text is not None:
        evaluator.text = rows_of_text(engine.tokenizer, text, engine.model.device)
    steps_store = None if report is None or not in_row else ResultStore(report, settings, Step)
    rows_store = None if report is None or in_row else ResultStore(report, settings, Row)
    if report is not None and suite.reference is not no_reference:
        evaluator.keep_in(ResultStore(report, settings, Remembered, "reference.jsonl"))
    rows: list[Row] = []
    if in_row:
        with progress("teaching one after another") as step:
            steps = [s for m, t in methods.items() for s in in_a_row(evaluator, records, m, t, steps_store, step)]
        found = summarise_steps(steps, records, suite, seed)
    else:
        with progress("evaluating edits") as step:
            rows = evaluate(evaluator, records, methods, rows_store, step, together, batches)
        found = summarise(rows, suite, seed) | {"together": together}
    found |= {"malformed": dict(malformed or {}), "missing": sorted(evaluator.missing)}
    if report is not None:
        more = heat_section(evaluator, next(iter(records[0].sentences), records[0].statement))
        if rows:
            more.append(record_section(records, rows, suite.parts_of_s))
        write_report(report, found, settings, more)
    return found
