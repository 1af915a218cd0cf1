"""A training's state in one file: trained parameters, optimiser, random state, and what the task keeps.

Written whole or not at all, as safetensors; the last one is kept, and the one before it until the new one is there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NPTError
from ..files import read_tensors, write_tensors

FORMAT = 1


@dataclass(frozen=True)
class Progressed:
    """How far a training has come."""

    step: int
    """steps that are done"""
    skipped: int
    """of them, those whose gradient was not finite"""


def save_checkpoint(
    folder: Path,
    progressed: Progressed,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    kept: Mapping[str, Tensor],
    settings: Mapping[str, Any],
) -> Path:
    """Writes checkpoint-STEP.safetensors and removes earlier ones."""
    tensors = {f"module.{n}": t for n, t in module.state_dict().items()}
    for i, entries in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v, device="cpu") for k, v in entries.items()}
    tensors |= {f"kept.{n}": t for n, t in kept.items()}
    tensors["random"] = torch.get_rng_state()
    path = folder / f"checkpoint-{progressed.step:07d}.safetensors"
    metadata = {"kind": "checkpoint", "format": FORMAT, "settings": dict(settings), **vars(progressed)}
    write_tensors(path, {n: t.detach().cpu().contiguous() for n, t in tensors.items()}, metadata)
    for other in checkpoints(folder):
        if other != path:
            other.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Those in a folder, the furthest last."""
    return sorted(p for p in folder.glob("checkpoint-*.safetensors") if re.fullmatch(r"checkpoint-\d+", p.stem))


def check_folder(folder: Path, settings: Mapping[str, Any], resume: bool) -> bool:
    """Whether a training has begun in `folder`. Raises NPTError if it is another one, or must not be continued."""
    found = checkpoints(folder)
    if found and not resume:
        raise NPTError(f"{folder} holds a training already; continue it with --resume, or choose another folder")
    if found:
        _check_same(found[-1], read_tensors(found[-1])[1], json.loads(json.dumps(dict(settings))))
    return bool(found)


def _check_same(path: Path, metadata: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    then = metadata.get("settings")
    if then != dict(settings):
        known = then if isinstance(then, dict) else {}
        changed = [k for k in {**known, **settings} if known.get(k) != settings.get(k)]
        raise NPTError(
            f"{path.parent} holds a training with another {', '.join(changed)}; give the same settings to continue it, "
            "or another folder to begin anew"
        )


def load_checkpoint(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]
) -> tuple[Progressed, dict[str, Tensor]]:
    """Puts a checkpoint back; returns how far it had come, and what the task kept.

    Raises NPTError, with nothing changed, if the file is damaged or belongs to a training with other settings.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("kind") != "checkpoint" or metadata.get("format") != FORMAT:
        raise NPTError(f"{path} is not a checkpoint of format {FORMAT}")
    _check_same(path, metadata, settings)
    own = {n.removeprefix("module."): t for n, t in tensors.items() if n.startswith("module.")}
    expected = module.state_dict()
    if own.keys() != expected.keys() or any(own[n].shape != expected[n].shape for n in own):
        raise NPTError(f"{path} does not hold the parameters that are trained")
    states: dict[int, dict[str, Tensor]] = {}
    for name, t in tensors.items():
        if m := re.fullmatch(r"optimizer\.(\d+)\.(\w+)", name):
            states.setdefault(int(m[1]), {})[m[2]] = t
    module.load_state_dict(own)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    torch.set_rng_state(tensors["random"])
    kept = {n.removeprefix("kept."): t for n, t in tensors.items() if n.startswith("kept.")}
    return Progressed(int(metadata["step"]), int(metadata["skipped"])), kept
