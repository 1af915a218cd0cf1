"""Measures a model on one record: the questions of a suite, and on request what the model writes freely."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import NPTError
from ..surgery import mode
from ..text.tokens import encode
from .free_text import written
from .methods import in_prompt
from .ordinary import Ordinary
from .questions import questions
from .records import Context, Record, before
from .suite import Reference, Suite

if TYPE_CHECKING:
    from ..editing.engine import EditableModel
    from .result_store import ResultStore

AT_ONCE = 32
"""Number of records that the unedited model is asked about at once."""


@dataclass(frozen=True)
class Remembered:
    """What the unedited model answers to what one record compares with it."""

    record: str
    reference: Reference
    read: dict[str, float] | None = None
    """the reader's figures, with the statement in its prompt, if the suite compares with them and the statement fits"""


@dataclass
class Evaluator:
    """Made before anything is taught; `remember` is called on the unedited model, `ask` on the edited one."""

    engine: EditableModel
    suite: Suite
    generate: bool = False
    """also let the model write freely, which takes seconds per record"""
    seed: int = 0
    missing: set[str] = field(default_factory=set)
    """reasons why some figures are missing"""
    text: Tensor | None = None
    """(N, T) of the user's, on which drift is measured beside the model's own"""
    _remembered: dict[str, Remembered] = field(default_factory=dict)
    _store: ResultStore[Remembered] | None = None

    def __post_init__(self) -> None:
        if self.suite.converses and not self.engine.tokenizer.chat_template:
            self.missing.add("the model has no chat template: it is not asked in chat")

    def keep_in(self, store: ResultStore[Remembered]) -> None:
        """What the unedited model answers is kept there; what is there already is not asked again."""
        self._remembered |= {known.record: known for known in store.done}
        self._store = store

    def ordinary(self) -> Ordinary:
        """Ordinary text as the model reads it now."""
        return Ordinary(self.engine, self.text)

    def remember(self, records: Sequence[Record]) -> None:
        """What the model, as it is now, answers to the neighbours of these records, and, if the suite compares with
        that, to their own questions with the statement in its prompt."""
        model, tokenizer = self.engine.model, self.engine.tokenizer
        new = [r for r in dict.fromkeys(records) if r.id not in self._remembered]
        with mode(model, "standard"):
            for first in range(0, len(new), AT_ONCE):
                some = new[first : first + AT_ONCE]
                for record, reference in zip(some, self.suite.reference(model, tokenizer, some), strict=True):
                    known = Remembered(record.id, reference, self._read(record, reference))
                    self._remembered[record.id] = known
                    if self._store is not None:
                        self._store.keep(known)
        if self.suite.against_reader and (unread := [r.id for r in records if self._remembered[r.id].read is None]):
            listed = ", ".join(dict.fromkeys(unread))
            self.missing.add(f"no share of the reader's for {listed}: the text does not fit into the model's context")

    def _read(self, record: Record, reference: Reference) -> dict[str, float] | None:
        """The figures that the suite compares with, of the model as it is now with the statement in its prompt."""
        if not self.suite.against_reader:
            return None
        model, tokenizer = self.engine.model, self.engine.tokenizer
        with ExitStack() as stack:
            try:
                taught = stack.enter_context(in_prompt(self.engine, record))
            except NPTError:  # it does not fit
                return None
            found = self.suite.score(model, tokenizer, record, taught.context, reference)
        return {name: found[name] for name in self.suite.against_reader}

    def ask(self, record: Record, context: Context = "") -> dict[str, float]:
        """The figures of one record that is remembered, with `context` before every prompt; `context_tokens`, the mean
        number of tokens of that; `asking`, the seconds that it took to ask the suite's questions, and `per_question`,
        their part of a question."""
        model, tokenizer, known = self.engine.model, self.engine.tokenizer, self._remembered[record.id]
        with mode(model, "standard"):
            began = time.perf_counter()
            found = self.suite.score(model, tokenizer, record, context, known.reference)
            found["asking"] = time.perf_counter() - began
            found |= {f"{name}_read": value for name, value in (known.read or {}).items()}
            asked = questions(tokenizer, record)
            found["per_question"] = found["asking"] / len(asked)
            tokens = [len(encode(tokenizer, before(context, prompt))) for prompt in asked] if context else [0]
            found.setdefault("context_tokens", sum(tokens) / len(tokens))
            if self.generate:
                found |= written(model, tokenizer, record, context, self.seed)
        return found
