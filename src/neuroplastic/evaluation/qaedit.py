"""Suite `qaedit`: questions of users, with rephrasings and unrelated ones ("The Mirage of Model Editing", 2025).

A record has `prompt`, `target`, `rephrase` and `locality`, a list of objects with `loc`, an unrelated question. A
method is given the prompt and the target.

    own       the prompt as it is is continued with the target
    question  the target is given after `Question: PROMPT Answer:`
    worded    the same for the rephrasing
    chat      the same for the prompt in the model's chat template
    kept      of the unrelated questions, after `Question: ... Answer:`
    S         harmonic mean of question, worded and kept

`asking.py` has the rest.
"""

from __future__ import annotations

from typing import Any

from .asking import reference, score
from .records import Question, Record, first_text
from .suite import Suite


def parse(item: dict[str, Any], name: str) -> Record:
    asked, rephrased, target = item["prompt"], item["rephrase"], first_text(item["target"])
    target = target.rstrip("* ")  # a mark of the data's, which is no part of the answer
    questions = (
        Question("own", "text", asked),
        Question("question", "question", asked),
        Question("worded", "question", rephrased),
        Question("chat", "chat", asked),
    )
    unrelated = tuple(Question("kept", "question", entry["loc"]) for entry in item["locality"])
    if not unrelated:
        raise ValueError("'locality' is empty")
    return Record(name, asked, target, "", (rephrased,), (), questions=questions, unrelated=unrelated)


QAEDIT = Suite(
    name="qaedit",
    parse=parse,
    score=score,
    reference=reference,
    converses=True,
    parts_of_s=("question", "worded", "kept"),
    shown=("own", "chat", "exact", "f1", "chat_f1", "repeats", "contradicted", "context_tokens"),
)
