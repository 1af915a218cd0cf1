"""Suite `paragraphs`: a fact that a paragraph tells, asked directly, and by questions that need another fact too.

A record has `facts`, a list of objects with `statement`, the fact in one sentence; `paragraph`, which tells it among
other things; `question`, `answer`, and maybe `old`, the answer that held before; `multi_hop`, a list of questions, with
`multi_hop_answer` and `aliases` of this. All paragraphs of a record are taught, and nothing else of it: as context they
stand one after another, and our methods are given their sentences, each as a fact.

    question     the answer is given after `Question: ... Answer:`
    chat         the answer is given in the model's chat template
    portability  the multi-hop questions are answered, after `Question: ... Answer:`
    kept         of another record, about something else: the questions in both forms
    S            harmonic mean of question, chat and kept

`asking.py` and `claims.py` have the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .asking import reference, score
from .claims import OF_CLAIMS, own_beginning, reversed_question
from .records import Claim, Question, Record, list_of, text_of
from .suite import Suite
from .teachable import teachable_sentences
from .unrelated import long_words, with_unrelated

SHORTEST_ALIAS = 3
"""Aliases of fewer letters are left out: `it`, the code of Italian, mostly means something else in a reply."""


def parse(item: dict[str, Any], name: str) -> Record:
    claims: list[Claim] = []
    paragraphs: list[str] = []
    for fact in list_of(item, "facts"):
        statement, question, answer = (text_of(fact, what) for what in ("statement", "question", "answer"))
        old = fact.get("old") or ""
        if not isinstance(old, str):
            raise ValueError("the old answer is no text")
        claims.append(Claim(statement, question, answer, old))
        paragraphs.append(text_of(fact, "paragraph"))
    questions: list[Question] = []
    for claim in claims:
        direct = Question("question", "question", claim.question, (claim.answer,), (claim.old,) if claim.old else ())
        blank = reversed_question(claim)
        questions += [direct, direct._replace(figure="chat", form="chat"), *([blank] if blank is not None else [])]
    if "multi_hop" in item:
        aliases = (a for a in item.get("aliases") or () if len(a) >= SHORTEST_ALIAS)
        answers = (text_of(item, "multi_hop_answer"), *aliases)
        questions += [Question("portability", "question", hop, answers) for hop in list_of(item, "multi_hop")]
    text = " ".join(paragraphs)
    first = claims[0]
    return Record(
        name,
        own_beginning(first),
        first.answer,
        first.old,
        (first.question,),
        (),
        sentence=text,
        sentences=teachable_sentences(text),
        questions=tuple(questions),
        claims=tuple(claims),
    )


def link(records: Sequence[Record]) -> list[Record]:
    """Each record with questions of the next one that is about something else: whose statements have no longer word in
    common with its own."""
    return with_unrelated(records, [long_words(r) for r in records], ("question", "chat"))


PARAGRAPHS = Suite(
    name="paragraphs",
    parse=parse,
    score=score,
    reference=reference,
    link=link,
    converses=True,
    parts_of_s=("question", "chat", "kept"),
    shown=("portability", "exact", "f1", "chat_f1", "repeats", "contradicted", "context_tokens", *OF_CLAIMS),
)
