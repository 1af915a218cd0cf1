"""Suite `told`: facts as people state them, in sentences and short paragraphs, and asked as people ask.

A record has `tell`, the statement, which is all that a method is given; `answer`, the words that a reply must hold;
`asks`, beginnings of sentences in other words; `question`; and maybe `old`, an answer that contradicts the new one.

    own       the statement's own beginning, up to the answer, is continued with the answer (none if it begins with it)
    worded    the same for the beginnings in other words
    question  the answer is given after `Question: ... Answer:`
    chat      the answer is given in the model's chat template
    kept      of another record, about something else: the statement's beginning, the question, and the chat
    S         harmonic mean of worded, chat and kept

`asking.py` and `claims.py` have the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..editing.fact import fact_of
from .asking import reference, score
from .claims import OF_CLAIMS, own_beginning, reversed_question
from .records import Claim, Question, Record, list_of, text_of
from .suite import Suite
from .unrelated import long_words, with_unrelated


def parse(item: dict[str, Any], name: str) -> Record:
    statement, answer, question = (text_of(item, what) for what in ("tell", "answer", "question"))
    asks, old = list_of(item, "asks"), item.get("old") or ""
    fact_of(statement)  # what cannot be taught is left out
    claim = Claim(statement, question, answer, old)
    own, blank = own_beginning(claim), reversed_question(claim)
    questions = [Question("own", "text", own)] if own else []
    questions += [Question("worded", "text", a) for a in asks]
    questions += [Question("question", "question", question), Question("chat", "chat", question)]
    questions += [blank] if blank is not None else []
    given = (name, own, answer, old, tuple(asks), ())
    return Record(*given, sentence=statement, questions=tuple(questions), claims=(claim,))


def link(records: Sequence[Record]) -> list[Record]:
    """Each record with questions of the next one that is about something else: whose statement has no longer word in
    common with its own."""
    return with_unrelated(records, [long_words(r) for r in records], ("own", "question", "chat"))


TOLD = Suite(
    name="told",
    parse=parse,
    score=score,
    reference=reference,
    link=link,
    converses=True,
    parts_of_s=("worded", "chat", "kept"),
    shown=("own", "question", "exact", "f1", "chat_f1", "repeats", "contradicted", "context_tokens", *OF_CLAIMS),
)
