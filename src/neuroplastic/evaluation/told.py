"""Suite `told`: facts as people state them, in sentences and short paragraphs, and asked as people ask.

A record has `tell`, the statement, which is all that a method is given; `answer`, the words that a reply must hold;
`asks`, beginnings of sentences in other words; `question`; and maybe `old`, an answer that contradicts the new one.

    own       the statement's own beginning, up to the answer, is continued with the answer (none if it begins with it)
    worded    the same for the beginnings in other words
    question  the answer is given after `Question: ... Answer:`
    chat      the answer is given in the model's chat template
    kept      of another record, about something else: the statement's beginning, the question, and the chat
    S         harmonic mean of worded, chat and kept

`asking.py` has the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..editing.fact import fact_of
from ..editing.sentence import find_words
from .asking import reference, score
from .records import Question, Record
from .strict import normalise
from .suite import Suite

LETTERS = 4
"""Two statements with a word in common that is at least as long may be related."""


def parse(item: dict[str, Any], name: str) -> Record:
    statement, answer, asks = item["tell"], item["answer"], item["asks"]
    for value, what in ((statement, "tell"), (answer, "answer"), (item["question"], "question")):
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{what!r} is empty or no text")
    if not isinstance(asks, list) or not asks:
        raise ValueError("'asks' is empty or no list")
    fact_of(statement)  # what cannot be taught is left out
    place = find_words(statement, answer)
    own = statement[: place[0]].rstrip() if place is not None else ""
    questions = [Question("own", "text", own)] if own else []
    questions += [Question("worded", "text", a) for a in asks]
    questions += [Question("question", "question", item["question"]), Question("chat", "chat", item["question"])]
    wordings, old = tuple(asks), item.get("old") or ""
    return Record(name, own, answer, old, wordings, (), sentence=statement, questions=tuple(questions))


def link(records: Sequence[Record]) -> list[Record]:
    """Each record with the questions of the next one in the file that is about something else: whose statement has no
    longer word in common with its own."""
    words = [_words(r) for r in records]
    found = []
    for i, record in enumerate(records):
        others = ((i + step) % len(records) for step in range(1, len(records)))
        chosen = next((j for j in others if not words[i] & words[j]), None)
        asked = records[chosen].questions if chosen is not None else ()
        unrelated = tuple(q._replace(figure="kept") for q in asked if q.figure != "worded")
        found.append(replace(record, unrelated=unrelated))
    return found


def _words(record: Record) -> set[str]:
    return {w for w in normalise(record.statement).split() if len(w) >= LETTERS}


TOLD = Suite(
    name="told",
    parse=parse,
    score=score,
    reference=reference,
    link=link,
    converses=True,
    parts_of_s=("worded", "chat", "kept"),
    shown=("own", "question", "exact", "f1", "chat_f1", "repeats", "contradicted", "context_tokens"),
)
