"""What is taught: an answer that should follow each of its questions, and the subject whose meaning changes.

A plain sentence is split into question and answer at its last word, or at the name that it ends with. The subject is
the longest name in the question (sentence.py); if there is none, it stays unknown, and every token of the question
takes its place (broader, and harder on neighbouring facts). Both can be given instead, and the answer must be if the
sentence's script writes no spaces between words. Spaces that are wide, doubled or at an end count as one or none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import NPTError
from ..files import lines_of, read_text
from ..text.spaces import continuing, mostly_unspaced, plain_spaces
from .sentence import PUNCTUATION, balanced, beside_a_hyphen, cuts_a_word, find_subject, find_words, question_and_answer


@dataclass(frozen=True)
class Wording:
    """One way to state a fact: `question`, followed by `answer` (with the space before it)."""

    question: str
    answer: str
    subject: tuple[int, int] | None
    """where the subject stands in the question, in characters"""
    subject_given: bool = False
    """whether it was given, not found by the rule"""


@dataclass(frozen=True)
class Fact:
    """A statement, and its wordings: the first is the statement itself."""

    statement: str
    wordings: tuple[Wording, ...]

    @property
    def question(self) -> str:
        return self.wordings[0].question

    @property
    def answer(self) -> str:
        return self.wordings[0].answer

    @property
    def subject(self) -> str | None:
        span = self.wordings[0].subject
        return None if span is None else self.question[slice(*span)]


def fact_of(
    statement: str, wordings: Sequence[str] = (), subject: str | None = None, answer: str | None = None
) -> Fact:
    """The fact that a sentence and other wordings of it state.

    `answer`, if given, is what the sentence and every wording end with; otherwise it is found. Raises NPTError for an
    empty sentence, and if the answer or the subject is not in a wording.
    """
    sentences = [plain_spaces(s) for s in (statement, *wordings)]
    return Fact(sentences[0], tuple(_wording(s, subject, answer) for s in sentences))


def asked(question: str, answer: str, wordings: Sequence[str] = (), subject: str | None = None) -> Fact:
    """The fact that answers `question`, and other wordings of the question, with `answer`."""
    for text, what in ((answer, "answer"), *((q, "question") for q in (question, *wordings))):
        if not text.strip():
            raise NPTError(f"the {what} is empty")
    questions, answer = [plain_spaces(q) for q in (question, *wordings)], plain_spaces(answer)
    answers = [continuing(q, answer) for q in questions]
    asked_in = tuple(_asked(q, a, subject) for q, a in zip(questions, answers, strict=True))
    return Fact(questions[0] + answers[0], asked_in)


def read_facts(path: Path) -> list[tuple[str | None, Fact]]:
    """The facts of a file, each with its name or None.

    A text file holds one statement a line; a .jsonl file objects with `statement`, or `question` and `answer`, and
    optionally `subject`, `wordings` (a list) and `name`. Raises NPTError, naming the line, if one is malformed.
    """
    lines = lines_of(read_text(path))
    read = _fact_in_json if path.suffix == ".jsonl" else (lambda line: (None, fact_of(line.strip())))
    facts: list[tuple[str | None, Fact]] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                facts.append(read(line))
            except NPTError as e:
                raise NPTError(f"{path}, line {number}: {e}") from None
    if not facts:
        raise NPTError(f"{path} holds no statement")
    return facts


def _fact_in_json(line: str) -> tuple[str | None, Fact]:
    try:
        record = json.loads(line)
    except ValueError as e:
        raise NPTError(f"not JSON: {e}") from None
    if not isinstance(record, dict):
        raise NPTError("not an object")
    kinds = {"statement": str, "question": str, "answer": str, "subject": str, "name": str, "wordings": list}
    for key, value in record.items():
        if key not in kinds:
            raise NPTError(f"unknown field {key!r}; known are {', '.join(kinds)}")
        if not isinstance(value, kinds[key]) or (key == "wordings" and not all(isinstance(w, str) for w in value)):
            raise NPTError(f"{key} is of the wrong kind")
    name, subject, wordings = record.get("name"), record.get("subject"), record.get("wordings", [])
    if "statement" in record and "question" not in record:
        return name, fact_of(record["statement"], wordings, subject, record.get("answer"))
    if "question" in record and "answer" in record and "statement" not in record:
        return name, asked(record["question"], record["answer"], wordings, subject)
    raise NPTError("a fact has a statement, or a question and an answer")


def _wording(sentence: str, subject: str | None, answer: str | None) -> Wording:
    if not sentence:
        raise NPTError("the statement is empty; give a sentence such as 'The Eiffel Tower is in Rome.'")
    if answer is not None:
        question, found = _split_at(sentence, answer)
    else:
        question, found = question_and_answer(sentence)
        if mostly_unspaced(sentence):  # its last "word" may be all of it
            raise NPTError(
                f"the statement {sentence!r} has no spaces between its words, so its answer cannot be found; give it "
                "too, with --answer (the field `answer` in a .jsonl file)"
            )
    return _asked(question, found, subject)


def _split_at(sentence: str, answer: str) -> tuple[str, str]:
    """The sentence split at the answer that it ends with, punctuation aside; quotation marks right around the answer
    become part of it. Raises NPTError if it ends with another, or with a word that the answer is only a part of."""
    wanted = plain_spaces(answer)
    for words in (wanted, wanted.rstrip(PUNCTUATION)):
        start = sentence.rfind(words) if words.strip(PUNCTUATION) else -1
        if start >= 0 and not sentence[start + len(words) :].strip(PUNCTUATION + " "):
            break
    else:
        raise NPTError(f"the statement {sentence!r} does not end with the answer {answer!r}")
    end = start + len(words)
    if cuts_a_word(sentence, start, end) or beside_a_hyphen(sentence, start, end):
        raise NPTError(
            f"the answer {answer!r} is only a part of the word that {sentence!r} ends with; give whole words"
        )
    start, end = balanced(sentence, start, end)
    question = sentence[:start].rstrip()
    return question, sentence[len(question) : end]


def _asked(question: str, answer: str, subject: str | None) -> Wording:
    return Wording(question, answer, _subject(question, subject), subject is not None)


def _subject(question: str, given: str | None) -> tuple[int, int] | None:
    if given is None:
        return find_subject(question)
    found = find_words(question, given)
    if found is None:
        raise NPTError(f"the subject {given!r} is not in {question!r}, before the answer, as whole words")
    return found
