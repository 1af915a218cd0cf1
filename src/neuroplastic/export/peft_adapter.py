"""Edits as a LoRA adapter folder that PEFT, transformers, vLLM and SGLang load."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from .. import models
from ..config import SITES, Place
from ..editing.edit import Factors
from ..errors import NPTError
from ..files import refuse_occupied, whole_folder
from ..structure import PROJECTIONS
from .card import write_card
from .export_report import (
    RANKS,
    TOLERANCE,
    Clock,
    ExportReport,
    as_edit,
    at_uniform_rank,
    chosen_changes,
    combine,
    finish,
    projection_names,
    require_match,
    statement_logits,
    workspace_logits,
)

if TYPE_CHECKING:
    from ..workspace.workspace import Workspace

PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"


def peft(
    ws: Workspace,
    dest: str | Path,
    edits: Sequence[str] | None = None,
    rank: int | None = None,
    tolerance: float = TOLERANCE,
) -> ExportReport:
    """Writes the chosen active edits (all by default) as a LoRA adapter folder, loads it with PEFT and compares.

    One uniform rank from 8, 16, 32, 64, 128, the smallest that fits if None; lora_alpha equals it, and the scale
    is in B. Raises NPTError for bad input and CheckFailed, leaving nothing, if the loaded adapter answers otherwise.
    """
    from peft import LoraConfig, PeftModel, TaskType

    clock, dest = Clock(), Path(dest)
    refuse_occupied(dest)
    chosen, ungated = chosen_changes(ws, edits)
    factors, rank, dropped = at_uniform_rank(combine(chosen), rank, tolerance)
    filled = _with_partners(ws, factors, rank)
    sites = sorted({site for _, site in filled}, key=SITES.index)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        bias="none",
        target_modules=[PROJECTIONS[s] for s in sites],
        layers_to_transform=sorted({layer for layer, _ in filled}),
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=models.named_in_adapters(ws.base.spec),
        inference_mode=True,
    )
    names = {place: name for name, place in projection_names(ws).items()}
    tensors = {}
    for place, f in filled.items():
        tensors[f"{PREFIX}{names[place]}.lora_A.weight"] = f.A.float().contiguous().clone()
        tensors[f"{PREFIX}{names[place]}.lora_B.weight"] = f.B.float().contiguous().clone()
    statements = [e.statement for e in chosen]
    reference = workspace_logits(ws, [as_edit(ws, factors)], statements)
    with whole_folder(dest) as folder:
        config.save_pretrained(str(folder))
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", "npt_base": ws.base.sha256})
        check_servable(folder)
        base, _ = models.load_base(ws.base.spec, ws.base.dtype, "cpu")
        with (
            torch.device("cpu"),
            warnings.catch_warnings(),
        ):  # PEFT still asks transformers for names that these deprecate
            warnings.simplefilter("ignore", FutureWarning)
            loaded = PeftModel.from_pretrained(base, str(folder)).eval()
        written = statement_logits(loaded, ws.tokenizer, statements)
        error, agreement = require_match("peft", written, reference, ws.base.dtype)
        taken = [e.name for e in chosen]
        report = ExportReport("peft", str(dest), taken, rank, dropped, error, agreement, clock(), ungated)
        write_card(folder / "README.md", ws, chosen, report)
    return finish(ws, report)


def _with_partners(ws: Workspace, factors: Mapping[Place, Factors], rank: int) -> dict[Place, Factors]:
    """Zero factors wherever a layer that is changed lacks a site: servers pack gate and up, and want both."""
    used = {site for _, site in factors} | {"gate", "up"}
    layers = {layer for layer, _ in factors}
    filled: dict[Place, Factors] = {}
    for p in ws.engine.parts:
        for site in SITES:
            if p.index not in layers or site not in used:
                continue
            linear = getattr(p.mlp, PROJECTIONS[site])
            shapes = (rank, linear.in_features), (linear.out_features, rank)
            zero = Factors(*(torch.zeros(shape, device="cpu") for shape in shapes))
            filled[p.index, site] = factors.get((p.index, site), zero)
    return filled


def check_servable(folder: str | Path) -> None:
    """What vLLM and SGLang ask of an adapter. Raises NPTError with all that they would refuse.

    Ranks they allow, alpha equal to the rank, no rank or alpha patterns, no bias, DoRA or modules_to_save, known
    projection names, layers_to_transform matching the tensors, gate and up both present, shapes of one rank.
    """
    from safetensors import safe_open

    folder = Path(folder)
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8-sig"))
        with safe_open(str(folder / WEIGHTS), framework="pt") as f:
            shapes = {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}  # noqa: SIM118
    except (OSError, ValueError) as e:
        raise NPTError(f"{folder} is not an adapter folder: {e}") from None
    wrong, rank = [], config.get("r")
    if rank not in RANKS:
        wrong.append(f"rank {rank} is not one of {RANKS}")
    if config.get("lora_alpha") != rank:
        wrong.append(f"lora_alpha {config.get('lora_alpha')} is not the rank {rank}")
    for key in ("rank_pattern", "alpha_pattern", "modules_to_save", "use_dora", "use_rslora", "lora_bias"):
        if config.get(key):
            wrong.append(f"{key} is set")
    if config.get("bias", "none") != "none":
        wrong.append("bias is trained")
    pattern = re.compile(r"base_model\.model\.(.*)\.(\d+)\.mlp\.(gate|up|down)_proj\.lora_([AB])\.weight")
    found: dict[int, set[str]] = {}
    for name, shape in shapes.items():
        m = pattern.fullmatch(name)
        if m is None:
            wrong.append(f"unexpected tensor {name}")
            continue
        found.setdefault(int(m[2]), set()).add(m[3] + m[4])
        if shape[0 if m[4] == "A" else 1] != rank:
            wrong.append(f"{name} has shape {shape}, not rank {rank}")
    for layer, parts in sorted(found.items()):
        if missing := {"gateA", "gateB", "upA", "upB"} - parts:
            wrong.append(f"layer {layer} lacks {', '.join(sorted(missing))}")
    if sorted(config.get("layers_to_transform") or []) != sorted(found):
        wrong.append("layers_to_transform does not name the layers of the tensors")
    if wrong:
        raise NPTError(f"{folder} would be refused by serving tools: " + "; ".join(wrong[:5]))
