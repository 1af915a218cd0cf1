"""`npt eval`: edits measured."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

from ..console import note, progress
from ..errors import NPTError
from . import printing
from .common import (
    Json,
    WorkspaceArg,
    app,
    open_workspace,
    show_result,
)

if TYPE_CHECKING:
    pass


@app.command(name="eval")
def eval_(
    what: Annotated[Positional[Literal["edits"]], tyro.conf.arg(metavar="{edits}")],
    workspace: WorkspaceArg,
    *,
    data: Path,
    method: str = "unedited,prompt,consolidate",
    limit: int | None = 100,
    seed: int = 0,
    sequential: int | None = None,
    report: Path | None = None,
    json: Json = False,
) -> int:
    """Measure edits as the field does: does a fact stick, carry over to paraphrases, and leave its neighbours alone.

    Figures of CounterFact (Meng et al. 2022): ES, PS, NS, their harmonic mean S, magnitudes and accuracies, with 95
    percent intervals over records, seconds per edit and the rise of perplexity on ordinary text. The workspace's own
    edits stay in the weights; its folder is not touched.

    Args:
        what: What to measure.
        workspace: The workspace.
        data: CounterFact records, full or flat, as a JSON list.
        method: Methods, separated by commas: unedited, prompt (the statement in front of every prompt), consolidate,
            refine, token.
        limit: At most so many records, the first ones of a shuffle with --seed.
        seed: Of the shuffle and of the intervals.
        sequential: Instead of one edit at a time, keep this many, one upon another, and ask all of them again after
            1, 3, 10, 30, 100, ... of them.
        report: Folder for rows.jsonl, summary.json and summary.csv. A run that was cut off goes on from there.
    """
    from ..evaluation import edits as suite
    from ..evaluation.contenders import contender
    from ..evaluation.counterfact import read_records

    methods = [m.strip() for m in method.split(",") if m.strip()]
    contenders = {m: contender(m) for m in methods}
    if sequential is not None and report is not None:
        raise NPTError("--report has no meaning with --sequential, whose figures are few; use --json")
    records, malformed = read_records(data)
    for name, why in malformed.items():
        note(f"npt: record {name} is left out: {why}")
    records = suite.choose(records, limit if sequential is None else sequential, seed)
    ws = open_workspace(workspace)
    if sequential is not None:
        steps = []
        with progress("teaching one after another") as step:
            for m, teach in contenders.items():
                steps += [asdict(s) for s in suite.in_a_row(ws.editor, records, m, teach, step)]
        return show_result(json, {"steps": steps, "malformed": malformed}, printing.retention)
    settings = {"base": ws.base.sha256, "data": data.name, "methods": methods, "seed": seed}
    settings |= {"records": [r.id for r in records], "edits": [e.name for e in ws.edits]}
    kept = None if report is None else suite.Report(report, settings)
    with progress("evaluating edits") as step:
        done, keep = ((), lambda row: None) if kept is None else (kept.done, kept.keep)
        rows = suite.evaluate(ws.editor, records, contenders, done, keep, step)
    found = {**suite.summarise(rows, seed), "malformed": malformed}
    if kept is not None:
        kept.finish(found)
    return show_result(json, found, printing.evaluation)
