"""What `npt fidelity --report` leaves: fidelity.json, fidelity.csv and report.html."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..evaluation import plots
from ..files import whole_file, write_json
from .page import Html, figure, heading, page, paragraph, table

AGREEMENT = ("tokens", "perplexity_ratio", "kl", "top1_agreement")
SWEPT = ("preset", "generator", "np_rank", "parameters", "perplexity_ratio", "kl", "top1_agreement", "max_logit_error")


def write_fidelity(folder: Path, found: dict[str, Any], about: str) -> None:
    """`found` is what `--json` prints: a fidelity, or the `rows` of a sweep."""
    head, rows = _table(found)
    out = io.StringIO()
    csv.writer(out).writerows([head, *rows])
    html = page("Fidelity: dynamic mode against the base", [paragraph(about), *_blocks(found)])
    write_json(folder / "fidelity.json", found)
    for name, content in (("fidelity.csv", out.getvalue()), ("report.html", html)):
        with whole_file(folder / name) as path:
            path.write_text(content, encoding="utf-8")


def _table(found: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Of a sweep a line per variant; else one for all tokens, for each bucket of positions and for each layer."""
    if "rows" in found:
        return [*SWEPT, "refused"], [[row.get(k, "") for k in (*SWEPT, "refused")] for row in found["rows"]]
    places = [("all", "", found)]
    places += [(what, name, a) for what in ("by_position", "by_layer") for name, a in found[what].items()]
    return ["what", "which", *AGREEMENT], [[what, name, *(a[k] for k in AGREEMENT)] for what, name, a in places]


def _blocks(found: dict[str, Any]) -> Iterator[Html]:
    if "rows" in found:
        yield heading("By preset and rank")
        yield table(
            [n.replace("_", " ") for n in (*SWEPT, "refused")],
            ([_number(row.get(k)) for k in (*SWEPT, "refused")] for row in found["rows"]),
        )
        return
    names = (*AGREEMENT, "perplexity_base", "perplexity", "max_logit_error")
    yield table(["measure", "value"], ([n.replace("_", " "), _number(found[n])] for n in names))
    yield heading("By position")
    yield from _agreements(found["by_position"], "tokens before the predicted one")
    yield heading("By layer, all of them dynamic")
    errors = found["per_layer_error"]
    drawn = plots.lines({"error": list(errors.values())}, list(errors), "layer", "relative error")
    yield figure(drawn, "|H - H_base| / |H_base| of the residual stream after each layer, without the first position.")
    if found["by_layer"]:
        yield heading("By layer, each alone dynamic")
        yield from _agreements(found["by_layer"], "layer")


def _agreements(found: dict[str, dict[str, float]], label: str) -> Iterator[Html]:
    yield figure(plots.lines({"KL": [a["kl"] for a in found.values()]}, list(found), label, "KL, nats per token"), "")
    yield table(
        [label, *(n.replace("_", " ") for n in AGREEMENT)],
        ([Html(name), *(_number(a[k]) for k in AGREEMENT)] for name, a in found.items()),
    )


def _number(value: object) -> object:
    return "" if value is None else Html(f"{value:.4g}") if isinstance(value, float) else value
