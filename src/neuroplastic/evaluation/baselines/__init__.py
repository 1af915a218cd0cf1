"""The baselines: other ways to teach a fact, written from their papers, as methods of the suite.

They are deterministic by a seed, and each leaves the model bit for bit as it was.
"""

from __future__ import annotations

from ..methods import BatchMethod, EditingMethod
from .ft import ft
from .lora import lora
from .memit import memit, teach_all
from .rome import rome

BASELINES: dict[str, EditingMethod] = {"rome": rome(), "memit": memit(), "lora": lora(), "ft": ft()}
"""By name, with the settings that `make search-edits` found; that of lora was not run to its end."""
BATCHES: dict[str, BatchMethod] = {"memit": teach_all}
"""Those that can teach many records by one call."""
