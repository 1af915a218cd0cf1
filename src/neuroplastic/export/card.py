"""The model card of an adapter: what it was told, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..editing.edit import Edit

if TYPE_CHECKING:
    from ..workspace import Workspace
    from .report import ExportReport


def write_card(path: Path, ws: Workspace, edits: Sequence[Edit], report: ExportReport) -> None:
    """A README.md with the front matter that hubs read."""
    rows = "\n".join(f"| {e.name} | {_cell(e.statement)} | {e.method} | {e.alpha:g} | {_nats(e)} |" for e in edits)
    path.write_text(
        f"""---
base_model: {ws.base.spec}
library_name: peft
tags: [lora, model-editing, neuroplastic]
---

# Edits of {ws.base.spec}

A LoRA adapter that holds facts written into the MLP weights of the base model without training on them. Made by
`npt export --format peft`.

| edit | statement | method | alpha | log-probability of the statement, nats per token |
|---|---|---|---|---|
{rows}

- base model: `{ws.base.spec}`, content hash `{ws.base.sha256}`
- rank {report.rank}, lora_alpha {report.rank}; compression dropped {report.dropped_energy:.2e} of the squared norm
- loaded with PEFT and compared with the workspace on the statements above: largest logit difference
  {report.max_logit_error:.2e}, same likeliest token at {report.top1_agreement:.1%} of the positions

An edit also changes what it was not meant to change. Measure it on your own text before you rely on it.
""",
        encoding="utf-8",
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _nats(edit: Edit) -> str:
    before, after = (edit.report.get(f"statement_logprob_{when}") for when in ("before", "after"))
    return f"{before:.2f} before, {after:.2f} after" if before is not None and after is not None else "not measured"
