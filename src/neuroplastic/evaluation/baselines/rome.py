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

from ...config import parse_layers
from ...editing.context import check_length
from ...editing.edit import Factors
from ...editing.ledger import edited
from ...structure import projection
from ...surgery import mode
from ..methods import EditingMethod, Taught
from .answers import about_subjects, beginnings, essence_row, question_rows, read_at_keys
from .values import ValueSearch, find_delta
from .weights import put_back

if TYPE_CHECKING:
    from ...editing.engine import EditableModel
    from ..records import Record


@dataclass(frozen=True)
class Settings:
    """The layer by `make search-edits`."""

    layer: str = "4"
    search: ValueSearch = field(default_factory=ValueSearch)
    seed: int = 0
    """of the beginnings"""


def insertion(key: Tensor, whitened: Tensor, change: Tensor) -> Factors:
    """Equation 2 as factors: key k* [f], whitened C^-1 k* [f], change v* - W k* [d] -> A [1, f], B [d, 1]."""
    return Factors(whitened[None], (change / (whitened @ key))[:, None])


def rome(settings: Settings | None = None) -> EditingMethod:
    """The method: several facts of a record one after another. It has to know the subject; raises NPTError for a record
    without one, and for a statement that does not fit into the model's context."""
    chosen = settings or Settings()

    @contextmanager
    def teach(engine: EditableModel, record: Record) -> Iterator[Taught]:
        (layer,) = parse_layers(chosen.layer, len(engine.parts))
        part = engine.parts[layer]
        down = projection(part.mlp, "down")
        whitening, text = engine.whitening, engine.text[0]  # once per model, so not part of the edit's time
        whitening.prepare([(layer, "down")])
        began = time.perf_counter()
        prefixes = beginnings(text, chosen.search.prefixes, chosen.seed)
        facts, untaught = about_subjects(record)
        rows = [question_rows(engine.tokenizer, fact, prefixes) for fact in facts]
        check_length(engine.model, [row for own in rows for row in own])
        with put_back([down.weight]):
            for fact, own in zip(facts, rows, strict=True):
                with mode(engine.model, "standard"):
                    keys, values = read_at_keys(engine.model, own, down, down)
                    essence = essence_row(engine.tokenizer, fact)
                    delta = find_delta(engine.model, part, own, essence, values[0], chosen.search)
                key = keys.mean(0)
                # the mean of the values is W k*, with the bias where there is one
                change = values[0] + delta - values.mean(0)
                factors = insertion(key, whitening.solve(layer, "down", key), change)
                down.weight.data = edited(down.weight.data, [factors])
            yield Taught(time.perf_counter() - began, untaught={record.id: untaught} if untaught else {})

    return teach
