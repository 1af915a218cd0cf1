"""`report.html`: the curves of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..console import note
from ..errors import NPTError
from ..evaluation.page import Html, figure, heading, page, paragraph, table
from ..evaluation.plots import curves, need_matplotlib
from ..files import whole_file
from .trackers import flat

REPORT = "report.html"
CURVES = {
    "losses": ("direct", "fidelity", "regularisation"),
    "losses, in nats": ("answer", "key", "near", "text"),
    "edits in place": ("crowd",),
    "mean length of a value": ("norm",),
    "gradient and learning rate": ("gradient", "lr"),
    "share of its own hidden state that a layer is fed": ("blend",),
    "tokens per second": ("tokens_per_second",),
}
PER_LAYER = {
    "direct": "direct error, by layer",
    "norm": "norm of dW, by layer and site",
    "cosine": "cosine between v_a and the attention output, by layer",
    "rank": "directions that the code uses, by layer",
}


def write_report(folder: Path, log: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], title: str) -> None:
    """Curves of what was logged, what was measured on the way, and the settings, in one page under this title."""
    try:
        need_matplotlib()
    except NPTError as e:
        note(f"npt: no {REPORT}: {e}")
        return
    blocks: list[Html] = [heading("Curves")]
    steps = [e["step"] for e in log]
    for name, logged in CURVES.items():
        if drawn := {n: _column(log, n) for n in logged if any(n in e for e in log)}:
            blocks.append(figure(curves(drawn, steps, "step", name), name))
    for head, name in PER_LAYER.items():
        if drawn := {n.removeprefix(f"{head}."): _column(log, n) for n in log[-1] if n.startswith(f"{head}.")}:
            blocks.append(figure(curves(drawn, steps, "step", name), name))
    measured = [(e["step"] + 1, flat(e["measured"])) for e in log if "measured" in e]
    columns = [n for n, v in measured[0][1].items() if isinstance(v, float)] if measured else []
    blocks.append(heading("Measured on what was held out"))
    blocks.append(table(["step", *columns], [[str(at), *(f"{m[c]:.4g}" for c in columns)] for at, m in measured]))
    for prompt, written in measured[-1][1].items() if measured else ():
        if isinstance(written, str):
            blocks.append(paragraph(f"{prompt.removeprefix('sampled.')} …{written}"))
    blocks += [heading("Settings"), table(["setting", "value"], [[k, str(v)] for k, v in settings.items()])]
    with whole_file(folder / REPORT) as temporary:
        temporary.write_text(page(title, blocks), encoding="utf-8")


def _column(log: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """A gap if a step did not log it."""
    return [e.get(name, float("nan")) for e in log]
