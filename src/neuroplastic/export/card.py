"""The model card of an adapter: the facts that it holds, and what was measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import models
from ..editing.edit import Edit

if TYPE_CHECKING:
    from ..workspace.workspace import Workspace
    from .export_report import ExportReport


def write_card(path: Path, ws: Workspace, edits: Sequence[Edit], report: ExportReport) -> None:
    """A README.md with the front matter that hubs read. What users wrote stands in it as plain text."""
    from huggingface_hub import ModelCardData

    head = ModelCardData(
        base_model=models.hub_id(ws.base.spec),
        library_name="peft",
        tags=["lora", "model-editing", "neuroplastic"],
    ).to_yaml()
    rows = "\n".join(
        f"| {plain(e.name)} | {plain(e.statement)} | {e.method} | {e.alpha:g} | {_nats(e)} |" for e in edits
    )
    base = plain(ws.base.spec)
    path.write_text(
        f"""---
{head}
---

# Edits of {base}

A LoRA adapter that holds facts written into the MLP weights of the base model without training on them. Made by
`npt export --format peft`.

| edit | statement | method | alpha | log-probability of the statement, nats per token |
|---|---|---|---|---|
{rows}

- base model: {base}, content hash `{ws.base.sha256}`{_unnamed(ws.base.spec)}
- rank {report.rank}, lora_alpha {report.rank}; compression dropped {report.dropped_energy:.2e} of the squared norm
- loaded with PEFT and compared with the workspace on the statements above: largest logit difference
  {report.max_logit_error:.2e}, same likeliest token at {report.top1_agreement:.1%} of the positions

An edit also changes what it was not meant to change. Measure it on your own text before you rely on it.
""",
        encoding="utf-8",
    )


def plain(text: str) -> str:
    """Text on one line that Markdown shows as it is: control characters become spaces, and markup is escaped."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return re.sub(r"([\\`*_\[\]<>|~$&#])", r"\\\1", line)


def _unnamed(spec: str) -> str:
    """Why the metadata name no base model, if they do not."""
    if models.hub_id(spec) is not None:
        return ""
    if models.named_in_adapters(spec) is not None:
        reason = "It is a folder of the machine where this adapter was made, so the metadata above name no base model."
    else:
        reason = (
            "That is no name that transformers or a hub can load, so neither the metadata above nor "
            "adapter_config.json name a base model: load a model of this content hash, and then the adapter into it."
        )
    return f".\n  {reason}"


def _nats(edit: Edit) -> str:
    before, after = (edit.report.get(f"statement_logprob_{when}") for when in ("before", "after"))
    return f"{before:.2f} before, {after:.2f} after" if before is not None and after is not None else "not measured"
