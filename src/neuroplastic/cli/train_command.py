"""Commands that train."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import tyro
from tyro.conf import UseAppendAction

from ..console import Terminal
from ..errors import NPTError
from ..training.settings import INJECTOR_LOOP, InjectionSettings, LoopSettings, Variety
from .common import Json, WorkspaceArg, app, open_workspace, show_result

Loop = tyro.conf.OmitArgPrefixes[LoopSettings]
Learning = tyro.conf.OmitArgPrefixes[InjectionSettings]
Lessons = tyro.conf.OmitArgPrefixes[Variety]


@app.command
def train_injector(
    workspace: WorkspaceArg,
    *,
    data: UseAppendAction[tuple[Path, ...]],
    without: UseAppendAction[tuple[Path, ...]] = (),
    text: Path | None = None,
    held_out: int = 100,
    examples: int = 512,
    start: Path | None = None,
    width: int = 256,
    max_length: int = 64,
    reads: Literal["residual", "attention"] = "residual",
    resume: bool = False,
    loop: Loop = INJECTOR_LOOP,
    learning: Learning = InjectionSettings(),  # noqa: B008
    variety: Lessons = Variety(),  # noqa: B008
    json: Json = False,
) -> int:
    """Train an injector for the workspace's model: then one forward pass turns a statement into an edit.

    Facts are injected and asked later, in other words and without context, as single edits and in joint batches of
    hundreds; the model itself is frozen. Checkpoints and a log are in WORKSPACE/training/injector; an interrupted run
    continues with --resume. Afterwards `npt inject` uses the injector. Two hours on two cores make a good one for a
    model of 135M.

    Args:
        workspace: The workspace.
        data: File of facts; may be repeated. A .json list of CounterFact records (full or flat) or zsRE records; or
            .jsonl with question and answer (or statement), and optionally wordings, neighbours, subject.
        without: File whose subjects are left out, to measure with; may be repeated.
        text: File of ordinary text that should stay as it is, beside what the model writes itself.
        held_out: Number of facts that are not trained on but measured.
        examples: Number of facts whose values are searched for first, a second each; a new injector starts from a fit
            to them.
        start: Injector file whose training is continued.
        width: Width of the network, of a new one.
        max_length: Longest statement, in tokens, of a new one.
        reads: What a new one reads of a statement: the residual stream, or what attention gives.
        resume: Continue the training that the workspace holds.
        loop: How long and how fast it is trained.
        learning: What it is trained on.
        variety: How its lessons are drawn.
    """
    from ..training.launch import process
    from ..training.train_injector import train_injector as train
    from ..workspace.settings import read_settings

    read_settings(workspace)
    for path in (*data, *without, *(p for p in (text, start) if p is not None)):
        if not path.is_file():
            raise NPTError(f"there is no file {str(path)!r}")
    ws = open_workspace(workspace)
    card = train(
        ws,
        data,
        without=without,
        text=text,
        held_out=held_out,
        examples=examples,
        start=start,
        loop=loop,
        injection=learning,
        variety=variety,
        width=width,
        max_length=max_length,
        reads=reads,
        resume=resume,
    )
    return show_result(json, card, _show) if process().is_main_process else 0  # of several, one speaks


def _show(console: Terminal, card: dict[str, Any]) -> None:
    console.print(f"trained on {card['facts']} facts in {card['hours']:.2f} hours")
    for name, found in card["measured"].items():
        if isinstance(found, dict):
            answers = f"answers {found['told']:.0%} of its facts in their own words, {found['asked']:.0%} in others"
            near = f"; KL on neighbours {found['near_kl']:.3f} nats" if "near_kl" in found else ""
            console.print(f"{name}: {answers}{near}")
