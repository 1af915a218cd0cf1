"""FT-L: fine-tuning of one down projection, held inside a box around its old weights.

    minimise -log P_W[o | p]  subject to  |W - W_0|_inf <= bound

by Adam, with a projection onto the box after every step (Zhu et al. 2012.00363, section 3, equation 2; as ROME compares
with it: 2202.05262, appendix E.1, "FT+L": one MLP, the answer's loss alone, steps until the loss is small).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...config import parse_layers
from ...editing.context import check_length
from ...editing.targets import rows_of
from ...structure import projection
from ...surgery import mode
from ..methods import EditingMethod, Taught
from .answers import answer_loss, states_of
from .weights import put_back

if TYPE_CHECKING:
    from ...editing.engine import EditableModel
    from ..records import Record


@dataclass(frozen=True)
class Settings:
    """Steps and stop as in ROME's comparison; layer, rate and bound by `make search-edits`."""

    layer: str = "0"
    steps: int = 25
    rate: float = 2e-3
    bound: float = 8e-3
    """largest change of any weight"""
    enough: float = 1e-2
    """stop where the answer's negative log-probability per token is below this, in nats"""


def ft(settings: Settings | None = None) -> EditingMethod:
    """The method. It needs no subject; several facts of a record are one batch. Raises NPTError for a statement that
    does not fit into the model's context."""
    chosen = settings or Settings()

    @contextmanager
    def teach(engine: EditableModel, record: Record) -> Iterator[Taught]:
        (layer,) = parse_layers(chosen.layer, len(engine.parts))
        weight = projection(engine.parts[layer].mlp, "down").weight
        began = time.perf_counter()
        with put_back([weight]):
            pristine = weight.data
            weight.data = pristine.clone()
            with torch.enable_grad(), mode(engine.model, "standard"):
                rows = [row for fact in record.facts for row in rows_of(engine.tokenizer, [fact], ())[0]]
                check_length(engine.model, rows)
                adam = torch.optim.Adam([weight.requires_grad_()], lr=chosen.rate)
                for _ in range(chosen.steps):
                    loss = answer_loss(engine.model, rows, states_of(engine.model, rows))
                    if loss < chosen.enough:
                        break
                    (weight.grad,) = torch.autograd.grad(loss, [weight])
                    adam.step()
                    with torch.no_grad():
                        weight.copy_(torch.clamp(weight, pristine - chosen.bound, pristine + chosen.bound))
            yield Taught(time.perf_counter() - began)

    return teach
