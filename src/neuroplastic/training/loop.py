"""The loop that every training shares, on Accelerate: optimiser, schedule, clipping, log, checkpoints, resuming.

What is trained, and on which losses, is a Task. A step's data are a function of its number, so a training that is cut
off anywhere continues to the same bits as one that was not.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..console import note
from ..errors import CheckFailed, NPTError
from ..files import lines_of, read_text, whole_file
from .checkpoint import Progressed, check_folder, checkpoints, load_checkpoint, save_checkpoint
from .settings import LoopSettings
from .trackers import numbers, tracking

LOG = "log.jsonl"
TENSORBOARD = "tensorboard"
"""Where TensorBoard's files go, in the folder of the training; other trackers have places of their own."""
NOT_FINITE = 5
"""Steps in a row whose gradient is not finite, after which a training stops."""


class Task(Protocol):
    """What is trained."""

    name: str

    @property
    def module(self) -> nn.Module:
        """Its parameters are trained; everything else is frozen."""
        ...

    def losses(self, module: nn.Module, step: int, part: int, parts: int) -> dict[str, Tensor]:
        """Of the share `part` of `parts` of a step's batch, through `module`, which may be wrapped: `loss`, which is
        minimised, and whatever else belongs into the log (scalars)."""
        ...

    def after(self, step: int) -> None:
        """Called when a step is done."""
        ...

    def evaluate(self, step: int) -> dict[str, Any]:
        """Measured on held-out data."""
        ...

    def kept(self) -> dict[str, Tensor]:
        """What the task itself must remember to continue from a checkpoint."""
        ...

    def restore(self, kept: dict[str, Tensor]) -> None:
        """Given what `kept` gave."""
        ...


