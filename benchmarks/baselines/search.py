"""The stated search for the baselines' settings, on records that are never reported.

cd benchmarks && python -m baselines.search ft_l|lora|rome|memit [--data FOLDER] [--records 12] [--report DIR] [--json]

Every combination of a method's grid, on records 100 to 111 of counterfact_dev.json shuffled with seed 0 (the first
hundred are what is reported). Chosen is the highest S; the choice is written into the method's `Settings`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import neuroplastic as npt
from neuroplastic.console import progress
from neuroplastic.evaluation.contenders import Contender
from neuroplastic.evaluation.edits import Row, evaluate, summarise
from neuroplastic.evaluation.examination import Examination
from neuroplastic.evaluation.kept import Kept
from neuroplastic.evaluation.records import choose, read_records
from neuroplastic.evaluation.suites import suite_named

from . import ft_l, lora, memit, rome
from .data import data_option, records_file

REPORTED = 100
"""So many records, the first ones of the shuffle, are reported, and not touched here."""
SEED = 0

MAKE: dict[str, tuple[Callable[[Any], Contender], Any]] = {
    "ft_l": (ft_l.ft_l, ft_l.Settings()),
    "lora": (lora.lora, lora.Settings()),
    "rome": (rome.rome, rome.Settings()),
    "memit": (memit.memit, memit.Settings()),
}
GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "ft_l": {"layer": ("0", "4", "12"), "rate": (5e-4, 2e-3), "bound": (5e-4, 2e-3, 8e-3)},
    "lora": {"where": ("qv", "all"), "rate": (1e-3, 5e-3), "steps": (10, 20)},
    "rome": {"layer": ("2", "4", "6")},
    "memit": {"layers": ("2-4", "3-7"), "strength": (15.0, 150.0, 1500.0, 15000.0)},
}
