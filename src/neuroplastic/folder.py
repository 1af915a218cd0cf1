"""What can be read off a workspace's folder without loading any model: its settings, its edits, their order."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from .config import PlasticityConfig
from .console import note
from .editing.edit import Edit
from .errors import NPTError
from .files import read_json

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


def list_edits(path: Path) -> tuple[list[Edit], list[Edit]]:
    """The active and the undone edits of a workspace folder, each in order, without loading any model."""
    read_settings(path)
    return read_edits(path / "edits"), read_edits(path / "edits/undone")


def read_edits(folder: Path) -> list[Edit]:
    """The edits whose files lie in one folder, in order. Files that cannot be read are left out, with a note."""
    found = []
    for file in edit_files(folder):
        try:
            found.append(Edit.load(file))
        except NPTError as e:
            note(f"npt: this edit is left out: {e}")
    return sorted(found, key=lambda e: (e.sequence, e.name))


def edit_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!.]*.safetensors"))


def read_edit_sequence(file: Path) -> int:
    """An edit's place in the order, from its file's header alone; 0 where the file is damaged, which takes no place.

    Damaged files are named when they are opened or redone; they must not stand in the way of new edits.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as f:
            return int(json.loads((f.metadata() or {})["npt"])["sequence"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return 0
