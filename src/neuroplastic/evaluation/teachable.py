"""The sentences of a passage that a method can be given, each as a fact of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..editing.fact import Fact, fact_of
from ..editing.sentence import sentences_of
from ..errors import NPTError


def teachable_sentences(text: str) -> tuple[str, ...]:
    """The sentences of a text. Raises ValueError if `facts_in` finds no fact in them."""
    sentences = tuple(sentences_of(text))
    if next(facts_in(sentences), None) is None:  # the others are found when they are taught: a file has thousands
        raise ValueError("none of its sentences can be taught: each needs an answer at its end, and words before that")
    return sentences


def facts_in(sentences: Sequence[str]) -> Iterator[Fact]:
    """Those that have words before their answer, and spaces between words; each once, in their order."""
    for sentence in dict.fromkeys(sentences):
        try:
            fact = fact_of(sentence)
        except NPTError:
            continue
        if fact.question.strip():
            yield fact
