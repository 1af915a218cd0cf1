"""Commands that take edits elsewhere, and in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ..cli import printing
from ..console import status
from ..errors import NPTError
from .common import DestArg, Json, SourceArg, WorkspaceArg, app, open_workspace, show_result

if TYPE_CHECKING:
    pass


@app.command
def export(
    workspace: WorkspaceArg,
    dest: DestArg,
    *,
    format: Literal["peft", "merged", "widened", "gguf", "delta"] = "peft",
    edits: str | None = None,
    rank: int | None = None,
    tolerance: float = 1e-6,
    dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = None,
    json: Json = False,
) -> int:
    """Take edits to where models run. What is written is loaded again, asked, and compared with the workspace.

    Args:
        workspace: The workspace.
        dest: Folder to create.
        format: peft is a LoRA adapter for PEFT, transformers, vLLM and SGLang; merged a plain Hugging Face
            checkpoint; gguf a LoRA for llama.cpp: in these three, gated edits become changes of weights, which answer a
            little to every token, and the report says what that costs. widened is a plain Hugging Face checkpoint whose
            MLPs have gated edits as further neurons; delta the edits alone, for another workspace of the same base.
        edits: Names of active edits, separated by commas (default: all).
        rank: Rank of the adapter: 8, 16, 32, 64 or 128 (peft, gguf; default: the smallest that fits).
        tolerance: Share of the change's squared norm that a smaller rank may drop (peft, gguf).
        dtype: Dtype of the checkpoint (merged, widened; default: the workspace's).
    """
    names = None if edits is None else [n.strip() for n in edits.split(",") if n.strip()]
    for option, given, formats in (("--rank", rank, ("peft", "gguf")), ("--dtype", dtype, ("merged", "widened"))):
        if given is not None and format not in formats:
            raise NPTError(f"{option} has no meaning with --format {format}; it goes with {', '.join(formats)}")
    ws = open_workspace(workspace)
    from .. import export as exports

    with status(f"exporting as {format}, and checking it"):
        match format:
            case "peft":
                report = exports.peft(ws, dest, names, rank, tolerance)
            case "gguf":
                report = exports.gguf(ws, dest, names, rank, tolerance)
            case "merged":
                report = exports.merged(ws, dest, names, dtype)
            case "widened":
                report = exports.widened(ws, dest, names, dtype)
            case "delta":
                report = exports.delta(ws, dest, names)
    return show_result(json, report.to_dict(), printing.export)


@app.command(name="import")
def import_(workspace: WorkspaceArg, source: SourceArg, *, edits: str | None = None, json: Json = False) -> int:
    """Take edits in that `npt export --format delta` wrote from another workspace of the same base.

    Args:
        workspace: The workspace.
        source: The exported folder.
        edits: Names to take, separated by commas (default: all).
    """
    from ..export import import_edits

    names = None if edits is None else [n.strip() for n in edits.split(",") if n.strip()]
    taken = import_edits(open_workspace(workspace), source, names)
    result = {"imported": [e.name for e in taken]}
    return show_result(json, result, lambda console, r: console.print("imported: " + ", ".join(r["imported"])))


@app.command(name="import-lora")
def import_lora(
    workspace: WorkspaceArg,
    source: SourceArg,
    *,
    name: str | None = None,
    alpha: float = 1.0,
    any_base: bool = False,
    json: Json = False,
) -> int:
    """Take a PEFT LoRA on MLP projections in as an edit, to be listed, scaled, undone and combined.

    Args:
        workspace: The workspace.
        source: The adapter folder.
        name: Name of the edit (default: made from the folder's).
        alpha: Scale of the change.
        any_base: Take it although it names another base model.
    """
    from ..export import import_lora as take

    edit = take(open_workspace(workspace), source, name, alpha, any_base)
    return show_result(
        json, edit.summary(), lambda console, r: console.print(f"{r['name']}: {len(r['layers'])} layers")
    )
