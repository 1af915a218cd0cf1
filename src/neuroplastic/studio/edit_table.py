"""Edits: the ledger as the page shows it, and what can be done to its entries."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import export as exports
from ..console import stage
from ..editing.edit import Edit
from ..errors import NPTError
from ..evaluation.plots import lines

if TYPE_CHECKING:
    from ..workspace.workspace import Workspace

Action = Literal["undo", "redo", "drop"]
State = Literal["active", "undone"]


def stored(ws: Workspace) -> Iterator[tuple[Edit, State]]:
    """Every edit that can be read, and its state: the active ones as they are in memory, then the undone."""
    for edit in ws.edits:
        yield edit, "active"
    for edit in ws.files.readable_undone():
        yield edit, "undone"


def listed(ws: Workspace) -> dict[str, Any]:
    """The table: every edit in brief, and whether it still holds."""
    held = {h.name: h for h in ws.held()}
    rows = []
    for edit, state in stored(ws):
        now = held.get(edit.name) if state == "active" else None
        asked: dict[str, Any] = {"holds": None, "probability": None}
        if now is not None:
            asked = {"holds": now.holds, "probability": now.answer_probability}
        brief = ("name", "statement", "method", "alpha", "created")
        rows.append({**{k: getattr(edit, k) for k in brief}, "state": state, **asked})
    return {"edits": rows, "refused": ws.refused}


def show(ws: Workspace, name: str) -> dict[str, Any]:
    for edit, state in stored(ws):
        if edit.name == name:
            return details(edit, state)
    raise NPTError(f"there is no edit {name!r}")


def details(edit: Edit, state: State, plot: bool = True) -> dict[str, Any]:
    """One edit in full, with the norm of its change by layer as a plot if there are several."""
    found = {**edit.summary(), "state": state}
    norms = edit.report.get("relative_norm", {})
    finite = all(math.isfinite(v) for by_site in norms.values() for v in by_site.values())
    if plot and len(norms) > 1 and finite:
        sites = list(dict.fromkeys(site for by_site in norms.values() for site in by_site))
        series = {site: [by_site.get(site, 0.0) for by_site in norms.values()] for site in sites}
        found["plot"] = lines(series, list(norms), "layer", "|dW| / |W|")
    return found


def change(ws: Workspace, name: str, action: Action) -> dict[str, Any]:
    getattr(ws, action)(name)
    return {"name": name, "done": action}


@dataclass(frozen=True)
class Import:
    """A folder on the machine of the studio."""

    folder: str
    kind: Literal["edits", "lora"] = "edits"
    """what `npt export --format delta` wrote, or a PEFT LoRA on MLP projections"""
    name: str | None = None
    """of the edit that a LoRA becomes"""
    alpha: float = 1.0
    any_base: bool = False

    def __post_init__(self) -> None:
        own = {"name": self.name is not None, "alpha": self.alpha != 1.0, "any_base": self.any_base}
        if self.kind == "edits" and any(own.values()):
            raise NPTError(f"{next(o for o in own if own[o])} goes with a LoRA: edits keep their own")


def take_in(ws: Workspace, form: Import) -> dict[str, Any]:
    if form.kind == "edits":
        taken = exports.import_edits(ws, Path(form.folder))
    else:
        taken = (exports.import_lora(ws, Path(form.folder), form.name, form.alpha, form.any_base),)
    return {"imported": [e.name for e in taken]}


def verify(ws: Workspace) -> dict[str, Any]:
    found = ws.verify()
    return {"ok": found.ok, **asdict(found)}


@dataclass(frozen=True)
class Export:
    format: Literal["peft", "merged", "widened", "gguf", "delta"] = "peft"
    edits: tuple[str, ...] | None = None
    """names of active edits; None for all"""
    rank: int | None = None
    tolerance: float | None = None
    dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = None

    def __post_init__(self) -> None:
        adapters, checkpoints = ("peft", "gguf"), ("merged", "widened")
        for field, formats in (("rank", adapters), ("tolerance", adapters), ("dtype", checkpoints)):
            if getattr(self, field) is not None and self.format not in formats:
                raise NPTError(f"{field} goes with the formats {' and '.join(formats)}, not with {self.format}")


def export(ws: Workspace, form: Export, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Writes the adapter, checkpoint or edits into `folder`, checked as by `npt export`, and packs them.

    Returns the .zip file and the report.
    """
    stage(f"exporting as {form.format}, and checking it")
    dest = folder / f"{ws.path.resolve().name}-{form.format}"
    match form.format:
        case "peft" | "gguf":
            make = exports.peft if form.format == "peft" else exports.gguf
            report = make(ws, dest, form.edits, form.rank, *([] if form.tolerance is None else [form.tolerance]))
        case "merged":
            report = exports.merged(ws, dest, form.edits, form.dtype)
        case "widened":
            report = exports.widened(ws, dest, form.edits, form.dtype)
        case "delta":
            report = exports.delta(ws, dest, form.edits)
    stage("packing it")
    packed = Path(shutil.make_archive(str(dest), "zip", folder, dest.name))
    shutil.rmtree(dest)
    return packed, report.to_dict()
