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

from neuroplastic.config import parse_layers
from neuroplastic.console import Progress
from neuroplastic.editing.edit import Factors
from neuroplastic.editing.ledger import edited
from neuroplastic.editing.methods.consolidate import ridge_factor
from neuroplastic.editing.targets import Row
from neuroplastic.errors import NPTError
from neuroplastic.evaluation.methods import EditingMethod, Taught
from neuroplastic.structure import LayerParts, projection
from neuroplastic.surgery import mode

from .answers import beginnings, essence_row, question_rows, read_at_keys
from .values import ValueSearch, find_delta
from .weights import put_back

if TYPE_CHECKING:
    from neuroplastic.editing.engine import EditableModel
    from neuroplastic.evaluation.records import Record


@dataclass(frozen=True)
class Settings:
    """Layers and strength by search.py, the search for a value as in `rome`."""

    layers: str = "2-4"
    strength: float = 1500.0
    """lambda: how much ordinary text resists the change; the paper's is 15,000, for a model 45 times as large"""
    search: ValueSearch = field(default_factory=ValueSearch)
    seed: int = 0
    """of the beginnings"""


def memit(settings: Settings | None = None) -> EditingMethod:
    """The method: one record alone. It is given the subject; raises NPTError for a record without one."""
    chosen = settings or Settings()

    def teach(engine: EditableModel, record: Record) -> AbstractContextManager[Taught]:
        return teach_all(engine, [record], chosen)

    return teach


@contextmanager
def teach_all(
    engine: EditableModel, records: Sequence[Record], settings: Settings | None = None, progress: Progress | None = None
) -> Iterator[Taught]:
    """All records in one batch; `seconds` is the time per record.

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
    rows = [question_rows(engine.tokenizer, record, prefixes) for record in records]
    with put_back([projection(part.mlp, "down").weight for part in parts]):
        with mode(engine.model, "standard"):
            wanted = []
            for number, (own, record) in enumerate(zip(rows, records, strict=True), 1):
                wanted.append(goal(engine, own, essence_row(engine.tokenizer, record), parts[-1], chosen.search))
                if progress is not None:
                    progress(number, len(records))
            spread(engine, parts, rows, torch.stack(wanted), chosen.strength)
        yield Taught((time.perf_counter() - began) / len(records))


def goal(engine: EditableModel, rows: Sequence[Row], essence: Row, last: LayerParts, search: ValueSearch) -> Tensor:
    """z [d], what the last layer should give at the key of the first row.

    A delta of the residual stream after it is one of its down projection's output, which the layer scales.
    """
    _, (state, *_) = read_at_keys(engine.model, rows, last.layer, last.layer)
    scale = last.mlp_scale
    return state + scale * find_delta(engine.model, last, rows, essence, state / scale, search)


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
