"""What the files of a base model say of the model in memory: its content hash without reading them, and whether they
still hold it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .files import cache_dir, content_hash, write_json
from .surgery import base_state


def base_hash(model: nn.Module, source: str, dtype: str) -> str:
    """The content hash of a model that was just loaded from `source`, a folder or a hub id, in a dtype.

    Computed once, and kept in the cache for as long as the files have the same names, sizes and times.
    """
    import transformers

    files = model_files(source)
    if not files:
        return content_hash(base_state(model))
    seen = {
        "files": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files],
        "read_by": [dtype, transformers.__version__, torch.__version__],
    }
    where = hashlib.sha256(f"{files[0].parent.resolve()} {dtype}".encode()).hexdigest()[:32]
    record = cache_dir() / "hashes" / f"{where}.json"
    known = _read(record)
    if known.get("seen") == seen and isinstance(known.get("sha256"), str):
        return str(known["sha256"])
    found = content_hash(base_state(model))
    write_json(record, {"seen": seen, "sha256": found})
    return found


def model_files(source: str) -> list[Path]:
    """The safetensors files and configuration of a model folder, or of a hub id in the hub's own cache; none if
    they are not found there, or the weights are in another format."""
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        name, _, revision = source.partition("@")
        config = try_to_load_from_cache(name, "config.json", revision=revision or None)
        if not isinstance(config, str):
            return []
        folder = Path(config).parent
    weights = sorted(folder.glob("*.safetensors"))
    return [*weights, folder / "config.json"] if weights else []


def holds(source: str, state: Mapping[str, Tensor]) -> bool | None:
    """Whether the files of `source` hold exactly these tensors, read one at a time and converted to their dtypes.

    None if that cannot be known, because the files name their tensors otherwise than the model does.
    """
    from safetensors import SafetensorError, safe_open

    found: set[str] = set()
    try:
        for file in model_files(source):
            if file.suffix != ".safetensors":
                continue
            with safe_open(str(file), framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                    if name not in state:
                        return None
                    kept = state[name]
                    if not torch.equal(tensors.get_tensor(name).to(kept.dtype), kept.cpu()):
                        return False
                    found.add(name)
    except (SafetensorError, OSError):
        return False
    if not found:
        return None
    shared = {state[name].data_ptr() for name in found}  # a tied weight is in the files once
    return True if all(n in found or t.data_ptr() in shared for n, t in state.items()) else None


def _read(record: Path) -> dict[str, Any]:
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or a damaged one, which is computed again
        return {}
    return known if isinstance(known, dict) else {}
