"""`train`: the generators of a workspace distilled from its model, and saved in it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..calibration.calibrate import calibration_rows, fit_generators
from ..calibration.calibrate_options import CalibrateOptions
from ..calibration.fit import check_calibratable
from ..config import PlasticityConfig, parse_layers
from ..console import note, progress
from ..errors import NPTError
from ..evaluation.fidelity import measure_fidelity
from ..files import file_hash, folder_hash, read_json, write_json
from ..structure import decoder_layers
from ..surgery import mode
from ..text.self_text import write_text
from ..text.tokens import context_length, decode_after, encode, read_texts, start_token
from .checkpoint import check_folder
from .curves import REPORT, write_report
from .distill import Distillation
from .launch import launched, process
from .loop import only_trainable, read_log, run
from .packing import Packed, Source, Streamed, from_dataset, from_texts
from .recipe import STAGES, TrainSettings, stage_at

if TYPE_CHECKING:
    from ..workspace.workspace import Workspace

FOLDER = Path("training") / "generators"
BEFORE = "before.json"
"""What was measured before the first step."""
PROMPTS = ("The capital of France is", "Once upon a time", "To make bread, you need")
"""Continued at every measurement."""
SAMPLED = 24
"""Tokens that each is continued by."""


def train(workspace: Workspace, settings: TrainSettings | None = None, resume: bool = False) -> dict[str, Any]:
    """Trains the low-rank generators of a workspace, saves them in it, and returns what was measured before and after.

    Log, checkpoints and report.html are in training/generators of the workspace. Its edits are taken out of the weights
    meanwhile. Raises NPTError for bad input, before anything is done, and CheckFailed if training broke down; the
    workspace then keeps the generators that it had.
    """
    settings = launched(settings or TrainSettings())
    config = _checked(workspace, settings)
    folder = workspace.path / FOLDER
    source, digest = read_data(workspace, settings)
    described = {"base": workspace.base.sha256, "plasticity": config.to_dict(), "data_hash": digest}
    begun = check_folder(folder, {**described, **asdict(settings)}, resume)
    model = workspace.model
    _to_device(workspace)
    held_out = workspace.held_out[: max(1, settings.eval_tokens // workspace.held_out.shape[1])]
    with workspace.engine.only(()):
        try:
            if settings.init != "workspace":
                workspace.reconfigure(config)
            if settings.init == "calibrated" and not begun:
                fit_generators(model, calibration_rows(workspace, None, CalibrateOptions().tokens))
            folder.mkdir(parents=True, exist_ok=True)
            with only_trainable(model, module := Distillation(model, settings)):
                module.measure_power(held_out)
                task = Distilling(workspace, module, source, held_out)
                if not begun:
                    write_json(folder / BEFORE, task.evaluate(0))
                measured = run(task, folder, settings, described, resume)
        except BaseException:
            workspace.reload_generators()
            raise
    if process().is_main_process:  # of several, one writes
        workspace.save_generators()
        write_report(folder, read_log(folder), asdict(settings), "Training of generators")
        note(f"npt: {settings.steps} steps; the generators are in {workspace.path}, the curves in {folder / REPORT}")
    return {"before": read_json(folder / BEFORE), "after": measured, "folder": str(folder)}


class Distilling:
    """Distillation as a task of the training loop."""

    name = "generators"

    def __init__(self, workspace: Workspace, module: Distillation, source: Source, held_out: Tensor):
        self.workspace, self.distillation, self.source, self.held_out = workspace, module, source, held_out
        self._read: tuple[int, Packed] | None = None

    @property
    def module(self) -> nn.Module:
        return self.distillation

    def losses(self, module: nn.Module, step: int, part: int, parts: int) -> dict[str, Tensor]:
        settings = self.distillation.settings
        rows = self._rows(step, parts)
        # a share counts `parts` times, since the loop takes the mean over shares
        weight = rows.valid / rows.valid.sum() * parts
        share = slice(part * settings.batch_size, (part + 1) * settings.batch_size)
        stage, blend = stage_at(step, settings.steps, settings.shares)
        found: dict[str, Tensor] = module(rows[share], weight[share], blend)
        tokens = rows.valid.sum() / parts
        where = {"stage": tokens.new_tensor(STAGES.index(stage)), "blend": tokens.new_tensor(blend)}
        return {**found, **where, "tokens": tokens}

    def _rows(self, step: int, parts: int) -> Packed:
        if self._read is None or self._read[0] != step:
            count = self.distillation.settings.batch_size * parts
            self._read = step, self.source.rows(step * count, count).to(self.held_out.device)
        return self._read[1]

    def after(self, step: int) -> None:
        pass

    def evaluate(self, step: int) -> dict[str, Any]:
        """Perplexity and KL against the base on held-out text, and sampled text after fixed prompts."""
        model, tokenizer = self.workspace.model, self.workspace.tokenizer
        with torch.no_grad():
            found = measure_fidelity(model, self.held_out)
            sampled = {}
            with mode(model, "dynamic"):
                for prompt in PROMPTS:
                    opening = [start_token(tokenizer), *encode(tokenizer, prompt)]
                    length = min(len(opening) + SAMPLED, context_length(model))
                    ids = write_text(model, torch.tensor([opening], device=model.device), length)
                    new = ids[0, len(opening) :].tolist()
                    sampled[prompt] = decode_after(tokenizer, opening, new, skip_special_tokens=False)
        return {
            "perplexity": found.perplexity,
            "perplexity_base": found.perplexity_base,
            "kl": found.kl,
            "top1_agreement": found.top1_agreement,
            "sampled": sampled,
        }

    def kept(self) -> dict[str, Tensor]:
        power = {f"power.{i}": p for i, p in self.distillation.power.items()}
        return {**power, **{f"data.{n}": t for n, t in self.source.kept().items()}}

    def restore(self, kept: dict[str, Tensor]) -> None:
        self.distillation.power = {i: kept[f"power.{i}"].to(p) for i, p in self.distillation.power.items()}
        self.source.restore({n.removeprefix("data."): t for n, t in kept.items() if n.startswith("data.")})


def read_data(workspace: Workspace, settings: TrainSettings) -> tuple[Source, str]:
    """Where rows come from, and a name for what they are: a resumed training must read the same. Raises NPTError."""
    tokenizer, length = workspace.tokenizer, settings.max_length
    if length > (room := context_length(workspace.model)):
        raise NPTError(f"max_length {length} is above the model's context of {room} tokens")
    start = start_token(tokenizer)
    if settings.data is None:
        rows = calibration_rows(workspace, None, 2**62)
        return from_texts(rows[:, 1:].tolist(), start, length, settings.seed), "self-written"
    path = Path(settings.data)
    if path.is_file():
        texts = (encode(tokenizer, text) for text in read_texts(path))
        return from_texts(texts, start, length, settings.seed), file_hash(path)
    if not path.is_dir() and (path.suffix in (".txt", ".jsonl", ".json") or path.is_absolute()):
        raise NPTError(f"there is no file {settings.data!r}")
    source = Streamed(from_dataset(settings.data), lambda t: encode(tokenizer, t), start, length)
    source.rows(0, 1)  # what cannot be read is refused now
    if not path.is_dir():
        return source, settings.data
    with progress(f"hashing the files in {path}") as step:
        return source, folder_hash(path, step)


def _checked(workspace: Workspace, settings: TrainSettings) -> PlasticityConfig:
    """The configuration to train. Raises NPTError if it cannot be."""
    if workspace.model.dtype == torch.float16:
        raise NPTError(
            "generators cannot be trained in float16, in which the squares of their gradients vanish; make the "
            "workspace with --dtype bfloat16 or float32"
        )
    given = {f: getattr(settings, f) for f in ("layers", "np_rank", "num_ranks") if getattr(settings, f) is not None}
    before = workspace.config
    if settings.init == "workspace" and (given or before.generator == "analytic"):
        asked = ", ".join(given) or "analytic generators, which have no parameters"
        raise NPTError(
            f"init='workspace' continues from the generators that the workspace holds, not with other {asked}"
        )
    if before.generator == "analytic":
        given["input"] = "effect"
    if "np_rank" in given:
        before = before.with_rank(given["np_rank"])
    config = replace(before, generator="low_rank", seed=settings.seed, **given)
    width = workspace.model.get_input_embeddings().embedding_dim
    indices = parse_layers(config.layers, len(decoder_layers(workspace.model)))
    if settings.init == "calibrated":
        check_calibratable(config)
    if (largest := max(config.at(i).np_rank for i in indices)) > width:
        raise NPTError(f"np_rank {largest} is above the model's width {width}")
    return config


def _to_device(workspace: Workspace) -> None:
    """Onto the device that Accelerate gives this process."""
    workspace.model.to(process().device)
