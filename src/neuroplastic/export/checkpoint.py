"""Edits merged into a plain Hugging Face checkpoint, with no trace of this package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .. import models
from ..editing.ledger import Ledger
from ..errors import NPTError
from ..files import refuse_occupied, whole_folder
from .export_report import (
    Clock,
    ExportReport,
    chosen_changes,
    finish,
    require_match,
    statement_logits,
    workspace_logits,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..workspace.workspace import Workspace


def merged(
    ws: Workspace, dest: str | Path, edits: Sequence[str] | None = None, dtype: str | None = None
) -> ExportReport:
    """Writes a checkpoint with the chosen active edits in its weights, loads it with transformers and compares.

    Weights, tokenizer and generation config, sharded as usual. The merge is done in float32 and rounded once to
    `dtype` (the workspace's if None). Raises NPTError for bad input and CheckFailed, leaving nothing, if the
    loaded checkpoint answers differently.
    """
    clock, dest, dtype = Clock(), Path(dest), dtype or ws.base.dtype
    refuse_occupied(dest)
    if dtype not in models.DTYPES:
        raise NPTError(f"dtype must be one of {', '.join(models.DTYPES)}, not {dtype!r}")
    chosen, ungated = chosen_changes(ws, edits)
    statements = [e.statement for e in chosen]
    reference = workspace_logits(ws, chosen, statements)
    wide = "float64" if ws.base.dtype == "float64" else "float32"
    model, tokenizer = models.load_base(ws.base.spec, wide, "cpu")
    Ledger(model).set_active(chosen)
    error, agreement = write_checkpoint("merged", model, tokenizer, dest, dtype, statements, reference, ws.base.dtype)
    names = [e.name for e in chosen]
    return finish(ws, ExportReport("merged", str(dest), names, None, 0.0, error, agreement, clock(), ungated))


def write_checkpoint(
    format: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dest: Path,
    dtype: str,
    statements: Sequence[str],
    reference: Sequence[Tensor],
    reference_dtype: str,
) -> tuple[float, float]:
    """Writes a model in `dtype` with its tokenizer, loads it with transformers, and gives what `require_match` says of
    its logits on the statements. Raises NPTError for weights that are not finite, and CheckFailed, leaving nothing."""
    model.to(getattr(torch, dtype))
    models.require_finite_weights("the edited model", model, dtype)
    with whole_folder(dest) as folder:
        with models.quietly():
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        loaded, loaded_tokenizer = models.load_base(folder, dtype, "cpu")
        written = statement_logits(loaded, loaded_tokenizer, statements)
        return require_match(format, written, reference, dtype, reference_dtype)
