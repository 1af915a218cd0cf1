"""From files of facts to an injector in a workspace: what `npt train-injector` does."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..console import note
from ..editing.injector import INJECTOR_FILE, Injector, InjectorConfig, Reads
from ..errors import NPTError
from ..files import file_hash
from ..surgery import mode
from ..text.tokens import context_length, encode, read_texts
from .checkpoint import check_folder
from .closed_form import FEWEST, find_examples, fit_values, suitable
from .curves import write_report
from .injection import Injection
from .launch import launched, process
from .lessons import Lessons, Topic, about, fits, read_topics, sentences_of
from .loop import only_trainable, read_log, run
from .settings import INJECTOR_LOOP, InjectionSettings, LoopSettings, Variety

if TYPE_CHECKING:
    from ..editing.engine import EditableModel
    from ..workspace.workspace import Workspace

LONGEST_TEXT = 64
"""Tokens of an ordinary text that are kept."""


def train_injector(
    ws: Workspace,
    data: Sequence[str | Path],
    *,
    without: Sequence[str | Path] = (),
    text: str | Path | None = None,
    held_out: int = 100,
    examples: int = 512,
    start: str | Path | None = None,
    loop: LoopSettings | None = None,
    injection: InjectionSettings | None = None,
    variety: Variety | None = None,
    width: int = 256,
    max_length: int = 64,
    reads: Reads = "residual",
    resume: bool = False,
) -> dict[str, Any]:
    """Trains an injector for the workspace's base model and puts it into the workspace; returns its card.

    `data` are files of facts (see `read_topics`); facts about the subjects in the files `without` are left out, so
    that these can serve to measure it; `held_out` further ones, drawn at random, are measured on the way. `text` is a
    file of ordinary text to hold in place beside what the model writes itself. Training begins with a linear path that
    is fitted in closed form to `examples` facts (none for 0), or with the injector in the file `start`. `width`,
    `max_length` and `reads` are of a new one. Checkpoints and log are in training/injector of the workspace. Its edits
    are taken out of the weights meanwhile.

    Raises NPTError for bad input, before anything is done, and CheckFailed if training broke down.
    """
    loop = launched(loop or INJECTOR_LOOP)
    injection, variety = injection or InjectionSettings(), variety or Variety()
    if examples < 0:
        raise NPTError(f"examples must not be negative, not {examples}")
    if start is not None:
        injector = Injector.load(Path(start), ws.base.sha256)[0]
        max_length = injector.config.max_length
    if max_length > (room := context_length(ws.model)):
        raise NPTError(f"max_length {max_length} is above the model's context of {room} tokens")
    usable = _usable(ws, [Path(d) for d in data], [Path(w) for w in without], max_length)
    topics, held = _divided(usable, held_out, loop.seed)
    together = injection.batch_size * loop.grad_accum * process().num_processes
    if (subjects := len({about(t) for t in topics})) < 2 * together:
        raise NPTError(
            f"{len(topics)} facts about {subjects} subjects are too few to train on in batches of {together}; give "
            "more, fewer --held-out, or a smaller --batch-size"
        )
    texts = read_texts(Path(text)) if text is not None else []
    engine = ws.engine
    ws.model.to(process().device)
    own = engine.text[0]
    torch.manual_seed(loop.seed)
    if start is None:
        with engine.only(()), mode(ws.model, "standard"):
            config = InjectorConfig.fitting(ws.model, own[:16], reads, width=width, max_length=max_length)
        injector = Injector(config)
    tokens = [encode(ws.tokenizer, t)[:LONGEST_TEXT] for t in texts] + own[:, 1 : 1 + LONGEST_TEXT].tolist()
    tokens = [t for t in tokens if len(t) >= 8]
    lessons = Lessons(topics, ws.tokenizer, sentences_of(texts), variety, loop.seed, max_length)
    described = {
        "base": ws.base.sha256,
        "data": {Path(d).name: file_hash(Path(d)) for d in data},
        "without": {Path(w).name: file_hash(Path(w)) for w in without},
        "text": None if text is None else file_hash(Path(text)),
        "start": None if start is None else file_hash(Path(start)),
        "facts": len(topics),
        "held_out": len(held),
        "examples": 0 if start is not None else examples,
        "injection": asdict(injection),
        "variety": asdict(variety),
        "shape": asdict(injector.config),
    }
    folder = ws.path / "training" / "injector"
    begun = check_folder(folder, {**described, **asdict(loop)}, resume)
    folder.mkdir(parents=True, exist_ok=True)
    with engine.only(()), only_trainable(ws.model, injector):
        if start is None and examples and not begun:
            _fit(engine, injector, suitable(topics)[:examples], folder / "examples")
        injector.to(ws.model.device).train()
        task = Injection(engine, injector, lessons, held, tokens, injection, loop.seed)
        began = time.time()
        measured = run(task, folder, loop, described, resume)
    process().wait_for_everyone()
    log = read_log(folder)
    seconds = sum(entry["seconds"] for entry in log)
    card = {**described, "loop": asdict(loop), "measured": measured, "hours": round(seconds / 3600, 3)}
    if process().is_main_process:  # of several, one writes
        write_report(folder, log, {**described, **asdict(loop)}, "Training of an injector")
        injector.eval().save(ws.path / INJECTOR_FILE, ws.base.sha256, card)
        note(f"npt: {loop.steps} steps, {time.time() - began:.0f} s; the injector is in {ws.path / INJECTOR_FILE}")
    process().wait_for_everyone()
    ws.engine.forget_injector()
    return card


def _fit(engine: EditableModel, injector: Injector, topics: Sequence[Topic], folder: Path) -> None:
    """The closed form that training starts from, if there are facts that it can be made from."""
    if len(topics) < FEWEST:
        note(
            f"npt: training starts from noise: {len(topics)} facts have two wordings that name their subject, and a "
            f"fit takes {FEWEST}"
        )
        return
    with process().main_process_first():  # the others then find what it has searched for
        found = find_examples(engine, injector, topics, folder)
    fitted = fit_values(injector, found)
    note(f"npt: fitted to {len(found.x)} facts: cosine {fitted['cosine']:.2f} on a tenth of them")


def _divided(topics: Sequence[Topic], held_out: int, seed: int) -> tuple[list[Topic], list[Topic]]:
    """Topics to train on, and those held out, whose subjects the first do not have."""
    if held_out < 0:
        raise NPTError(f"held_out must not be negative, not {held_out}")
    shuffled = list(topics)
    random.Random(seed).shuffle(shuffled)
    held = shuffled[:held_out]
    subjects = {t.subject for t in held if t.subject is not None}
    return [t for t in shuffled[held_out:] if t.subject not in subjects], held


def _usable(ws: Workspace, data: Sequence[Path], without: Sequence[Path], longest: int) -> list[Topic]:
    """Those of the data whose subjects are in none of the files `without`, and that an injector can read."""
    if not data:
        raise NPTError("there is no file of facts to train on; give one with --data")
    excluded = {t.subject for path in without for t in read_topics(path)[0]}
    topics: list[Topic] = []
    for path in data:
        found, malformed = read_topics(path)
        for number, why in malformed.items():
            note(f"npt: entry {number} of {path.name} is left out: {why}")
        topics += [t for t in found if t.subject is None or t.subject not in excluded]
    short = [t for t in topics if fits(ws.tokenizer, t.wordings[0], t.answer, longest)]
    if left_out := len(topics) - len(short):
        note(f"npt: {left_out} facts are left out: they take more than {longest} tokens")
    return short
