"""Several suites and all methods, in one call: a table and a plot for each suite, in one page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import note
from ..errors import NPTError
from ..files import whole_file, write_json
from . import plots
from .methods import batch_method, check_methods, editing_method, why_not
from .page import Html, figure, heading, page, paragraph, table, text
from .records import choose, read_records
from .report import MEANINGS, refusals, shown
from .run import run_suite
from .suites import SUITES
from .summary import harmonic

if TYPE_CHECKING:
    from ..editing.engine import EditableModel

FILES = {
    "told": "told_dev.json",
    "qaedit": "qaedit_dev.json",
    "paragraphs": "paragraph_facts_dev.json",
    "passages": "squad_passages.jsonl",
    "counterfact": "counterfact_dev.json",
    "zsre": "zsre_dev.json",
}
"""The usual name of each suite's file."""
METHODS = ("unedited", "prompt", "retrieval", "learned", "consolidate", "refine", "rome", "memit", "lora", "ft")
COSTS = ("perplexity", "kl", "perplexity_text", "kl_text", "seconds", "per_question", "context_tokens")
HEADS = {
    "perplexity": "perplexity",
    "kl": "KL",
    "perplexity_text": "perplexity, given text",
    "kl_text": "KL, given text",
    "seconds": "teaching",
    "per_question": "a question",
    "context_tokens": "context tokens",
}


def sources(suites: Sequence[str] | None, folder: Path) -> dict[str, Path]:
    """The file of each suite in a folder; of those that have one, if none are named. Raises NPTError for a suite that
    does not exist, for one without its file, and if there is none."""
    if suites is None:
        suites = [suite for suite in SUITES if (folder / FILES[suite]).is_file()]
        if not suites:
            raise NPTError(f"{str(folder)!r} has no file of a suite, such as {FILES['counterfact']}")
    if not suites:
        raise NPTError(f"there is no suite to measure; suites are {', '.join(SUITES)}")
    for suite in suites:
        if suite not in SUITES:
            raise NPTError(f"there is no suite {suite!r}; suites are {', '.join(SUITES)}")
        if not (folder / FILES[suite]).is_file():
            raise NPTError(f"there is no file {str(folder / FILES[suite])!r}, which the suite {suite!r} reads")
    return {suite: folder / FILES[suite] for suite in suites}


def compare(
    engine: EditableModel,
    files: dict[str, Path],
    methods: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    together: int = 1,
    given: Path | None = None,
    report: Path | None = None,
) -> dict[str, Any]:
    """What `npt eval compare --json` prints: by suite what `run_suite` finds, and the methods that are left out.

    Without `methods`, those of METHODS that can teach this model anything. `given` is a text on which drift is
    measured, too. With `report`, a run continues from there; each suite has a folder in it. Raises NPTError as
    `run_suite` does.
    """
    left_out: dict[str, str] = {}
    if methods is None:
        left_out = {m: why for m in METHODS if (why := why_not(engine, m)) is not None}
        methods = [m for m in METHODS if m not in left_out]
    check_methods(methods)
    for method, why in left_out.items():
        note(f"npt: method {method!r} is left out: {why}")
    found: dict[str, Any] = {}
    for name, file in files.items():
        suite = SUITES[name]  # type: ignore[index]
        records, malformed = read_records(file, suite.parse, suite.link)
        for record, why in malformed.items():
            note(f"npt: record {record} of {file.name} is left out: {why}")
        chosen = choose(records, limit, seed)
        note(f"npt: {name}, {len(chosen)} records")
        found[name] = run_suite(
            engine,
            suite,
            chosen,
            {m: editing_method(m, [r.statement for r in chosen]) for m in methods},
            file.name,
            seed,
            report=None if report is None else report / name,
            malformed=malformed,
            together=together,
            batches={m: batch for m in methods if (batch := batch_method(m)) is not None},
            text=given,
        )
    whole = {"suites": found, "left_out": left_out}
    if report is not None:
        write_json(report / "summary.json", whole)
        with whole_file(report / "report.html") as path:
            path.write_text(page("Ways to teach a model, compared", _page(whole, engine.sha256)), encoding="utf-8")
    return whole


def success(figures: dict[str, Any], parts: Sequence[str]) -> float:
    """Harmonic mean of the first two parts of S, or of those that the model allows."""
    return harmonic(*(figures[p][0] for p in parts[:2] if p in figures))


def _page(found: dict[str, Any], base: str) -> Iterator[Html]:
    yield paragraph(f"Base model {base[:16]}. Means with 95 % bootstrap intervals over records. {MEANINGS}")
    for method, why in found["left_out"].items():
        yield paragraph(f"{method} is left out: {why}.")
    for name, own in found["suites"].items():
        parts, methods = own["parts_of_s"], own["methods"]
        many = f", {own['together']} in place at the same time" if own["together"] > 1 else ""
        yield heading(name)
        link = Html(f'<a href="{text(name)}/report.html">all figures</a>')
        yield paragraph(Html(text(f"{len(own['records'])} records, seed {own['seed']}{many}: ") + link))
        yield from summary_tables(own)
        locality = {m: f["figures"][parts[2]][0] for m, f in methods.items() if parts[2] in f["figures"]}
        yield figure(
            plots.success_against_locality(
                {m: (locality[m], success(methods[m]["figures"], parts)) for m in locality},
                {m: methods[m]["figures"].get("seconds", (0.0,))[0] for m in locality},
                f"success ({' and '.join(p for p in parts[:2])})",
                f"locality ({parts[2]})",
                name,
            ),
            "Success is the harmonic mean of the first two parts of S, locality the third one; along a thin line S is "
            "the same. The larger a mark, the longer it takes to teach a record.",
        )
        if refused := refusals(own):
            yield paragraph("Records that a method could not teach; they count as the model answers without them:")
            yield table(["method", "record", "why"], refused)
        if untaught := refusals(own, "untaught"):
            yield paragraph("Records of which a method left something out:")
            yield table(["method", "record", "what"], untaught)
        for words in own["missing"]:
            yield paragraph(f"{words}.")


def summary_tables(found: dict[str, Any]) -> Iterator[Html]:
    """A suite's parts of S, S and shares of a reader's figures; and what each method costs. One table would be wider
    than a page."""
    methods = found["methods"]
    for names in (["S", *found["parts_of_s"], *found["shares"]], COSTS):
        if names is COSTS:
            yield paragraph("What each method does to ordinary text, and what it costs:")
        present = [n for n in names if any(n in own["figures"] for own in methods.values())]
        lines = [[m, *(shown(n, own["figures"].get(n)) for n in present)] for m, own in methods.items()]
        yield table(["method", *(HEADS.get(n, n) for n in present)], lines)
