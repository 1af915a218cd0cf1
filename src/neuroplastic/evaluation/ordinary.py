"""What is done to ordinary text: perplexity and KL divergence against the model as it was."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from ..surgery import mode
from ..text.perplexity import POSITIONS
from ..text.tokens import read_texts, windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..editing.engine import EditableModel

ROWS = 4
"""Rows of held-out text, about five hundred tokens, on which it is measured."""
LENGTH = 128
"""Number of tokens in a row of a text that is given."""


class Drift(NamedTuple):
    perplexity: float
    """relative rise; .05 is five per cent"""
    kl: float
    """KL divergence from before to after, nats per token"""


class OrdinaryText:
    """Held-out text as the model reads it at the moment when this is made. Hidden states are kept, not logits, which
    are a hundred times as large; so whatever changes the model later must leave its output embeddings alone."""

    def __init__(self, engine: EditableModel, text: Tensor | None = None):
        """`text` (N, T) is what is read; without it, some of what the model wrote and that is held out."""
        self._model = engine.model
        text = engine.text[1][:ROWS] if text is None else text
        self._text, self._next = text, text[:, 1:].flatten()
        self._before = self._states()

    def drift(self) -> Drift:
        """The model as it is now, against what it was."""
        return drift(self._model, self._before, self._states(), self._next)

    @torch.no_grad()
    def _states(self) -> Tensor:
        with mode(self._model, "standard"):
            states: Tensor = self._model.base_model(input_ids=self._text, use_cache=False)[0]
        return states[:, :-1].flatten(0, 1)


class Ordinary:
    """The model's own held-out text, and a text of the user's, as the model reads them at the moment when this is
    made."""

    def __init__(self, engine: EditableModel, text: Tensor | None = None):
        """`text` (N, T) is the user's, in rows that begin with the start token."""
        self._texts = {"": OrdinaryText(engine)}
        if text is not None:
            self._texts["_text"] = OrdinaryText(engine, text)

    def drift(self) -> dict[str, float]:
        """`perplexity` and `kl` on the model's own text, and `perplexity_text` and `kl_text` on the other one."""
        return {
            f"{name}{which}": value
            for which, text in self._texts.items()
            for name, value in text.drift()._asdict().items()
        }


def rows_of_text(tokenizer: PreTrainedTokenizerBase, file: Path, device: torch.device) -> Tensor:
    """As much of a file as is measured of a model's own text (ROWS, LENGTH). Raises NPTError as `read_texts` does."""
    return windows(tokenizer, read_texts(file), LENGTH, ROWS * LENGTH, device)[:ROWS]


@torch.no_grad()
def drift(model: PreTrainedModel, before: Tensor, after: Tensor, following: Tensor) -> Drift:
    """From the last hidden states (N, d) before and after, and the N tokens that follow in the text."""
    head, kl, rise = model.get_output_embeddings(), 0.0, 0.0
    slices = (torch.split(t, POSITIONS) for t in (before, after, following))
    for old, new, wanted in zip(*slices, strict=True):
        p, q = head(old).float(), head(new).float()
        rise += (cross_entropy(q, wanted, reduction="sum") - cross_entropy(p, wanted, reduction="sum")).item()
        kl += kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="sum", log_target=True).item()
    n = len(following)
    return Drift(math.expm1(rise / n), max(0.0, kl / n))  # rounding can take a KL of nothing below zero
