"""Whatever a user, a model or a file says is shown as it is: no table and no line takes it for markup or an escape."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable
from typing import Any

import pytest

from neuroplastic.cli import demo, printing
from neuroplastic.cli import train_command as train
from neuroplastic.console import Terminal, printable

ODD = "[bold]b[/bold] [/] [link=x]y :smile: \x1b[31mr\x9b2J \udcff"
SHOWN = r"[bold]b[/bold] [/] [link=x]y :smile: \x1b[31mr\x9b2J \udcff"
EVEN = "nothing-odd"

PLASTICITY: dict[str, Any] = {
    **dict.fromkeys(("preset", "modulation", "mlp_input", "attention_residual", "key", "input", "heads"), ODD),
    **{"rank_weights": ODD, "top_ranks": 2, "gate": ODD, "gate_threshold": 0.5, "coarse_rank": 1, "coarse_group": 2},
    **{"generator": "low_rank", "np_rank": 4, "num_ranks": 2, "layer_overrides": [ODD]},
}
MEASURED = {"perplexity_ratio": 1.0, "kl": 0.1, "top1_agreement": 1.0, "max_logit_error": 0.0}
EDIT = {
    **dict.fromkeys(("name", "answer", "question", "subject", "method", "statement", "created", "state"), ODD),
    **{"layers": [1], "seconds": 1.0, "holds": False, "perplexity_drift": 0.1, "contradicts": [ODD], "alpha": 1.0},
    **{f"{what}_probability_{when}": 0.5 for what in ("answer", "elsewhere") for when in ("before", "after")},
    **{"relative_norm": {ODD: {ODD: 0.1}}, "norm": 1.0, "gated": False},
}
FIGURES = {"S": (1.0, 0.5, 1.0), ODD: (1.0, 0.5, 1.0), "kl": (0.1,)}
UNABLE = {"refused": {ODD: ODD}, "untaught": {ODD: ODD}}
STEP = {
    **{"method": ODD, "edits": 2, "asked": 1, "figures": FIGURES, "perplexity": 0.1, "kl": 0.1, "first": False},
    **{"perplexity_text": None, "kl_text": 0.1, **UNABLE},
}
RESULTS: dict[str, Any] = {
    "info": {
        **{"path": ODD, "plasticity": PLASTICITY, "num_layers": 1, "plastic_layers": [0], "architecture": ODD},
        **{"base": {"spec": ODD, "dtype": ODD, "sha256": "0" * 64}, "parameters": 1, "generator_parameters": 1},
        **{"edits": [ODD], "undone": [ODD]},
    },
    "fidelity": {
        **{**MEASURED, "tokens": 1, "perplexity_base": 1.0, "perplexity": 1.0, "per_layer_error": {ODD: 0.1}},
        **{"by_position": {ODD: {**MEASURED, "tokens": 1}}, "by_layer": {ODD: {**MEASURED, "tokens": 1}}},
        "usage": {ODD: {"components": [1.0], "gate": [1.0], "modulated": 0.1}},
    },
    "sweep": {
        "rows": [
            {**MEASURED, "preset": ODD, "generator": ODD, "np_rank": 1, "parameters": 1, "refused": None},
            {"preset": ODD, "generator": ODD, "np_rank": None, "parameters": 1, "refused": ODD},
        ]
    },
    "calibration": {
        **{"ranks": {ODD: 1}, "explained": {ODD: 0.5}, "perplexity": 1.0, "perplexity_base": 1.0, "seconds": 1.0},
        **{"generator_parameters": 1, "tokens": 1, "out_of_reach": [ODD]},
    },
    "training": {"before": {ODD: 1.0}, "after": {ODD: 1.0, "sampled": {ODD: ODD}}, "folder": ODD},
    "edit": EDIT,
    "many": {"edits": [EDIT]},
    "one_edit": EDIT,
    "verification": {
        **{"base_unchanged": True, "weights_exact": False, "refused": {ODD: ODD}},
        "facts": [{"name": ODD, "answer": ODD, "holds": True, "answer_probability": 0.5}],
    },
    "export": {
        **{"path": ODD, "format": ODD, "edits": [ODD], "rank": 1, "dropped_energy": 0.1, "max_logit_error": 0.1},
        **{"top1_agreement": 1.0, "seconds": 1.0},
        "ungated": {f"{what}_{form}": 0.5 for what in ("holding", "perplexity") for form in ("gated", "ungated")},
    },
    "edits": {"edits": [{**EDIT, "created": "2026-01-01T00:00"}], "undone": []},
    "comparison": {"prompt": ODD, "edited": ODD, "unedited": ODD, "tracked": {ODD: {"unedited": 0.1, "edited": 0.2}}},
    "probabilities": {ODD: (0.1, 0.2)},
    "tasks": {"tasks": {ODD: {ODD: 0.5, f"{ODD}_stderr": 0.1}}},
    "evaluation": {
        **{"ceiling": 0.5, "records": [], "missing": [ODD]},
        "steps": [STEP, {**STEP, "first": True}],
    },
    "comparisons": {
        "suites": {
            ODD: {
                **{"records": [], "missing": [ODD], "parts_of_s": [ODD], "shares": [ODD]},
                "methods": {ODD: {"figures": FIGURES, **UNABLE}},
            },
        },
    },
    "refusals": {"methods": {ODD: UNABLE}},
}
PRINTERS = {name: f for name, f in inspect.getmembers(printing, inspect.isfunction) if not name.startswith("_")}


def printed(show: Callable[[Terminal], object]) -> str:
    """What a terminal of many columns and no colours is sent."""
    file = io.StringIO()
    show(Terminal(file=file, width=5000, force_terminal=True, color_system=None))
    return file.getvalue()


def even(data: Any) -> Any:
    """The same result of which nothing is odd."""
    if isinstance(data, dict):
        return {even(k): even(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(map(even, data))
    return data.replace(ODD, EVEN) if isinstance(data, str) else data


def printers() -> list[str]:
    return sorted(name for name, f in PRINTERS.items() if f.__module__ == printing.__name__)


@pytest.mark.parametrize("name", printers())
def test_a_printer_shows_text_as_it_is(name: str) -> None:
    more: tuple[Any, ...] = (("S", ODD), ()) if name == "evaluation" else ()
    odd = printed(lambda console: PRINTERS[name](console, RESULTS[name], *more))
    plain = printed(lambda console: PRINTERS[name](console, even(RESULTS[name]), *even(more)))
    assert odd.count(SHOWN) == plain.count(EVEN) > 0
    assert printable(odd) == odd


def test_no_printer_is_without_a_sample() -> None:
    assert printers() == sorted(RESULTS)


def test_the_demo_and_the_training_of_an_injector_show_text_as_it_is() -> None:
    card = {"facts": 1, "hours": 0.1, "measured": {ODD: {"told": 0.5, "asked": 0.5, "near_kl": 0.1}}}
    assert f"{SHOWN}: answers" in printed(lambda console: train._show(console, card))
    answers = [{"what": ODD, "prompt": ODD, "before": ODD, "after": ODD}]
    assert printed(lambda console: demo._table(console, answers)).count(SHOWN) == 4
    assert SHOWN in printed(lambda console: demo._title(console, ODD))


def test_styles_are_still_sent() -> None:
    file = io.StringIO()
    console = Terminal(file=file, force_terminal=True, color_system="standard")
    printing.verification(console, RESULTS["verification"])
    assert "\x1b[32myes\x1b[0m the base model is unchanged" in file.getvalue()
