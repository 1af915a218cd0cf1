"""Commands about the plastic model: make it, look at it, ask it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import OmitArgPrefixes, UseAppendAction

from ..config import PlasticityConfig
from ..console import note, status
from ..errors import NPTError
from . import printing
from .common import (
    Json,
    ModelArg,
    PromptArg,
    WorkspaceArg,
    app,
    open_workspace,
    show_result,
)

if TYPE_CHECKING:
    pass


@app.command
def demo(*, json: Json = False) -> int:
    """Convert a real model, check that it is still itself, teach it a fact, ask, and take it back.

    Fetches a 135M model once (93 MB). Every number shown is measured in this run.
    """
    from ..demo import run_demo

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
        from ..workspace import Workspace

        ws = Workspace.create(workspace, model, plasticity, dtype)
    return show_result(json, ws.info(), printing.info)


@app.command
def info(workspace: WorkspaceArg, *, json: Json = False) -> int:
    """What a workspace holds: base model, plastic layers, generator, edits."""
    return show_result(json, open_workspace(workspace).info(), printing.info)


@app.command
def fidelity(
    workspace: WorkspaceArg,
    *,
    data: Path | None = None,
    max_tokens: int = 4096,
    max_logit_error: float | None = None,
    json: Json = False,
) -> int:
    """Measure how close dynamic mode is to the pretrained model, without edits.

    Args:
        workspace: The workspace.
        data: Text file (paragraphs) or .jsonl with a text field. Default: text that the model wrote itself, kept
            apart from what statistics are made from.
        max_tokens: At most about this many tokens.
        max_logit_error: Exit with 1 where the largest logit difference is above this.
    """
    if max_tokens < 1:
        raise NPTError(f"max_tokens must be at least 1, not {max_tokens}")
    result = open_workspace(workspace).fidelity(data, max_tokens)
    show_result(json, result.to_dict(), printing.fidelity)
    if max_logit_error is not None and not result.max_logit_error <= max_logit_error:
        note(f"check failed: max_logit_error {result.max_logit_error:.3g} is above {max_logit_error:.3g}")
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
        prompt: The beginning of a sentence; the model goes on from there.
        mode: dynamic lets attention modulate the MLPs; standard is the pretrained forward pass.
        max_new_tokens: Length of the answer.
    """
    answer = open_workspace(workspace).ask(prompt, mode, max_new_tokens)
    result = {"prompt": prompt, "answer": answer, "mode": mode}
    return show_result(
        json,
        result,
        lambda console, r: console.print(r["prompt"] + r["answer"], markup=False, highlight=False),
    )


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
        track: A word whose next-token probability is shown too; may be repeated.
        max_new_tokens: Length of the answers.
    """
    found = open_workspace(workspace).compare(prompt, max_new_tokens, track)
    tracked = {word: {"edited": p, "unedited": q} for word, (p, q) in found.tracked.items()}
    return show_result(json, {**vars(found), "tracked": tracked}, printing.comparison)


@app.command
def shell(workspace: WorkspaceArg) -> int:
    """Ask, inject, compare and calculate with modulations on one loaded workspace; `help` lists the commands.

    Reads standard input where that is no terminal, and then stops at the first command that fails, with its status.
    """
    from ..shell import Shell

    return Shell(open_workspace(workspace)).run()
