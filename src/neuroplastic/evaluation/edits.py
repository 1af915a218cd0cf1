"""The edit suite: every method on every record, one edit at a time or kept one upon another, and what it harms.

A row is one record under one method; rows go into a file as they are made, and a run that was cut off goes on behind
the last one. Edits are made in memory: the workspace's own stay in the weights, and its folder is not touched.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import Progress
from ..errors import NPTError
from ..files import whole_file
from ..surgery import mode
from .contenders import Contender
from .counterfact import Score, harmonic, score, summary
from .fidelity import perplexity
from .records import Record

if TYPE_CHECKING:
    from ..editing.editor import Editor

DRIFT_ROWS = 4
"""Rows of held-out text, about five hundred tokens, on which drift is measured."""
CHECKPOINTS = (1, 3, 10, 30, 100, 300, 1000)
"""After so many edits in a row, all of them are asked again."""


@dataclass(frozen=True)
class Row:
    """One record under one method."""

    method: str
    record: str
    score: Score
    seconds: float
    """that the edit took, without asking"""
    drift: float
    """relative rise of perplexity on ordinary text"""


@dataclass(frozen=True)
class Step:
    """Edits in a row: after `edits` of them, how the records taught so far are answered."""

    method: str
    edits: int
    figures: dict[str, tuple[float, float, float]]
    drift: float


def choose(records: Sequence[Record], limit: int | None, seed: int) -> list[Record]:
    """The first `limit` records of a seeded shuffle. Raises NPTError where there is none."""
    if limit is not None and limit < 1:
        raise NPTError(f"limit must be at least 1, not {limit}")
    shuffled = list(records)
    random.Random(seed).shuffle(shuffled)
    if not shuffled:
        raise NPTError("there is no record that can be used")
    return shuffled[:limit]


def evaluate(
    editor: Editor,
    records: Sequence[Record],
    contenders: Mapping[str, Contender],
    done: Sequence[Row] = (),
    keep: Callable[[Row], None] = lambda row: None,
    progress: Progress | None = None,
) -> list[Row]:
    """Every record under every contender, each alone. Rows in `done` are not made again; `keep` is given each new
    one."""
    known = {(r.method, r.record): r for r in done}
    before, rows = _perplexity(editor), []
    for number, (method, record) in enumerate((m, r) for m in contenders for r in records):
        row = known.get((method, record.id))
        if row is None:
            row = _evaluate(editor, record, method, contenders[method], before)
            keep(row)
        rows.append(row)
        if progress is not None:
            progress(number + 1, len(contenders) * len(records))
    return rows


def _evaluate(editor: Editor, record: Record, method: str, teach: Contender, before: float) -> Row:
    with teach(editor, record) as taught:
        found = _score(editor, record.behind(taught.told))
        drift = _perplexity(editor) / before - 1 if taught.weights else 0.0
    return Row(method, record.id, found, taught.seconds, drift)


def in_a_row(
    editor: Editor, records: Sequence[Record], method: str, teach: Contender, progress: Progress | None = None
) -> Iterator[Step]:
    """The records taught one after another and kept; asked again after 1, 3, 10, 30, ... of them, and at the end.

    Raises NPTError for a contender that changes no weights.
    """
    before = _perplexity(editor)
    with ExitStack() as kept:
        for number, record in enumerate(records, 1):
            if not kept.enter_context(teach(editor, record)).weights:
                raise NPTError(f"{method!r} makes no edits to keep")
            if number in CHECKPOINTS or number == len(records):
                figures = summary([_score(editor, r) for r in records[:number]])
                yield Step(method, number, figures, _perplexity(editor) / before - 1)
            if progress is not None:
                progress(number, len(records))


def _perplexity(editor: Editor) -> float:
    """On held-out ordinary text, measured anew: a contender may change weights without the ledger."""
    with mode(editor.model, "standard"):
        return perplexity(editor.model, editor.text[1][:DRIFT_ROWS])


def _score(editor: Editor, record: Record) -> Score:
    with mode(editor.model, "standard"):
        return score(editor.model, editor.tokenizer, record)


# --- the report -----------------------------------------------------------------------------------------------------


def summarise(rows: Sequence[Row], seed: int = 0) -> dict[str, Any]:
    """Per method the figures with their intervals, seconds and drift; and the ceiling of S, which is its value at
    ES = PS = 1 and NS as unedited, where `unedited` is among the methods."""
    methods = list(dict.fromkeys(r.method for r in rows))
    table = {}
    for method in methods:
        own = [r for r in rows if r.method == method]
        mean = {k: sum(getattr(r, k) for r in own) / len(own) for k in ("seconds", "drift")}
        table[method] = {"records": len(own), **mean, "figures": summary([r.score for r in own], seed)}
    ceiling = harmonic(1, 1, table["unedited"]["figures"]["NS"][0]) if "unedited" in table else None
    return {"ceiling": ceiling, "seed": seed, "methods": table, "records": list(dict.fromkeys(r.record for r in rows))}


def as_csv(found: dict[str, Any]) -> str:
    """A summary as CSV: one line per method and figure."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(("method", "figure", "mean", "low", "high"))
    for method, own in found["methods"].items():
        for name, interval in own["figures"].items():
            writer.writerow((method, name, *interval))
        for name in ("seconds", "drift"):
            writer.writerow((method, name, own[name], "", ""))
    return out.getvalue()


class Report:
    """A folder that keeps the rows of a run as they are made: rows.jsonl, and at the end summary.json and .csv."""

    def __init__(self, folder: Path, settings: dict[str, Any]):
        """Raises NPTError where the folder belongs to a run with other settings, or its rows are damaged."""
        self.folder, self.rows = folder, folder / "rows.jsonl"
        self.done: list[Row] = []
        head = {"settings": settings}
        if not self.rows.exists():
            folder.mkdir(parents=True, exist_ok=True)
            self.rows.write_text(json.dumps(head) + "\n", encoding="utf-8")
            return
        first, *lines = self.rows.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
        if first != json.dumps(head) + "\n":
            raise NPTError(f"{folder} holds the report of another run: {first.strip()}; choose another folder")
        whole = [line for line in lines if line.endswith("\n")]  # a run that was killed may have cut its last line
        if len(whole) < len(lines):
            with whole_file(self.rows) as path:
                path.write_text(first + "".join(whole), encoding="utf-8")
        try:
            for line in whole:
                row = json.loads(line)
                self.done.append(Row(**{**row, "score": Score(**row["score"])}))
        except (ValueError, TypeError, KeyError) as e:
            raise NPTError(f"{self.rows} is damaged: {e}; delete it to begin again") from None

    def keep(self, row: Row) -> None:
        with self.rows.open("a", encoding="utf-8") as f:
            f.write(json.dumps(asdict(row)) + "\n")

    def finish(self, found: dict[str, Any]) -> None:
        for name, text in (("summary.json", json.dumps(found, indent=1)), ("summary.csv", as_csv(found))):
            with whole_file(self.folder / name) as path:
                path.write_text(text, encoding="utf-8")
