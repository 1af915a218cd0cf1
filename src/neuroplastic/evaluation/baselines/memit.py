"""MEMIT: many facts at once, spread over several MLPs (Meng et al. 2210.07229, section 4, algorithm 1).

    z_i = h_i^L + delta_i        what the last of the layers should give at the subject's last token; delta by values.py
    for each layer l, in order, with the earlier ones changed already:
        k_i^l                    mean over random beginnings of what the down projection reads there
        r_i^l = (z_i - h_i^L) / (layers that are left, l among them)                          equation 20
        W + R K^T (lambda C + K K^T)^-1,   lambda C = C_0, the covariance of earlier facts     equations 14, 15

solved in the smaller space, one dimension a fact: K^T (lambda C + K K^T)^-1 = (I + K^T Z)^-1 Z^T with
Z = (lambda C)^-1 K.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...config import parse_layers
from ...console import Progress
from ...editing.context import check_length
from ...editing.edit import Factors
from ...editing.ledger import edited
from ...editing.methods.consolidate import ridge_factor
from ...editing.targets import Row
from ...errors import NPTError
from ...structure import LayerParts, projection
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
    """Layers and strength by `make search-edits`, the search for a value as in `rome`."""

    layers: str = "2-4"
    strength: float = 1500.0
    """lambda: how much ordinary text resists the change; the paper's is 15,000, for a model 45 times as large"""
    search: ValueSearch = field(default_factory=ValueSearch)
    seed: int = 0
    """of the beginnings"""


def memit(settings: Settings | None = None) -> EditingMethod:
    """The method: one record alone. It has to know the subject; raises NPTError for a record without one, and for a
    statement that does not fit into the model's context."""
    chosen = settings or Settings()

    def teach(engine: EditableModel, record: Record) -> AbstractContextManager[Taught]:
        return teach_all(engine, [record], chosen)

    return teach


@contextmanager
def teach_all(
    engine: EditableModel, records: Sequence[Record], settings: Settings | None = None, progress: Progress | None = None
) -> Iterator[Taught]:
    """All facts of all records in one batch; `seconds` is the time per record.

    Raises NPTError as `memit` does, and for a norm after the MLP, since that makes the residual no linear function of
    what the projection gives.
    """
    chosen = settings or Settings()
    parts = [engine.parts[i] for i in parse_layers(chosen.layers, len(engine.parts))]
    for part in parts:
        if part.norm_after_mlp is not None:
            raise NPTError(f"layer {part.index} has a norm after its MLP, so MEMIT's residual cannot be handed to it")
    text = engine.text[0]  # this and the covariances once per model, so not part of the edits' time
    engine.whitening.prepare((part.index, "down") for part in parts)
    began = time.perf_counter()
    prefixes = beginnings(text, chosen.search.prefixes, chosen.seed)
    about = {record.id: about_subjects(record) for record in records}
    facts = [fact for some, _ in about.values() for fact in some]
    rows = [question_rows(engine.tokenizer, fact, prefixes) for fact in facts]
    check_length(engine.model, [row for own in rows for row in own])
    with put_back([projection(part.mlp, "down").weight for part in parts]):
        with mode(engine.model, "standard"):
            wanted = []
            for number, (own, fact) in enumerate(zip(rows, facts, strict=True), 1):
                wanted.append(goal(engine, own, essence_row(engine.tokenizer, fact), parts[-1], chosen.search))
                if progress is not None:
                    progress(number, len(facts))
            spread(engine, parts, rows, torch.stack(wanted), chosen.strength)
        untaught = {record: why for record, (_, why) in about.items() if why}
        yield Taught((time.perf_counter() - began) / len(records), untaught=untaught)


def goal(engine: EditableModel, rows: Sequence[Row], essence: Row, last: LayerParts, search: ValueSearch) -> Tensor:
    """z [d], what the last layer should give at the key of the first row.

    A delta of the residual stream after it is one of its down projection's output, which the layer scales.
    """
    _, (state, *_) = read_at_keys(engine.model, rows, last.layer, last.layer)
    scale = last.mlp_scale
    wanted: Tensor = state + scale * find_delta(engine.model, last, rows, essence, state / scale, search)
    return wanted


def spread(
    engine: EditableModel, parts: Sequence[LayerParts], rows: Sequence[Sequence[Row]], goals: Tensor, strength: float
) -> None:
    """Replaces the down projections of `parts`, in order, so that the last layer comes to give goals z [n, d].

    `rows` are each fact's: the question alone, and after its beginnings.
    """
    for left, part in zip(range(len(parts), 0, -1), parts, strict=True):
        down = projection(part.mlp, "down")
        read = [read_at_keys(engine.model, own, down, parts[-1].layer) for own in rows]
        K = torch.stack([keys.mean(0) for keys, _ in read])
        R = (goals - torch.stack([states[0] for _, states in read])) / left / part.mlp_scale
        G = ridge_factor(K, engine.whitening.solve(part.index, "down", K).to(K) / strength)
        down.weight.data = edited(down.weight.data, [Factors(G, R.T)])
