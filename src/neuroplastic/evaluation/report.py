"""What a run of an edit suite writes to its report folder beside its rows: summary.json, summary.csv, report.html."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from ..errors import NPTError
from ..evaluation import plots
from ..files import whole_file, write_json
from .edits import Row
from .evaluator import Evaluator
from .heat import modulation_norms
from .page import Html, figure, folded, heading, page, paragraph, table
from .records import Record
from .sequential import label

MEANINGS = "docs/evaluation.md says what each figure means."
TITLES = {
    "asking": "asking a record",
    "per_question": "asking a question",
    "context_tokens": "tokens before a question",
    "seconds": "teaching a record",
    "perplexity": "rise of perplexity on ordinary text",
    "kl": "KL on ordinary text, nats per token",
    "perplexity_text": "rise of perplexity on the given text",
    "kl_text": "KL on the given text, nats per token",
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
        drift = {n: (s[n],) for n in ("perplexity", "kl", "perplexity_text", "kl_text") if s[n] is not None}
        yield label(s), s["edits"], {**s["figures"], **drift}


def refusals(found: dict[str, Any], what: Literal["refused", "untaught"] = "refused") -> list[tuple[str, str, str]]:
    """(method, record, why) of every record that a method could not teach, or of which it left something out."""
    listed = [(m, own[what]) for m, own in found.get("methods", {}).items()]
    listed += [(s["method"], s[what]) for s in found.get("steps", [])]
    # of sequential edits, a later step names those of the earlier ones, too
    return list(dict.fromkeys((m, record, why) for m, refused in listed for record, why in refused.items()))


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
    if found.get("together", 1) > 1:
        many = f"{found['together']} records at a time"
        yield paragraph(f"{many} were taught, and all of them were in place while each was asked.")
    yield heading("Figures")
    in_a_row = "steps" in found
    head = ["figure", *(f"{m}, {n} in place" if in_a_row else m for m, n, _ in listed)]
    yield table(head, ([TITLES.get(n, n), *(shown(n, f.get(n)) for _, _, f in listed)] for n in names))
    for words in found["missing"]:
        yield paragraph(words)
    if in_a_row:
        asked = sorted({(s["edits"], s["asked"]) for s in found["steps"] if s["asked"] < s["edits"] and not s["first"]})
        for edits, some in asked:
            yield paragraph(f"With {edits} edits in place, a seeded sample of {some} was asked.")
        yield heading("Retention")
        yield figure(
            plots.retention([s for s in found["steps"] if not s["first"]], ("S", *(p for p in parts if p in names))),
            "What is left of the edits so far, and perplexity.",
        )
    else:
        yield heading("Quality against seconds")
        taken = {m: f["seconds"] for m, _, f in listed if "kl" in f}  # what changes no weights takes no time
        quality = plots.quality_against_seconds({m: f["S"] for m, _, f in listed}, taken, "S", found["ceiling"])
        yield figure(quality, "S, the harmonic mean of " + ", ".join(parts) + ", and what an edit takes.")
    if refused := refusals(found):
        yield heading("Records that a method could not teach")
        yield paragraph("They are asked all the same, and count as the model answers without them.")
        yield table(["method", "record", "why"], refused)
    if untaught := refusals(found, "untaught"):
        yield heading("Records of which a method left something out")
        yield table(["method", "record", "what"], untaught)
    if found["malformed"]:
        yield heading("Records left out")
        yield table(["record", "why"], found["malformed"].items())
    yield folded(f"The {len(found['records'])} records' ids", paragraph(", ".join(found["records"])))


def shown(name: str, value: Sequence[float] | None) -> Html:
    """A figure with its unit, and its interval if it has one."""
    if value is None:
        return Html("")
    scale, digits, unit = {
        "perplexity": (100, 2, " %"),
        "peak": (2**-20, 0, " MB"),
        "perplexity_text": (100, 2, " %"),
        "kl": (1, 4, ""),
        "kl_text": (1, 4, ""),
        "seconds": (1, 2, " s"),
        "asking": (1, 2, " s"),
        "per_question": (1, 3, " s"),
        "context_tokens": (1, 1, ""),
    }.get(name, (1, 3, ""))
    sign = "+" if name.startswith("perplexity") else ""
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
