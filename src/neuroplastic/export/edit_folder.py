"""Edits alone, for another workspace of the same base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..editing.edit import Edit
from ..errors import CheckFailed, NPTError
from ..files import read_json, refuse_occupied, whole_folder, write_json
from .export_report import Clock, ExportReport, chosen_edits, compare, finish, workspace_logits

if TYPE_CHECKING:
    from ..workspace.workspace import Workspace

MANIFEST = "npt_delta.json"


def delta(ws: Workspace, dest: str | Path, edits: Sequence[str] | None = None) -> ExportReport:
    """Writes the chosen active edits (all by default) as files, with a manifest that names their base.

    Raises NPTError for bad input and CheckFailed, leaving nothing, if the files do not give the same weights.
    """
    clock, dest = Clock(), Path(dest)
    refuse_occupied(dest)
    chosen = chosen_edits(ws, edits)
    names = [e.name for e in chosen]
    statements = [e.statement for e in chosen]
    with whole_folder(dest) as folder:
        for edit in chosen:
            edit.save(folder / f"{edit.name}.safetensors")
        write_json(folder / MANIFEST, {"format": 1, "base": vars(ws.base), "edits": names})
        read = [Edit.load(folder / f"{name}.safetensors") for name in names]
        error, agreement = compare(workspace_logits(ws, read, statements), workspace_logits(ws, chosen, statements))
        if error != 0:
            raise CheckFailed(
                f"the delta export was checked and is wrong: logits differ by {error:.3g}; nothing was written"
            )
    return finish(ws, ExportReport("delta", str(dest), names, None, 0.0, error, agreement, clock()))


def import_edits(ws: Workspace, source: str | Path, edits: Sequence[str] | None = None) -> tuple[Edit, ...]:
    """Takes the edits of a delta folder in, all of them or those named, after the workspace's own ones.

    Raises NPTError, with nothing changed, for a folder that is no delta, for another base, and for taken names.
    """
    source = Path(source)
    if not (source / MANIFEST).is_file():
        raise NPTError(f"{str(source)!r} is not a folder of edits: it has no {MANIFEST}; make one with --format delta")
    manifest = read_json(source / MANIFEST)
    listed, base = manifest.get("edits"), manifest.get("base")
    if manifest.get("format") != 1 or not isinstance(base, dict) or not isinstance(listed, list):
        raise NPTError(f"{source / MANIFEST} is damaged or of another version")
    if base.get("sha256") != ws.base.sha256:
        raise NPTError(
            f"the edits were made for {base.get('spec')!r} ({str(base.get('sha256'))[:12]}), the workspace is of "
            f"{ws.base.spec!r} ({ws.base.sha256[:12]})"
        )
    for name in edits or ():
        if name not in listed:
            raise NPTError(f"{str(source)!r} has no edit {name!r}; it has: {', '.join(map(str, listed))}")
    wanted = [str(name) for name in listed if edits is None or name in edits]
    read = [Edit.load(source / f"{name}.safetensors") for name in wanted]
    for name, edit in zip(wanted, read, strict=True):
        if edit.name != name:
            raise NPTError(f"{source / name}.safetensors holds the edit {edit.name!r}")
    return ws.add(read)
