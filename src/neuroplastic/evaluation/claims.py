"""Further figures of a sentence that is taught, from the literature: pure functions that ask and judge.

reversed  the subject is found for the sentence without it, in chat (the "reversal curse", Berglund et al.
          2309.12288); absent if the rules of `editing/sentence.py` find no subject, or one that holds the answer
negated   "Is it true that ..?" is answered rather with Yes than with No, and "Is it false that ..?" rather with No
          than with Yes, by the log-probability of the first token
choice_new, choice_old, choice_unknown  which of three replies to the question in chat has the highest
          log-probability per token: the new answer, the old one (if the record has one), and "I don't know"
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..editing.fact import fact_of
from ..editing.sentence import OPENERS, find_words, trimmed
from .records import Claim, Question

OF_CLAIMS = ("reversed", "negated", "choice_new", "choice_old", "choice_unknown")
"""These figures."""
BLANK = "___"
UNKNOWN = "I don't know"
YES, NO = "Yes", "No"


def own_beginning(claim: Claim) -> str:
    """The statement up to its answer; empty if it begins with it, or does not have it."""
    place = find_words(claim.statement, claim.answer)
    return claim.statement[: place[0]].rstrip() if place is not None else ""


def reversed_question(claim: Claim) -> Question | None:
    """The question for the subject of a statement, which is left blank wherever it stands in it; None without one. An
    article before it stays."""
    subject = re.sub(r"^(the|an?)\s+", "", fact_of(claim.statement).subject or "", flags=re.IGNORECASE)
    if not subject or find_words(subject, claim.answer) or find_words(claim.answer, subject):
        return None
    text = claim.statement
    while place := find_words(text, subject):
        text = text[: place[0]] + BLANK + text[place[1] :]
    return Question("reversed", "chat", f'Who or what is missing in this sentence? "{text}"', (subject,))


def yes_or_no_questions(statement: str) -> tuple[str, str]:
    """Whether a statement is true, and whether it is false, as two questions."""
    text = trimmed(statement)
    first, _, rest = text.partition(" ")
    if first.lower() in OPENERS and first != "I":  # it is capitalised only because the sentence begins with it
        text = f"{first.lower()} {rest}"
    return f"Is it true that {text}?", f"Is it false that {text}?"


def negated(true: Sequence[float], false: Sequence[float]) -> bool:
    """Whether both questions are answered rightly, from the log-probabilities (of Yes, of No) after each of them."""
    return true[0] > true[1] and false[1] > false[0]


def choice(new: float, old: float | None, unknown: float) -> dict[str, float]:
    """1 for the likeliest of the three replies and 0 for the others; one that the record does not have is absent. Of
    equals it is not the new one."""
    replies = {"choice_unknown": unknown} | ({} if old is None else {"choice_old": old}) | {"choice_new": new}
    likeliest = max(replies, key=lambda name: replies[name])
    return {name: float(name == likeliest) for name in replies}
