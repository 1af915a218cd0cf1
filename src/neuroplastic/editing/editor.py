"""One model that can be edited: its ledger, its structure, and what is known of it on ordinary text.

A workspace has one; so has every plain model that was edited in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..config import parse_layers
from ..statistics import Whitening
from ..structure import LayerParts, decoder_layers, inspect_layers
from ..surgery import mode
from ..text import self_text
from .edit import Edit
from .inject import make_update, relative_norms, statement_logprob, tokens_of
from .ledger import Ledger

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Editor:
    """Makes edits and keeps them in the weights. `sha256` is the content hash of the unedited base."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sha256: str):
        self.model, self.tokenizer, self.sha256 = model, tokenizer, sha256
        self.ledger = Ledger(model)

    def make(self, statement: str, method: str, alpha: float | None, layers: str = "all", name: str = "edit") -> Edit:
        """The edit that `statement` asks for, not yet in the weights. Raises NPTError for bad input."""
        _, alone = tokens_of(self.model, self.tokenizer, statement)
        chosen = parse_layers(layers, len(self.parts))
        parts = [p for p in self.parts if p.index in chosen]
        made = make_update(self.model, self.tokenizer, parts, statement, method, alpha, lambda: self.whitening)
        with mode(self.model, "standard"):
            before = statement_logprob(self.model, alone)
        report: dict[str, Any] = {
            "seconds": made.seconds,
            "relative_norm": relative_norms(parts, made.factors),
            "statement_logprob_before": before,
        }
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return Edit(name, statement, method, made.alpha, self.sha256, 0, now, made.factors, report)

    def apply(self, edits: Sequence[Edit], keep: Callable[[Sequence[Edit]], None] = lambda edits: None) -> list[Edit]:
        """Puts new edits behind the active ones, measures what they did, and gives them to `keep`; all or nothing."""
        active = self.ledger.active
        try:
            self.ledger.set_active((*active, *edits))
            measured = [replace(e, report={**e.report, **self._effect(e)}) for e in edits]
            keep(measured)
            self.ledger.set_active((*active, *measured))
        except BaseException:
            self.ledger.set_active(active)
            raise
        return measured

    def _effect(self, edit: Edit) -> dict[str, float]:
        if "statement_logprob_before" not in edit.report:  # not made from a statement
            return {}
        _, alone = tokens_of(self.model, self.tokenizer, edit.statement)
        with mode(self.model, "standard"):
            return {"statement_logprob_after": statement_logprob(self.model, alone)}

    @contextmanager
    def only(self, edits: Sequence[Edit]) -> Iterator[None]:
        """Exactly these edits in the weights, while it lasts; with none, the pristine base."""
        active = self.ledger.active
        self.ledger.set_active(edits)
        try:
            yield
        finally:
            self.ledger.set_active(active)

    @cached_property
    def parts(self) -> list[LayerParts]:
        """The wiring of every layer, plastic or not."""
        with mode(self.model, "standard"):
            return inspect_layers(self.model, range(len(decoder_layers(self.model))))

    @cached_property
    def text(self) -> tuple[Tensor, Tensor]:
        """Text that the unedited model wrote: (for statistics, held out for measuring), each (N, T)."""
        with self.only(()), mode(self.model, "standard"):
            return self_text(self.model, self.tokenizer, self.sha256)

    @cached_property
    def whitening(self) -> Whitening:
        """The covariance of ordinary text: measured once per model, then cached on disk."""
        text = self.text[0]
        with self.only(()), mode(self.model, "standard"):
            return Whitening.of(self.model, self.parts, text, self.sha256)
