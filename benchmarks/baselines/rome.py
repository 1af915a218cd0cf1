"""ROME: one fact as one key and one value of one MLP (Meng et al. 2202.05262, section 3.1).

    k*  mean over random beginnings of what the down projection reads at the subject's last token     equation 3
    v*  what it should give there for the answer to follow: W k + delta                               equation 4
    W + Lambda (C^-1 k*)^T,   Lambda = (v* - W k*) / ((C^-1 k*)^T k*)                                 equation 2

which is the change that maps k* to v* and disturbs ordinary keys, of covariance C, least.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from neuroplastic.config import parse_layers
from neuroplastic.editing.edit import Factors
from neuroplastic.editing.ledger import edited
from neuroplastic.evaluation.methods import EditingMethod, Taught
from neuroplastic.structure import projection
from neuroplastic.surgery import mode

from .answers import beginnings, essence_row, question_rows, read_at_keys
from .values import ValueSearch, find_delta
from .weights import put_back

if TYPE_CHECKING:
    from neuroplastic.editing.engine import EditableModel
    from neuroplastic.evaluation.records import Record


@dataclass(frozen=True)
class Settings:
    """The layer by search.py."""

    layer: str = "4"
    search: ValueSearch = field(default_factory=ValueSearch)
    seed: int = 0
    """of the beginnings"""


def insertion(key: Tensor, whitened: Tensor, change: Tensor) -> Factors:
    """Equation 2 as factors: key k* [f], whitened C^-1 k* [f], change v* - W k* [d] -> A [1, f], B [d, 1]."""
    return Factors(whitened[None], (change / (whitened @ key))[:, None])


def rome(settings: Settings | None = None) -> EditingMethod:
    """The method. It is given the subject; raises NPTError for a record without one."""
    chosen = settings or Settings()

    @contextmanager
    def teach(engine: EditableModel, record: Record) -> Iterator[Taught]:
        (layer,) = parse_layers(chosen.layer, len(engine.parts))
        part = engine.parts[layer]
        down = projection(part.mlp, "down")
        whitening, text = engine.whitening, engine.text[0]  # once per model, so not part of the edit's time
        whitening.prepare([(layer, "down")])
        began = time.perf_counter()
        with mode(engine.model, "standard"):
            rows = question_rows(engine.tokenizer, record, beginnings(text, chosen.search.prefixes, chosen.seed))
            keys, values = read_at_keys(engine.model, rows, down, down)
            essence = essence_row(engine.tokenizer, record)
            delta = find_delta(engine.model, part, rows, essence, values[0], chosen.search)
        key = keys.mean(0)
        # the mean of the values is W k*, with the bias where there is one
        change = values[0] + delta - values.mean(0)
        factors = insertion(key, whitening.solve(layer, "down", key), change)
        with put_back([down.weight]):
            down.weight.data = edited(down.weight.data, [factors])
            yield Taught(time.perf_counter() - began)

    return teach
