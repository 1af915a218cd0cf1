"""A model with edits in its weights, and what is measured of it on ordinary text that it writes itself."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import NPTError
from ..files import content_hash
from ..statistics import At, TextInputs, Whitening, inputs_on_text, inverse_covariances
from ..structure import LayerParts, decoder_layers, inspect_layers
from ..surgery import base_state, mode
from ..text.perplexity import perplexity
from ..text.self_text import calibration_text, self_text
from .edit import Edit
from .ledger import Ledger
from .recall import Query, Recall, recall

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DRIFT_ROWS = 4
"""Rows of held-out text, about five hundred tokens, on which drift is measured."""
ELSEWHERE = 2
"""A question is also asked after this number of unrelated texts."""


class MeasuredModel:
    """A model, its tokenizer and its ledger. What is measured of the unedited model is measured once, when it is first
    asked for."""

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None):
        self._model, self._tokenizer = model, tokenizer
        self.ledger = Ledger(model)
        self._perplexity: tuple[tuple[Edit, ...], float] | None = None
        self._inputs: dict[int, TextInputs] = {}

    @property
    def model(self) -> PreTrainedModel:
        return self._model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Raises NPTError if none was given yet."""
        if self._tokenizer is None:
            raise NPTError("the model's tokenizer is not known yet; give it: npt.editable(model, tokenizer)")
        return self._tokenizer

    @cached_property
    def sha256(self) -> str:
        """Content hash of the unedited base."""
        with self.ledger.unedited():
            return content_hash(base_state(self._model))

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The active edits, in the order in which they are added to the weights."""
        return self.ledger.active

    def unedited(self) -> AbstractContextManager[None]:
        """The pristine weights, while it lasts; nothing is computed."""
        return self.ledger.unedited()

    def recall(self, queries: Sequence[Query]) -> list[Recall]:
        """How the model continues statements now, in standard mode."""
        held_out = self.text[1]
        elsewhere = [held_out[i, 1:9].tolist() for i in range(min(ELSEWHERE, len(held_out)))]
        with mode(self.model, "standard"):
            return recall(self.model, self.tokenizer, queries, elsewhere)

    def perplexity(self) -> float:
        """Perplexity of the model as it is now, in standard mode, on some held-out ordinary text."""
        active = self.edits
        known = self._perplexity
        if known is None or [id(e) for e in known[0]] != [id(e) for e in active]:
            with mode(self.model, "standard"):
                known = (active, perplexity(self.model, self.text[1][:DRIFT_ROWS]))
            self._perplexity = known
        return known[1]

    @cached_property
    def parts(self) -> list[LayerParts]:
        """The wiring of every layer, plastic or not."""
        with self.unedited(), mode(self.model, "standard"):
            return inspect_layers(self.model, range(len(decoder_layers(self.model))))

    @property
    def text(self) -> tuple[Tensor, Tensor]:
        """Text that the unedited model wrote: (for statistics, held out for measuring), each (N, T)."""
        learnt, held_out = self._text
        return learnt.to(self.model.device), held_out.to(self.model.device)

    @cached_property
    def _text(self) -> tuple[Tensor, Tensor]:
        with self.unedited(), mode(self.model, "standard"):
            return self_text(self.model, self.tokenizer, self.sha256)

    @cached_property
    def whitening(self) -> Whitening:
        """The covariance of ordinary text: of each layer when it is first asked for, then cached on disk."""

        def find(wanted: Sequence[At]) -> dict[At, Tensor]:
            with self.unedited():
                return inverse_covariances(self.model, self.parts, lambda: self.text[0], self.sha256, wanted)

        return Whitening(find=find)

    def inputs(self, layers: Sequence[int]) -> dict[int, TextInputs]:
        """What the unedited MLPs of some layers read on ordinary text: measured once, then cached on disk."""
        if missing := [layer for layer in layers if layer not in self._inputs]:
            with self.unedited():
                self._inputs |= inputs_on_text(self.model, self.parts, lambda: self.text[0], self.sha256, missing)
        return {layer: self._inputs[layer].to(self.model.device) for layer in layers}

    @cached_property
    def more_text(self) -> Tensor:
        """Three times as much of it, (N, T), for joint solutions of many facts, whose steps would learn a smaller text
        by heart and spare no other."""
        with self.unedited(), mode(self.model, "standard"):
            return torch.cat([self.text[0], calibration_text(self.model, self.tokenizer, self.sha256)[0]])
