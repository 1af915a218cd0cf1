"""LoRA: low-rank adapters trained on the statement with PEFT, then merged (Hu et al. 2106.09685, section 4.1).

    W + (alpha / r) B A,   A [r, d_in] random, B [d_out, r] from zero

The loss is the mean negative log-probability of every token of the statement. Only the adapters are trained.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from ...editing.context import check_length
from ...structure import PROJECTIONS, LayerParts
from ...surgery import mode
from ..methods import EditingMethod, Taught
from .answers import answer_loss, statement_row, states_of
from .weights import put_back

if TYPE_CHECKING:
    from ...editing.engine import EditableModel
    from ..records import Record

Where = Literal["qv", "all"]


@dataclass(frozen=True)
class Settings:
    """Common choices; rate, steps and places are the best of `make search-edits` so far, whose end was not run."""

    where: Where = "qv"
    """query and value projections (the paper's choice), or all of attention's and the MLP's"""
    rank: int = 8
    alpha: int = 16
    steps: int = 10
    rate: float = 1e-3
    seed: int = 0
    """of A"""


def places(model: nn.Module, parts: Sequence[LayerParts], where: Where) -> list[str]:
    """The full names of the linear modules that get an adapter."""
    linears = [
        module
        for part in parts
        for owner in (part.attention, part.mlp)
        for name, module in owner.named_children()
        if isinstance(module, nn.Linear)
        and (where == "all" or (owner is part.attention and name[0] in where))
        and (owner is part.attention or name in PROJECTIONS.values())
    ]
    chosen = set(linears)
    return [name for name, module in model.named_modules() if module in chosen]


def lora(settings: Settings | None = None) -> EditingMethod:
    """The method. It needs no subject, and of a passage learns the whole. Raises NPTError for a statement that does not
    fit into the model's context."""
    chosen = settings or Settings()

    @contextmanager
    def teach(engine: EditableModel, record: Record) -> Iterator[Taught]:
        from peft import LoraConfig, LoraModel

        model, row = engine.model, statement_row(engine.tokenizer, record)
        check_length(model, [row])
        began = time.perf_counter()
        names = places(model, engine.parts, chosen.where)
        config = LoraConfig(r=chosen.rank, lora_alpha=chosen.alpha, target_modules=names, lora_dropout=0.0)
        with put_back(model.parameters()), mode(model, "standard"):
            with torch.random.fork_rng():
                torch.manual_seed(chosen.seed)
                adapted = LoraModel(model, config, "fact")
            try:
                trained = [p for p in model.parameters() if p.requires_grad]
                adam = torch.optim.Adam(trained, lr=chosen.rate)
                with torch.enable_grad():
                    for _ in range(chosen.steps):
                        adam.zero_grad()
                        torch.autograd.backward(answer_loss(model, [row], states_of(model, [row])))
                        adam.step()
            except BaseException:
                adapted.unload()
                raise
            adapted.merge_and_unload(safe_merge=True)  # safe: into new tensors, the old ones stay as they are
            yield Taught(time.perf_counter() - began)

    return teach
