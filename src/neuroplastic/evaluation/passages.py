"""Suite `passages`: a whole passage is taught, and its questions are asked in chat (SQuAD, Rajpurkar et al.
1606.05250).

A record has `title`, `passage`, and `questions`, a list of objects with `question` and `answer`, a short text. As
context the passage stands whole, and our methods are given its sentences, each as a fact.

    contains, f1  the answer is in the reply, as `strict.judge` wants it, and F1 of the words of both
    contains_read, f1_read    the same of the unedited model with the passage in its prompt
    contains_share, f1_share  the first over the second, mean over mean
    kept          questions about a passage of another title
    S             harmonic mean of contains, f1 and kept

`asking.py` has the rest. A run takes passages as a whole, and what is split (to train on some) is split by title: the
passages of one title share facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import NPTError
from . import asking
from .records import Context, Question, Record, list_of, text_of
from .suite import Reference, Suite
from .teachable import teachable_sentences
from .unrelated import with_unrelated

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def parse(item: dict[str, Any], name: str) -> Record:
    title, passage = text_of(item, "title"), text_of(item, "passage")
    pairs = [(text_of(q, "question"), text_of(q, "answer")) for q in list_of(item, "questions")]
    question, answer = pairs[0]
    return Record(
        name,
        f"Question: {question}\nAnswer:",
        answer,
        "",
        (),
        (),
        subject=title,
        sentence=passage,
        sentences=teachable_sentences(passage),
        questions=tuple(Question("contains", "chat", q, (a,)) for q, a in pairs),
    )


def link(records: Sequence[Record]) -> list[Record]:
    """Each record with questions of the next one that has another title."""
    return with_unrelated(records, [{r.subject or ""} for r in records], ("contains",))


def reference(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record]) -> list[Reference]:
    """As `asking.reference`. Raises NPTError for a model without a chat template."""
    if not tokenizer.chat_template:
        raise NPTError(
            "the suite passages asks in chat alone, and the model has no chat template; take a model that has one, or "
            "another suite"
        )
    return asking.reference(model, tokenizer, records)


def score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: Record, context: Context, reference: Reference
) -> dict[str, float]:
    """How the model, in the mode and with the edits that it has, answers one record's questions after `context`."""
    found = asking.score(model, tokenizer, record, context, reference)
    found["f1"] = found.pop("chat_f1")
    return found


PASSAGES = Suite(
    name="passages",
    parse=parse,
    score=score,
    reference=reference,
    link=link,
    converses=True,
    parts_of_s=("contains", "f1", "kept"),
    shown=("contains_share", "f1_share", "contains_read", "f1_read", "repeats", "contradicted", "context_tokens"),
    against_reader=("contains", "f1"),
)
