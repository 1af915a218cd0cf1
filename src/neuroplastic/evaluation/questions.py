"""What a record is asked, whichever suite asks it: how many questions, and how long they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..text.tokens import encode
from .asking import answers_about, asked_of, prompt
from .claims import yes_or_no_questions
from .records import Record
from .replies import NEW_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def questions(tokenizer: PreTrainedTokenizerBase, record: Record) -> list[str]:
    """The questions of a record, without what may stand before them."""
    if record.questions:
        own, unrelated = asked_of(tokenizer, record)
        found = [q.text for q in (*own, *unrelated)]
        for claim in record.claims:
            found += yes_or_no_questions(claim.statement)
            if tokenizer.chat_template:  # which answer it chooses
                found.append(claim.question)
        return found
    pairs = (*record.neighbours, *record.neighbours, *record.portability)  # once more after the statement
    return [record.prompt, *record.paraphrases, *(asked for asked, _ in pairs)]


def longest_question(tokenizer: PreTrainedTokenizerBase, records: Sequence[Record]) -> int:
    """The number of tokens that a model needs room for, beside what stands before a question: those of the longest
    one, and of what follows it."""
    return max(_length(tokenizer, record) for record in records)


def _length(tokenizer: PreTrainedTokenizerBase, record: Record) -> int:
    if record.questions:
        own, unrelated = asked_of(tokenizer, record)
        lengths = [len(prompt(tokenizer, q)) + NEW_TOKENS for q in (*own, *unrelated)]
        answers = [a for claim in record.claims for a in answers_about(tokenizer, claim)]
        return max(lengths + [len(a.read) + len(a.wanted) for a in answers], default=0)
    pairs = [(p, a) for p in (record.prompt, *record.paraphrases) for a in (record.new, record.true)]
    pairs += [(f"{record.statement} {asked}", answer) for asked, answer in (*record.neighbours, *record.portability)]
    return 1 + max(len(encode(tokenizer, f"{asked} {answer}")) for asked, answer in pairs)  # with the start token
