"""Commands about the plastic model: make it, look at it, ask it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from tyro.conf import OmitArgPrefixes, UseAppendAction

from ..cli import printing
from ..config import PlasticityConfig
from ..console import note, status
from ..errors import NPTError
from ..text.spaces import without_trailing_spaces
from .common import Json, ModelArg, PromptArg, WorkspaceArg, app, open_workspace, show_result


@app.command
def demo(*, json: Json = False) -> int:
    """Convert a real model, check that it is still itself, teach it a fact, ask, and take it back.

    Fetches a 135M model once (93 MB). Every number shown is measured in this run.
    """
    from .demo import run_demo

    return run_demo(json)


@app.command
def convert(
    model: ModelArg,
    workspace: WorkspaceArg,
    *,
    plasticity: OmitArgPrefixes[PlasticityConfig],
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32",
    json: Json = False,
) -> int:
    """Make a plastic model: load MODEL, convert its layers, and write a new WORKSPACE folder.

    Args:
        model: smollm2-135m (bundled), a Hugging Face id, a model folder, or a .gguf file.
        workspace: Folder to create. It holds configuration, generator and edits, never the base weights.
        plasticity: How the layers become plastic.
        dtype: Dtype of the weights in memory.
    """
    with status(f"loading and converting {model}"):
        from ..workspace.workspace import Workspace

        ws = Workspace.create(workspace, model, plasticity, dtype)
    return show_result(json, ws.info(), printing.info)


@app.command
def info(workspace: WorkspaceArg, *, json: Json = False) -> int:
    """Show what a workspace holds: base model, plastic layers, generator, edits."""
    return show_result(json, open_workspace(workspace).info(), printing.info)


@app.command
def fidelity(
    workspace: WorkspaceArg,
    *,
    data: Path | None = None,
    max_tokens: int = 4096,
    max_logit_error: float | None = None,
    each_layer: bool = False,
    sweep: bool = False,
    ranks: tuple[int, ...] = (16, 64, 256),
    report: Path | None = None,
    json: Json = False,
) -> int:
    """Measure how close dynamic mode is to the pretrained model, without edits.

    Perplexity ratio, KL divergence and share of positions with the same likeliest token, overall and by position, and
    the error of the residual stream after every layer.

    Args:
        workspace: The workspace.
        data: Text file (paragraphs) or .jsonl with a text field. Default: text that the model wrote itself, kept
            apart from what statistics are made from.
        max_tokens: At most about this many tokens.
        max_logit_error: Exit with 1 if the largest logit difference is above this.
        each_layer: Also make every layer dynamic alone, which takes a pass over the text for each.
        sweep: Measure all presets on the workspace's base and layers, instead of its own preset, and print a table.
        ranks: Ranks of the calibrated low-rank generators that --sweep compares with the exact ones; none for the exact
            ones alone. Each preset takes a regression: some minutes if all layers of a model of 135M are plastic.
        report: Folder for report.html, fidelity.json and fidelity.csv.
    """
    from ..evaluation.fidelity_report import write_fidelity
    from ..evaluation.plots import need_matplotlib
    from ..evaluation.sweep import as_rows

    if max_tokens < 1:
        raise NPTError(f"max_tokens must be at least 1, not {max_tokens}")
    if sweep and (each_layer or max_logit_error is not None):
        raise NPTError("--sweep compares presets: --each-layer and --max-logit-error have no meaning with it")
    if report is not None:
        need_matplotlib()
    ws = open_workspace(workspace)
    if sweep:
        found: dict[str, Any] = {"rows": as_rows(ws.sweep(data, max_tokens, ranks))}
    else:
        found = ws.fidelity(data, max_tokens, each_layer).to_dict()
    if report is not None:
        on = "text that the model wrote itself" if data is None else data.name
        write_fidelity(report, found, f"Base model {ws.base.sha256[:16]}, layers {ws.config.layers}, on {on}.")
    show_result(json, found, printing.sweep if sweep else printing.fidelity)
    if max_logit_error is not None and not found["max_logit_error"] <= max_logit_error:
        note(f"check failed: max_logit_error {found['max_logit_error']:.3g} is above {max_logit_error:.3g}")
        return 1
    return 0


@app.command
def ask(
    workspace: WorkspaceArg,
    prompt: PromptArg,
    *,
    mode: Literal["dynamic", "standard"] = "dynamic",
    max_new_tokens: int = 32,
    json: Json = False,
) -> int:
    """Continue PROMPT greedily, with the active edits in the weights.

    Args:
        workspace: The workspace.
        prompt: The beginning of a sentence, which the model continues. Spaces at its end are left out, because the
            model's tokens for words begin with one.
        mode: dynamic lets attention modulate the MLPs; standard is the pretrained forward pass.
        max_new_tokens: Length of the answer.
    """
    answer = open_workspace(workspace).ask(prompt, mode, max_new_tokens)
    result = {"prompt": without_trailing_spaces(prompt), "answer": answer, "mode": mode}
    return show_result(json, result, lambda console, r: console.print(r["prompt"] + r["answer"], soft_wrap=True))


@app.command
def compare(
    workspace: WorkspaceArg,
    prompt: PromptArg,
    *,
    track: UseAppendAction[tuple[str, ...]] = (),
    max_new_tokens: int = 32,
    json: Json = False,
) -> int:
    """Continue PROMPT with the active edits and without them, side by side.

    Args:
        workspace: The workspace.
        prompt: The beginning of a sentence.
        track: A word, or a name of several words, whose probability of coming next is shown too; may be repeated.
        max_new_tokens: Length of the answers.
    """
    found = open_workspace(workspace).compare(prompt, max_new_tokens, track)
    tracked = {word: {"edited": p, "unedited": q} for word, (p, q) in found.tracked.items()}
    return show_result(json, {**vars(found), "tracked": tracked}, printing.comparison)


@app.command
def shell(workspace: WorkspaceArg) -> int:
    """Ask, inject, compare and calculate with modulations on one loaded workspace; `help` lists the commands.

    Reads standard input if that is no terminal, and then stops at the first command that fails, with its status.
    """
    from .shell import Shell

    return Shell(open_workspace(workspace)).run()
