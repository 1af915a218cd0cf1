"""What a run of an edit suite writes to its report folder beside its rows: summary.json, summary.csv, report.html."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import NPTError
from ..evaluation import plots
from ..files import whole_file, write_json
from .edits import Row
from .evaluator import Evaluator
from .heat import modulation_norms
from .page import Html, figure, folded, heading, page, paragraph, table
from .records import Record

MEANINGS = "docs/evaluation.md says what each figure means."
TITLES = {
    "asking": "asking a record",
    "seconds": "making an edit",
    "perplexity": "rise of perplexity on ordinary text",
    "kl": "KL on ordinary text, nats per token",
    "peak": "peak memory of an edit",
}


def write_report(folder: Path, found: dict[str, Any], settings: dict[str, Any], blocks: Sequence[Html]) -> None:
    """`found` is what `--json` prints, with `methods` or `steps`; `blocks` stand at the end of the page."""
    write_json(folder / "summary.json", found)
    html = page(f"Edits measured: {found['suite']}", [*_page(found, settings), *blocks])
    for name, content in (("summary.csv", as_csv(found)), ("report.html", html)):
        with whole_file(folder / name) as path:
            path.write_text(content, encoding="utf-8")


def as_csv(found: dict[str, Any]) -> str:
    """One line per figure: method, edits in place, figure, mean, low, high."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(("method", "edits", "figure", "mean", "low", "high"))
    for method, edits, figures in entries(found):
        for name, (mean, *ends) in figures.items():
            writer.writerow((method, edits, name, mean, *(ends or ("", ""))))
    return out.getvalue()


def entries(found: dict[str, Any]) -> Iterator[tuple[str, int, dict[str, Sequence[float]]]]:
    """(method, edits in place, figures) of `methods`, one edit at a time, or of `steps`. Figures that were measured
    once have no interval."""
    for method, own in found.get("methods", {}).items():
        yield method, 1, own["figures"]
    for s in found.get("steps", []):
        yield s["method"], s["edits"], {**s["figures"], **{n: (s[n],) for n in ("perplexity", "kl")}}


def _page(found: dict[str, Any], settings: dict[str, Any]) -> Iterator[Html]:
    listed, parts = list(entries(found)), found["parts_of_s"]
    names = list(dict.fromkeys(n for _, _, figures in listed for n in figures))
    yield paragraph(
        f"{len(found['records'])} records of {settings['data']}, seed {found['seed']}, base model "
        f"{settings['base'][:16]}, other edits in the weights: {', '.join(settings['edits']) or 'none'}. Means with "
        f"95 % bootstrap intervals over records. {MEANINGS}"
    )
    if found.get("ceiling") is not None:
        yield paragraph(f"Ceiling of S, at neighbours as unedited: {found['ceiling']:.3f}")
    yield heading("Figures")
    in_a_row = "steps" in found
    head = ["figure", *(f"{m}, {n} in place" if in_a_row else m for m, n, _ in listed)]
    yield table(head, ([TITLES.get(n, n), *(_shown(n, f.get(n)) for _, _, f in listed)] for n in names))
    for words in found["missing"]:
        yield paragraph(words)
    if in_a_row:
        asked = sorted({(s["edits"], s["asked"]) for s in found["steps"] if s["asked"] < s["edits"]})
        for edits, some in asked:
            yield paragraph(f"With {edits} edits in place, a seeded sample of {some} was asked.")
        yield heading("Retention")
        yield figure(
            plots.retention(found["steps"], ("S", *(p for p in parts if p in names))),
            "What is left of the edits so far, and perplexity.",
        )
    else:
        yield heading("Quality against seconds")
        taken = {m: f["seconds"] for m, _, f in listed if "seconds" in f}
        quality = plots.quality_against_seconds({m: f["S"] for m, _, f in listed}, taken, "S", found["ceiling"])
        yield figure(quality, "S, the harmonic mean of " + ", ".join(parts) + ", and what an edit takes.")
    if found["malformed"]:
        yield heading("Records left out")
        yield table(["record", "why"], found["malformed"].items())
    yield folded(f"The {len(found['records'])} records' ids", paragraph(", ".join(found["records"])))


def _shown(name: str, value: Sequence[float] | None) -> Html:
    if value is None:
        return Html("")
    scale, digits, unit = {
        "perplexity": (100, 2, " %"),
        "peak": (2**-20, 0, " MB"),
        "kl": (1, 4, ""),
        "seconds": (1, 2, " s"),
        "asking": (1, 2, " s"),
    }.get(name, (1, 3, ""))
    sign = "+" if name == "perplexity" else ""
    mean, *ends = (f"{v * scale:{sign}.{digits}f}" for v in value)
    return Html(f"{mean}{unit}" + (f" <small>[{', '.join(ends)}]</small>" if ends else ""))


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def heat_section(evaluator: Evaluator, statement: str) -> list[Html]:
    """The heat map of a statement, or why there is none."""
    title = heading("Modulation of a statement")
    try:
        heat = modulation_norms(evaluator.engine.model, evaluator.engine.tokenizer, statement)
    except NPTError as e:
        return [title, paragraph(f"not drawn: {e}")]
    caption = f"|dW|, the norm of what each layer's generator adds to its weights at each token of: {statement}"
    return [title, figure(plots.heat_map(heat.norms, heat.layers, heat.tokens, "|v_a| |v_b|"), caption)]


def record_section(records: Sequence[Record], rows: Sequence[Row], parts: Sequence[str]) -> Html:
    """Every record with its S-making figures under every method."""
    methods = list(dict.fromkeys(r.method for r in rows))
    at = {(r.method, r.record): r.figures for r in rows}
    head = ["record", "statement", "instead of", *(f"{m}: {' / '.join(parts)}" for m in methods)]
    lines = [
        [r.id, r.statement, r.true, *(Html(" / ".join(_share(at[m, r.id].get(p)) for p in parts)) for m in methods)]
        for r in records
    ]
    return folded("Record by record", table(head, lines))
