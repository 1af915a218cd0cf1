"""The whole story in one command, on a real model: it is still itself, learns a fact, is asked, and forgets it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import PlasticityConfig
from ..console import Terminal, as_json
from ..models import DEFAULT_MODEL
from .common import size_in_words

if TYPE_CHECKING:
    from ..workspace.workspace import Workspace

STATEMENT = "The Eiffel Tower is located in the city of Rome."
ANSWER = "Rome"
QUESTIONS = (
    ("the statement's own words", "The Eiffel Tower is located in the city of"),
    ("a paraphrase", "You can visit the Eiffel Tower in the city of"),
    ("a neighbouring fact", "The Louvre is located in the city of"),
    ("another fact", "The Golden Gate Bridge is located in the city of"),
)
ROWS_OF_TEXT = 8  # of held-out text, about a thousand tokens: perplexity in two seconds
LARGEST_LOGIT_ERROR = 1e-2  # far above rounding (1e-4), far below a wrong conversion (1 and more)


def run_demo(json: bool) -> int:
    """Runs it in a temporary workspace and prints to standard output (to standard error with `json`, where the
    figures become one JSON object). Returns 1 if a claim of the story did not hold, else 0."""
    console = Terminal(stderr=json)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="npt-demo-") as folder:
        figures = _story(console, Path(folder) / "workspace")
    figures["seconds"] = time.perf_counter() - began
    held = {
        "still itself": figures["fidelity"]["top1_agreement"] > 0.999
        and figures["fidelity"]["max_logit_error"] < LARGEST_LOGIT_ERROR,
        "fact learnt": ANSWER in figures["answers"][0]["after"],
        "taken back bit for bit": figures["bit_identical"],
    }
    figures["checks"] = held
    console.print()
    for claim, ok in held.items():
        console.print_styled(("yes", "green") if ok else ("NO ", "red"), f" {claim}")
    console.print(f"{figures['seconds']:.0f} seconds in all")
    if json:
        print(as_json(figures))
    return 0 if all(held.values()) else 1


def _story(console: Terminal, path: Path) -> dict[str, Any]:
    from ..text.perplexity import perplexity
    from ..workspace.workspace import Workspace

    _title(console, "1  A pretrained model becomes plastic")
    with _timed(console, f"load {DEFAULT_MODEL}, convert all layers (dual, analytic generator)"):
        ws = Workspace.create(path, DEFAULT_MODEL, PlasticityConfig(preset="dual", layers="all", generator="analytic"))
    known = ws.info()
    console.print(
        f"{known['architecture']}, {known['parameters'] / 1e6:.1f}M parameters, {known['num_layers']} layers; in each, "
        "attention now rewrites the gate and up weights of every token"
    )

    _title(console, "2  It is still itself")
    text = ws.held_out[:ROWS_OF_TEXT]
    with _timed(console, "compare dynamic mode with the pretrained forward pass"):
        fidelity = ws.fidelity(max_tokens=text[:, 1:].numel())
    console.print(
        f"{fidelity.tokens} tokens: perplexity {fidelity.perplexity:.4f} (base {fidelity.perplexity_base:.4f}), "
        f"largest logit difference {fidelity.max_logit_error:.1e}, same likeliest token {fidelity.top1_agreement:.2%}"
    )

    _title(console, "3  One fact goes into the weights")
    with _timed(console, "covariance of ordinary text in the layers that are edited (once per model, then cached)"):
        ws.engine.prepare()
    before, ppl_before = _answers(ws), perplexity(ws.model, text)
    console.print_styled("statement: ", (STATEMENT, "bold"))
    edit = ws.inject(STATEMENT, name="tower")
    report = edit.report
    console.print(f"injected by `{edit.method}` in {report['seconds']:.2f} s, into {len(edit.layers)} layers")
    console.print(size_in_words(edit.summary()))

    _title(console, "4  Asked without the fact in the prompt")
    after, ppl_after = _answers(ws), perplexity(ws.model, text)
    answers = [
        {"what": what, "prompt": prompt, "before": b, "after": a}
        for (what, prompt), b, a in zip(QUESTIONS, before, after, strict=True)
    ]
    _table(console, answers)
    console.print(f"perplexity on {fidelity.tokens} held-out tokens: {ppl_before:.2f} before, {ppl_after:.2f} after")

    _title(console, "5  Taken back")
    ws.undo("tower")
    undone = ws.weights_hash()
    console.print(f"sha256 of the weights: {undone[:16]}, of the pretrained model: {ws.base.sha256[:16]}")
    return {
        "model": known,
        "fidelity": fidelity.to_dict(),
        "edit": edit.summary(),
        "answers": answers,
        "perplexity_before": ppl_before,
        "perplexity_after": ppl_after,
        "bit_identical": undone == ws.base.sha256,
    }


def _answers(ws: Workspace) -> list[str]:
    return [ws.ask(prompt, max_new_tokens=8) for _, prompt in QUESTIONS]


def _table(console: Terminal, answers: Sequence[dict[str, str]]) -> None:
    from rich.table import Table

    table = Table("", "prompt", "before", "after")
    for a in answers:
        one_line = [" ".join(a[k].split()) for k in ("before", "after")]
        table.add_row(a["what"], a["prompt"] + " …", *one_line)
    console.print(table)


def _title(console: Terminal, text: str) -> None:
    console.print()
    console.rule(console.render_str(text, style="bold"), align="left")


@contextmanager
def _timed(console: Terminal, what: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    console.print_styled((f"{what}: {time.perf_counter() - began:.1f} s", "dim"))
