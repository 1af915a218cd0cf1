"""The baselines: other ways to teach a fact, written from their papers, as methods of the suite.

They are deterministic by a seed, and each leaves the model bit for bit as it was. The statement in the prompt is a
method of the package itself.
"""

from __future__ import annotations

from neuroplastic.evaluation.methods import EditingMethod

from .ft_l import ft_l
from .lora import lora
from .memit import memit, teach_all
from .rome import rome

BASELINES: dict[str, EditingMethod] = {"ft_l": ft_l(), "lora": lora(), "rome": rome(), "memit": memit()}
"""By name, with the settings that search.py found; that of lora was not run to its end."""
BATCHES = {"memit": teach_all}
"""Those that can teach many records by one call."""
