"""A workspace's settings: which base it belongs to, and how that is made plastic. Nothing here loads a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..config import PlasticityConfig
from ..errors import NPTError
from ..files import read_json

FORMAT = 1
CONFIG_FILE, GENERATOR_FILE = "npt_config.json", "npt.safetensors"


@dataclass(frozen=True)
class BaseReference:
    """Which pretrained model a workspace belongs to."""

    spec: str
    dtype: str
    sha256: str
    """content hash of its weights, see files.content_hash"""


def read_settings(path: Path) -> tuple[BaseReference, PlasticityConfig]:
    """The checked contents of a workspace's configuration file, without loading any model."""
    if not path.is_dir():
        raise NPTError(f"there is no workspace {str(path)!r}; make one with: npt convert smollm2-135m {path}")
    if not (path / CONFIG_FILE).exists():
        raise NPTError(f"{str(path)!r} is not a workspace: it has no {CONFIG_FILE}")
    settings = read_json(path / CONFIG_FILE)
    if settings.get("format") != FORMAT:
        raise NPTError(f"{path / CONFIG_FILE} has format {settings.get('format')!r}; this version reads {FORMAT}")
    base, plasticity = settings.get("base"), settings.get("plasticity")
    fields = ("spec", "dtype", "sha256")
    if not isinstance(base, dict) or not all(isinstance(base.get(f), str) for f in fields):
        raise NPTError(f"{path / CONFIG_FILE} is damaged: its base reference is incomplete")
    if not isinstance(plasticity, dict):
        raise NPTError(f"{path / CONFIG_FILE} is damaged: it has no plasticity settings")
    return BaseReference(**{f: base[f] for f in fields}), PlasticityConfig.from_dict(plasticity)
