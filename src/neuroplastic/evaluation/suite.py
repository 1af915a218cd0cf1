"""What an edit suite is: how it reads its records, and what it asks of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .records import Context, Record

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SuiteName = Literal["counterfact", "zsre", "told", "paragraphs", "passages", "qaedit"]
Reference = list[list[int]]
"""What the unedited model answers to each neighbour, in tokens; empty if a suite does not compare with it."""


def no_reference(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record]
) -> list[Reference]:
    return [[] for _ in records]


@dataclass(frozen=True)
class Suite:
    """Functions that read records and ask them. Figures have names; one that a record does not allow is absent."""

    name: SuiteName
    parse: Callable[[dict[str, Any], str], Record]
    score: Callable[[PreTrainedModel, PreTrainedTokenizerBase, Record, Context, Reference], dict[str, float]]
    """(model, tokenizer, record, text before every prompt, reference) -> figures"""
    parts_of_s: tuple[str, str, str]
    """S is the harmonic mean of these three, or of those that the model allows: success, generality, locality"""
    shown: tuple[str, ...]
    """further figures that a table for people has"""
    reference: Callable[[PreTrainedModel, PreTrainedTokenizerBase, Sequence[Record]], list[Reference]] = no_reference
    """of each record, asked of the model before anything is taught"""
    link: Callable[[Sequence[Record]], list[Record]] = list
    """gives each record of a file what it takes from the others"""
    converses: bool = False
    """whether some of its questions need a chat template"""
    against_reader: tuple[str, ...] = ()
    """figures that are also given as shares of the reader's: of the unedited model with the statement in its prompt. A
    row has the reader's own as NAME_read"""

    @property
    def shares(self) -> dict[str, tuple[str, str]]:
        """By name, figures that are the ratio of the means of two others."""
        return {f"{name}_share": (name, f"{name}_read") for name in self.against_reader}
