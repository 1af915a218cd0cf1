"""The file of a workspace's generators: their parameters, and the settings that these belong to."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..config import PlasticityConfig
from ..errors import NPTError
from ..files import read_tensors, write_json, write_tensors
from ..surgery import plastic_layers
from .settings import CONFIG_FILE, FORMAT, GENERATOR_FILE, BaseReference, read_settings


def write_generators(folder: Path, base: BaseReference, config: PlasticityConfig, model: torch.nn.Module) -> None:
    """The generator file with the settings it belongs to, then the settings file: what a kill between the two leaves is
    read as the new generators."""
    metadata = {"kind": "generator", "format": FORMAT, "plasticity": config.to_dict()}
    write_tensors(folder / GENERATOR_FILE, generator_state(model), metadata)
    write_json(folder / CONFIG_FILE, {"format": FORMAT, "base": vars(base), "plasticity": config.to_dict()})


def read_generators(path: Path) -> tuple[BaseReference, PlasticityConfig, dict[str, Tensor]]:
    """Base, configuration and generator tensors of a workspace folder."""
    reference, config = read_settings(path)
    tensors, metadata = read_tensors(path / GENERATOR_FILE)
    if metadata.get("kind") != "generator" or metadata.get("format") != FORMAT:
        raise NPTError(f"{path / GENERATOR_FILE} is not a generator file of format {FORMAT}")
    if isinstance(saved := metadata.get("plasticity"), dict):  # files of earlier versions do not hold it
        config = PlasticityConfig.from_dict(saved)
    return reference, config, tensors


def generator_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """The parameters of all generators of a converted model, named by layer."""
    return {
        f"layers.{i}.{name}": t
        for i, p in plastic_layers(model).items()
        for name, t in p.generator.state_dict().items()
    }


def load_generator_state(model: torch.nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    """Puts parameters into the generators. Raises NPTError, naming `file`, if a name, shape or dtype differs."""
    expected = generator_state(model)
    if wrong := sorted(expected.keys() ^ tensors.keys()):
        what = "misses" if wrong[0] in expected else "holds an unknown"
        raise NPTError(f"{file} does not match {CONFIG_FILE}: it {what} tensor {wrong[0]!r}")
    for name, t in tensors.items():
        if t.shape != expected[name].shape or t.dtype != expected[name].dtype:
            raise NPTError(
                f"{file} does not match {CONFIG_FILE}: {name!r} is {t.dtype} {tuple(t.shape)}, expected "
                f"{expected[name].dtype} {tuple(expected[name].shape)}"
            )
    for i, p in plastic_layers(model).items():
        head = f"layers.{i}."
        p.generator.load_state_dict({n[len(head) :]: t for n, t in tensors.items() if n.startswith(head)})
