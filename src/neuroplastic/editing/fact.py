"""What is taught: an answer that should follow each of its questions, and the subject whose meaning changes.

A plain sentence is split into question and answer at its last word, or at the run of names that it ends with. The
subject is the longest run of names in the question; where there is none, it stays unknown, and every token of the
question takes its place (broader, and harder on neighbouring facts). Both can be given instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import NPTError
from ..files import read_text

PARTICLES = frozenset(["of", "de", "la", "du", "da", "di", "del", "van", "von", "der", "den", "le", "al", "bin", "ibn"])
"""Lower-case words inside names: University of Cambridge, Vincent van Gogh."""
OPENERS = frozenset(
    (  # noqa: SIM905
        "the a an in on at of for to by from what who whom whose where when which how why is are was were do does did "
        "can my our your his her its their this that these those there it he she they we i you"
    ).split()
)
"""Words that are capitalised only because a sentence begins with them."""
PUNCTUATION = ".,;:!?…。\"'“”‘’()[]"


@dataclass(frozen=True)
class Wording:
    """One way to put a fact: `answer` (with the space in front of it) behind `question`."""

    question: str
    answer: str
    subject: tuple[int, int] | None
    """where the subject stands in the question, in characters"""
    subject_given: bool = False
    """whether it was told, not found by the rule"""


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

    `answer`, where given, is what the sentence and every wording end with; else it is found. Raises NPTError for an
    empty sentence, and where the answer or the subject is not in a wording.
    """
    return Fact(statement, tuple(_wording(s, subject, answer) for s in (statement, *wordings)))


def asked(question: str, answer: str, wordings: Sequence[str] = (), subject: str | None = None) -> Fact:
    """The fact that answers `question`, and other wordings of the question, with `answer`."""
    for text, what in ((answer, "answer"), *((q, "question") for q in (question, *wordings))):
        if not text.strip():
            raise NPTError(f"the {what} is empty")
    answer = " " + answer.strip()
    questions = tuple(q.rstrip() for q in (question, *wordings))
    return Fact(questions[0] + answer, tuple(_asked(q, answer, subject) for q in questions))


def read_facts(path: Path) -> list[tuple[str | None, Fact]]:
    """The facts of a file, each with its name or None.

    A text file holds one statement a line; a .jsonl file objects with `statement`, or `question` and `answer`, and
    optionally `subject`, `wordings` (a list) and `name`. Raises NPTError, naming the line, where one is malformed.
    """
    lines = read_text(path).splitlines()
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


def question_and_answer(statement: str) -> tuple[str, str]:
    """A statement's last word, or the run of names it ends with, and what comes before: the question it answers.

    "The Bridge is in New York." -> ("The Bridge is in", " New York"). Punctuation behind the answer is left out. The
    question is empty where there is nothing but the answer.
    """
    said = statement.rstrip().rstrip(PUNCTUATION + " \n")
    words = [(m.start(), m[0]) for m in re.finditer(r"\S+", said)]
    if not words:
        return "", statement
    first = len(words) - 1
    while _is_name(words[first][1]):
        before = first - 1
        if before > 0 and words[before][1] in PARTICLES:
            before -= 1
        if before < 0 or not _is_name(words[before][1]) or words[before][1][-1] in PUNCTUATION:
            break
        first = before
    if first == 0:  # all of it a name: the last word is what there is to ask for
        first = len(words) - 1
    start = words[first][0]
    question = said[:start].rstrip()
    return question, said[len(question) :]


def find_subject(question: str) -> tuple[int, int] | None:
    """Where the longest run of names stands in `question`, in characters, without a possessive behind it.

    A capital that is there only because the sentence begins is none: these words, PARTICLES and possessives are
    English, elsewhere the subject may have to be given.
    """
    runs = (span for span in _runs_of_names(question) if question[slice(*span)].lower() not in OPENERS)
    return max(runs, key=lambda span: span[1] - span[0], default=None)


def _wording(sentence: str, subject: str | None, answer: str | None) -> Wording:
    if not sentence.strip():
        raise NPTError("the statement is empty; give a sentence such as 'The Eiffel Tower is in Rome.'")
    if answer is None:
        question, found = question_and_answer(sentence)
        return _asked(question, found, subject)
    said, wanted = sentence.rstrip().rstrip(PUNCTUATION), answer.strip().rstrip(PUNCTUATION)
    if not wanted or not said.endswith(wanted):
        raise NPTError(f"the statement {sentence!r} does not end with the answer {answer!r}")
    question = said[: -len(wanted)].rstrip()
    return _asked(question, said[len(question) :], subject)


def _asked(question: str, answer: str, subject: str | None) -> Wording:
    return Wording(question, answer, _subject(question, subject), subject is not None)


def _subject(question: str, given: str | None) -> tuple[int, int] | None:
    if given is None:
        return find_subject(question)
    start = question.find(given) if given.strip() else -1
    if start < 0:
        raise NPTError(f"the subject {given!r} is not in {question!r}, in front of the answer")
    return start, start + len(given)


def _is_name(word: str) -> bool:
    core = word.strip(PUNCTUATION)
    return bool(core) and (core[0].isupper() or core[0].isdigit())


def _runs_of_names(text: str) -> Iterator[tuple[int, int]]:
    """Spans of capitalised words and numbers, with particles between them; punctuation ends a run, an initial's dot
    does not."""
    run: tuple[int, int] | None = None
    particle = closed = False
    for m in re.finditer(r"\S+", text):
        word = m[0]
        if _is_name(word):
            start = m.start() + len(word) - len(word.lstrip(PUNCTUATION))
            if run is not None and (closed or start > m.start()):
                yield run
                run = None
            core = re.sub(r"['’]s?$", "", word.strip(PUNCTUATION))
            run = (start if run is None else run[0], start + len(core))
            initial = re.fullmatch(r"(\w\.)+", word) is not None
            if initial:
                run = (run[0], m.end())
            closed = not initial and run[1] < m.end()
            particle = False
        elif run is not None and word in PARTICLES and not particle and not closed:
            particle = True
        elif run is not None:
            yield run
            run, particle, closed = None, False, False
    if run is not None:
        yield run
