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

REPORT = "report.html"
CURVES = {
    "losses": ("direct", "fidelity", "regularisation"),
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


def write_report(folder: Path, log: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    """Curves of what was logged, what was measured on the way, and the settings, in one page."""
    try:
        need_matplotlib()
    except NPTError as e:
        note(f"npt: no {REPORT}: {e}")
        return
    blocks: list[Html] = [heading("Curves")]
    steps = [e["step"] for e in log]
    for title, names in CURVES.items():
        series = {n: [e[n] for e in log] for n in names if all(n in e for e in log)}
        if series:
            blocks.append(figure(curves(series, steps, "step", title), title))
    for head, title in PER_LAYER.items():
        logged = [n for n in log[-1] if n.startswith(f"{head}.")]
        if logged:
            drawn = {n.removeprefix(f"{head}."): [e.get(n, float("nan")) for e in log] for n in logged}
            blocks.append(figure(curves(drawn, steps, "step", title), title))
    measured = [(e["step"] + 1, e["measured"]) for e in log if "measured" in e]
    columns = [n for n, v in measured[0][1].items() if isinstance(v, float)] if measured else []
    blocks.append(heading("Measured on held-out text"))
    blocks.append(table(["step", *columns], [[str(at), *(f"{m[c]:.4g}" for c in columns)] for at, m in measured]))
    for prompt, written in (measured[-1][1].get("sampled", {}) if measured else {}).items():
        blocks.append(paragraph(f"{prompt} …{written}"))
    blocks += [heading("Settings"), table(["setting", "value"], [[k, str(v)] for k, v in settings.items()])]
    with whole_file(folder / REPORT) as temporary:
        temporary.write_text(page("Training of generators", blocks), encoding="utf-8")
