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
from ..errors import CheckFailed
from ..evaluation.fidelity import perplexity
from ..statistics import Whitening
from ..structure import LayerParts, decoder_layers, inspect_layers
from ..surgery import mode
from ..text import self_text
from .edit import Edit
from .inject import make_update, relative_norms
from .ledger import Ledger
from .recall import Recall, question_and_answer, recall

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


DRIFT_ROWS = 8
"""Rows of held-out text, about a thousand tokens, on which drift is measured."""


def contradict(one: str, other: str) -> bool:
    """The same question, another answer."""
    if not one.strip():
        return False
    (q, a), (p, b) = question_and_answer(one), question_and_answer(other)
    return q.split() == p.split() and a.split() != b.split()


class Editor:
    """Makes edits and keeps them in the weights. `sha256` is the content hash of the unedited base."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sha256: str):
        self.model, self.tokenizer, self.sha256 = model, tokenizer, sha256
        self.ledger = Ledger(model)

    def make(self, statement: str, method: str, alpha: float | None, layers: str = "all", name: str = "edit") -> Edit:
        """The edit that `statement` asks for, not yet in the weights. Raises NPTError for bad input."""
        chosen = parse_layers(layers, len(self.parts))
        parts = [p for p in self.parts if p.index in chosen]
        made = make_update(self.model, self.tokenizer, parts, statement, method, alpha, lambda: self.whitening)
        before = self.recall(statement)
        report: dict[str, Any] = {
            "seconds": made.seconds,
            "relative_norm": relative_norms(parts, made.factors),
            "answer": question_and_answer(statement)[1].strip(),
            "statement_logprob_before": before.statement_logprob,
            "answer_probability_before": before.answer_probability,
            "contradicts": [e.name for e in self.ledger.active if contradict(e.statement, statement)],
        }
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return Edit(name, statement, method, made.alpha, self.sha256, 0, now, made.factors, report)

    def apply(
        self,
        edits: Sequence[Edit],
        keep: Callable[[Sequence[Edit]], None] = lambda edits: None,
        max_drift: float | None = None,
    ) -> list[Edit]:
        """Puts new edits behind the active ones, measures what they did, and gives them to `keep`; all or nothing.

        Raises CheckFailed where perplexity on held-out ordinary text rises by more than `max_drift` (0.05 is 5 %).
        """
        active = self.ledger.active
        before = self.perplexity() if max_drift is not None else None
        try:
            self.ledger.set_active((*active, *edits))
            drift = None if before is None else self.perplexity() / before - 1
            if drift is not None and max_drift is not None and not drift <= max_drift:
                raise CheckFailed(
                    f"refused: perplexity on ordinary text would rise by {drift:.1%}, more than {max_drift:.1%}; "
                    "nothing was changed (a smaller --alpha or fewer --layers disturb less)"
                )
            measured = [replace(e, report={**e.report, **self._effect(e, drift)}) for e in edits]
            keep(measured)
            self.ledger.set_active((*active, *measured))
        except BaseException:
            self.ledger.set_active(active)
            raise
        return measured

    def _effect(self, edit: Edit, drift: float | None) -> dict[str, Any]:
        effect: dict[str, Any] = {} if drift is None else {"perplexity_drift": drift}
        if "statement_logprob_before" in edit.report:  # made from a statement
            after = self.recall(edit.statement)
            effect["statement_logprob_after"] = after.statement_logprob
            effect["answer_probability_after"] = after.answer_probability
        return effect

    def recall(self, statement: str) -> Recall:
        """How the model continues a statement now, in standard mode."""
        with mode(self.model, "standard"):
            return recall(self.model, self.tokenizer, statement)

    def perplexity(self) -> float:
        """Perplexity of the model as it is now, in standard mode, on some held-out ordinary text."""
        with mode(self.model, "standard"):
            return perplexity(self.model, self.text[1][:DRIFT_ROWS])

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