def run(
    task: Task, folder: Path, settings: LoopSettings, described: Mapping[str, Any], resume: bool = False
) -> dict[str, Any]:
    """Trains to the end, in `folder`, and returns the last measurement. `described` are further settings that a resumed
    training must have in common with the one that began.

    Raises NPTError if the folder holds a training and `resume` is not asked for, or holds another one; CheckFailed
    if gradients stay infinite, with the last good checkpoint kept.
    """
    accelerator = _accelerator(settings, folder)
    described = json.loads(json.dumps({**described, **asdict(settings)}))
    check_folder(folder, described, resume)
    found = checkpoints(folder)
    torch.manual_seed(settings.seed)
    optimizer: Any = torch.optim.AdamW(task.module.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    progressed = Progressed(0, 0)
    if found:
        progressed, kept = load_checkpoint(found[-1], task.module, optimizer, described)
        task.restore(kept)
    if accelerator.is_main_process:
        _begin_log(folder / LOG, described, progressed.step)
    module, optimizer = accelerator.prepare(task.module, optimizer)
    parts = accelerator.num_processes * settings.grad_accum
    measured: dict[str, Any] = {}
    failed_in_a_row, skipped = 0, progressed.skipped
    visible = accelerator.is_main_process
    with (
        tracking(accelerator, f"npt-{task.name}", described),
        _bar(task.name, progressed.step, settings.steps, visible) as show,
    ):
        for step in range(progressed.step, settings.steps):
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(step)
            logged: dict[str, float] = {}
            for i in range(settings.grad_accum):
                part = accelerator.process_index * settings.grad_accum + i
                with accelerator.accumulate(module):
                    losses = task.losses(module, step, part, parts)
                    accelerator.backward(losses["loss"])
                    if accelerator.sync_gradients:
                        norm = float(accelerator.clip_grad_norm_(module.parameters(), settings.clip))
                        if math.isfinite(norm):
                            optimizer.step()
                        optimizer.zero_grad()
                values = accelerator.reduce(torch.stack([v.detach().float() for v in losses.values()]), "mean")
                for key, value in zip(losses, values.tolist(), strict=True):
                    logged[key] = logged.get(key, 0.0) + value / settings.grad_accum
            task.after(step)
            failed_in_a_row = 0 if math.isfinite(norm) else failed_in_a_row + 1
            skipped += not math.isfinite(norm)
            seconds = time.perf_counter() - began
            entry: dict[str, Any] = {
                "step": step,
                **logged,
                "gradient": norm,
                "lr": settings.rate(step),
                "seconds": seconds,
            }
            if "tokens" in logged:  # of one share
                entry["tokens_per_second"] = logged["tokens"] * parts / seconds
            done, last = step + 1, step + 1 == settings.steps
            if last or (settings.eval_every and done % settings.eval_every == 0):
                measured = task.evaluate(done)
                entry["measured"] = measured
            if accelerator.is_main_process:
                _log(folder / LOG, entry)
                accelerator.log(numbers(entry), step=step)
                if failed_in_a_row == 0 and (last or done % settings.save_every == 0):
                    bare = accelerator.unwrap_model(module)
                    save_checkpoint(folder, Progressed(done, skipped), bare, optimizer, task.kept(), described)
            if failed_in_a_row == NOT_FINITE:
                raise CheckFailed(
                    f"the gradient was not finite for {NOT_FINITE} steps in a row, up to step {step}; the last good "
                    f"checkpoint is kept in {folder} (a smaller --lr may help)"
                )
            show(done, logged.get("loss", math.nan))
    if not measured:  # it was interrupted after its last step
        measured = task.evaluate(settings.steps)
    if skipped:
        note(f"npt: {skipped} steps were skipped because their gradient was not finite")
    return measured


@contextmanager
def only_trainable(model: nn.Module, module: nn.Module) -> Iterator[None]:
    """While it lasts, gradients are made for the parameters of `module` alone."""
    before = {p: p.requires_grad for p in model.parameters()}
    model.requires_grad_(False)
    module.requires_grad_(True)
    try:
        yield
    finally:
        for p, flag in before.items():
            p.requires_grad_(flag)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """What a training has logged, a mapping per step."""
    lines = lines_of(read_text(folder / LOG))
    return [entry for entry in map(json.loads, filter(None, lines)) if "step" in entry]


def _accelerator(settings: LoopSettings, folder: Path) -> Any:
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin

    try:
        return Accelerator(
            mixed_precision=settings.precision,
            # a bare number would give way to one in the environment
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=settings.grad_accum),
            log_with=None if settings.track == "none" else settings.track,
            project_dir=folder / TENSORBOARD,
        )
    except (ValueError, ImportError) as e:
        raise NPTError(f"training cannot begin: {e}") from None


def _begin_log(path: Path, described: Mapping[str, Any], step: int) -> None:
    """A new log, or the old one up to `step`: what came after the checkpoint is done again."""
    lines = lines_of(read_text(path)) if step else []
    kept = [json.dumps({"settings": dict(described)})]
    for line in lines[1:]:
        try:
            if json.loads(line)["step"] < step:
                kept.append(line)
        except (ValueError, KeyError):  # cut off while it was written
            continue
    with whole_file(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _log(path: Path, entry: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as f:
        f.write(json.dumps(entry) + "\n")


def _bar(name: str, done: int, total: int, visible: bool) -> Any:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from ..console import stderr_console

    @contextmanager
    def bar() -> Any:
        console = stderr_console()
        if not (visible and console.is_terminal):
            if visible:
                note(f"training the {name}: {total - done} steps")
            yield lambda step, loss: None
            return
        text = TextColumn("{task.description} loss {task.fields[loss]:.3f}", markup=False)
        counter = TextColumn("{task.completed}/{task.total}")
        with Progress(text, BarColumn(), counter, TimeRemainingColumn(), console=console, transient=True) as shown:
            job = shown.add_task(f"training the {name}", total=total, completed=done, loss=math.nan)
            yield lambda step, loss: shown.update(job, completed=step, loss=loss)

    return bar()
