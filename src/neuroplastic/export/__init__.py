"""Edits leave for the tools that people deploy with, and come in from them. Every export verifies itself."""

from __future__ import annotations

from .checkpoint import merged
from .edit_folder import delta, import_edits
from .export_report import ExportReport
from .gguf_adapter import gguf
from .lora_import import import_lora
from .peft_adapter import check_servable, peft
from .widened import widened

__all__ = [
    "ExportReport",
    "check_servable",
    "delta",
    "gguf",
    "import_edits",
    "import_lora",
    "merged",
    "peft",
    "widened",
]
