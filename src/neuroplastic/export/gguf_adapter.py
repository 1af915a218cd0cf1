"""Edits as a LoRA in GGUF, which llama.cpp takes with --lora."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..config import Place
from ..editing.edit import Factors
from ..errors import NPTError
from ..files import refuse_occupied, whole_folder
from .export_report import (
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
    workspace_logits,
)

if TYPE_CHECKING:
    from ..workspace.workspace import Workspace

# transformers' model types whose architecture has another name in GGUF
ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}


def gguf(
    ws: Workspace,
    dest: str | Path,
    edits: Sequence[str] | None = None,
    rank: int | None = None,
    tolerance: float = TOLERANCE,
) -> ExportReport:
    """Writes the chosen active edits (all by default) as the file DEST/adapter.gguf, reads it back and compares.

    The file is read with the gguf package, its factors are put into the workspace's model, and the statements are
    run. What llama.cpp does with it is tested by `make test-llamacpp`. Raises NPTError for bad input and CheckFailed,
    leaving nothing, if what was read answers differently.
    """
    clock, dest = Clock(), Path(dest)
    refuse_occupied(dest)
    chosen, ungated = chosen_changes(ws, edits)
    factors, rank, dropped = at_uniform_rank(combine(chosen), rank, tolerance)
    statements = [e.statement for e in chosen]
    reference = workspace_logits(ws, [as_edit(ws, factors)], statements)
    names = _tensor_names(ws)
    with whole_folder(dest) as folder:
        _write(folder / "adapter.gguf", ws, {names[p]: f for p, f in factors.items()}, rank)
        read = _read(folder / "adapter.gguf", {name: place for place, name in names.items()})
        written = workspace_logits(ws, [as_edit(ws, read)], statements)
        error, agreement = require_match("gguf", written, reference, ws.base.dtype)
    return finish(
        ws, ExportReport("gguf", str(dest), [e.name for e in chosen], rank, dropped, error, agreement, clock(), ungated)
    )


def _architecture(ws: Workspace) -> tuple[str, Any]:
    from gguf.constants import MODEL_ARCH_NAMES

    kind = ws.model.config.get_text_config(decoder=True).model_type
    name = ARCHITECTURES.get(kind, kind)
    for arch, known in MODEL_ARCH_NAMES.items():
        if known == name:
            return name, arch
    raise NPTError(f"GGUF knows no architecture {name!r}; export as peft or merged, and convert with llama.cpp's tools")


def _tensor_names(ws: Workspace) -> dict[Place, str]:
    """The name in GGUF of each projection's weight."""
    from gguf.tensor_mapping import get_tensor_name_map

    _, arch = _architecture(ws)
    mapping = get_tensor_name_map(arch, len(ws.engine.parts))
    found = {}
    for name, place in projection_names(ws).items():
        mapped = mapping.get_name(name)
        if mapped is None:
            raise NPTError(f"GGUF has no name for {name!r} in this architecture")
        found[place] = f"{mapped}.weight"
    return found


def _write(path: Path, ws: Workspace, tensors: dict[str, Factors], rank: int) -> None:
    from gguf import GGUFWriter
    from gguf.constants import GGUFType, Keys

    writer = GGUFWriter(path, _architecture(ws)[0])
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, float(rank))  # llama.cpp scales by alpha / rank
    for name, f in tensors.items():
        writer.add_tensor(f"{name}.lora_a", f.A.float().contiguous().numpy())
        writer.add_tensor(f"{name}.lora_b", f.B.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _read(path: Path, places: dict[str, Place]) -> dict[Place, Factors]:
    from gguf import GGUFReader

    pairs: dict[Place, dict[str, torch.Tensor]] = {}
    for tensor in GGUFReader(path).tensors:
        name, _, side = tensor.name.rpartition(".lora_")
        rows = tensor.data.reshape(tuple(int(n) for n in reversed(tensor.shape)))
        pairs.setdefault(places[name], {})[side] = torch.from_numpy(rows.copy())
    return {place: Factors(pair["a"], pair["b"]) for place, pair in pairs.items()}
