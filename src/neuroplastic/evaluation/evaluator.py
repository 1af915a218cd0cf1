"""Measures a model on one record: the questions of a suite, and on request what the model writes freely."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..surgery import mode
from .free_text import written
from .methods import as_context
from .records import Context, Record
from .suite import Reference, Suite

if TYPE_CHECKING:
    from ..editing.engine import EditableModel


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
    _references: dict[str, Reference] = field(default_factory=dict)
    _read: dict[str, dict[str, float]] = field(default_factory=dict)
    """the reader's figures, if the suite compares with them"""

    def __post_init__(self) -> None:
        if self.suite.converses and not self.engine.tokenizer.chat_template:
            self.missing.add("the model has no chat template: it is not asked in chat")

    def remember(self, records: Sequence[Record]) -> None:
        """What the model, as it is now, answers to the neighbours of these records, and, if the suite compares with
        that, to their own questions with the statement in its prompt."""
        model, tokenizer = self.engine.model, self.engine.tokenizer
        with mode(model, "standard"):
            for record in records:
                if record.id in self._references:
                    continue
                known = self.suite.reference(model, tokenizer, record)
                if self.suite.against_reader:
                    read = self.suite.score(model, tokenizer, record, as_context(record.statement), known)
                    self._read[record.id] = {f"{name}_read": read[name] for name in self.suite.against_reader}
                self._references[record.id] = known

    def ask(self, record: Record, context: Context = "") -> dict[str, float]:
        """The figures of one record that is remembered, with `context` before every prompt; and `asking`, the seconds
        that it took to read the suite's questions."""
        model, tokenizer = self.engine.model, self.engine.tokenizer
        with mode(model, "standard"):
            began = time.perf_counter()
            found = self.suite.score(model, tokenizer, record, context, self._references[record.id])
            found["asking"] = time.perf_counter() - began
            found |= self._read.get(record.id, {})
            if self.generate:
                found |= written(model, tokenizer, record, context, self.seed)
        return found
