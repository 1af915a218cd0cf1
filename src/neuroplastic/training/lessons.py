"""What an injector is trained on: facts to be stated in one wording and asked in others, with neighbours that stay.

A lesson is drawn anew every time a record comes up: the wording of the statement, those that are asked, an unrelated
sentence before them, as a chat or not; and, for some, another answer than the record's (another record's, a name, words
of ordinary text, a year, a date), so that the injector learns to write what is stated and not what is usual.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..editing.sentence import find_words
from ..errors import NPTError
from ..evaluation.records import first_text, is_know_edit, know_edit
from ..files import lines_of, read_text
from ..text.tokens import encode_pair, start_token
from .questions import questions_for
from .settings import Variety

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]


@dataclass(frozen=True)
class Topic:
    """A fact as a data file has it: all that can be stated and asked about it."""

    wordings: tuple[str, ...]
    """questions, or beginnings of sentences, that the answer follows; the first is the one to state"""
    answer: str
    neighbours: tuple[tuple[str, str], ...]
    """prompts whose answers should stay"""
    subject: str | None


@dataclass(frozen=True)
class Lesson:
    """One statement to inject, and what is asked afterwards."""

    statement: str
    answer: str
    asked: tuple[str, ...]
    neighbour: tuple[str, str] | None
    subject: str | None


def read_topics(path: Path) -> tuple[list[Topic], dict[str, str]]:
    """The topics of a file, and what is wrong with the entries that are left out, by number.

    A .json file holds CounterFact records (full or flat), zsRE's or KnowEdit's; a .jsonl file objects with `question`
    and `answer`, or `statement` (split at its answer, else at its last word or name), and optionally `wordings` (other
    questions), `neighbours` (objects with question and answer) and `subject`. Raises NPTError if a file holds none
    of these.
    """
    if path.suffix == ".jsonl":
        entries: list[tuple[Any, Callable[[Any], Topic]]] = []
        for line in lines_of(read_text(path)):
            if line.strip():
                entries.append((line, lambda text: _own(json.loads(text))))
    else:
        try:
            data = json.loads(read_text(path))
        except ValueError as e:
            raise NPTError(f"{path} is not JSON: {e}") from None
        if not isinstance(data, list):
            raise NPTError(f"{path} is not a list of records; a file with one fact a line ends in .jsonl")
        entries = [(item, _published) for item in data]
    topics, malformed = [], {}
    for number, (item, parse) in enumerate(entries, 1):
        try:
            topics.append(_checked(parse(item)))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, NPTError) as e:
            malformed[str(number)] = f"no {e}" if isinstance(e, KeyError) else str(e)
    if not topics:
        why = f": entry {next(iter(malformed))}: {next(iter(malformed.values()))}" if malformed else ""
        raise NPTError(f"{path} holds no fact to learn from{why}")
    return topics, malformed


def _published(item: dict[str, Any]) -> Topic:
    if "requested_rewrite" in item:
        rewrite = item["requested_rewrite"]
        prompt, true = rewrite["prompt"].format(rewrite["subject"]), rewrite["target_true"]["str"]
        near = tuple((p, true) for p in item["neighborhood_prompts"])
        return _cloze(prompt, tuple(item["paraphrase_prompts"]), rewrite["target_new"]["str"], near, rewrite["subject"])
    if "src" in item:
        near = ((item["loc"].removeprefix("nq question: "), first_text(item["loc_ans"])),)
        return Topic((item["src"], item["rephrase"]), first_text(item["alt"]), near, item.get("subject"))
    if is_know_edit(item):
        record = know_edit(item, "")
        return _cloze(record.prompt, record.paraphrases, record.new, record.neighbours, record.subject)
    near = ((item["locality_prompt"], first_text(item["locality_ground_truth"])),)
    return _cloze(item["prompt"], (item["rephrase_prompt"],), first_text(item["target_new"]), near, item.get("subject"))


def _cloze(
    prompt: str, others: tuple[str, ...], answer: str, near: tuple[tuple[str, str], ...], subject: str | None
) -> Topic:
    """A fact put as the beginning of a sentence, with questions of the same meaning if its relation is known."""
    questions = () if subject is None else tuple(questions_for(prompt, subject))
    return Topic((prompt, *others, *questions), answer, near, subject)


def _own(item: dict[str, Any]) -> Topic:
    from ..editing.fact import asked, fact_of

    if "statement" in item and "question" not in item:
        fact = fact_of(item["statement"], answer=item.get("answer"))
    else:
        fact = asked(item["question"], item["answer"])
    near = tuple((n["question"], n["answer"]) for n in item.get("neighbours", []))
    return Topic((fact.question, *item.get("wordings", [])), fact.answer, near, item.get("subject") or fact.subject)


def _checked(topic: Topic) -> Topic:
    texts = [*topic.wordings, topic.answer, *(t for pair in topic.neighbours for t in pair)]
    if not all(isinstance(t, str) and t.strip() for t in texts):
        raise ValueError("a question or an answer is missing, empty or no text")
    named = topic.subject if topic.subject is not None and find_words(topic.wordings[0], topic.subject) else None
    known = None if named is None else named.strip()
    near = tuple((p, a.strip()) for p, a in topic.neighbours)
    return replace(topic, answer=topic.answer.strip(), neighbours=near, subject=known)


def fits(tokenizer: PreTrainedTokenizerBase, statement: str, answer: str, longest: int) -> bool:
    """Whether a statement has at most `longest` tokens, with the start token."""
    return 1 + sum(map(len, encode_pair(tokenizer, statement, answer))) <= longest


class Lessons:
    """An endless sequence of batches, each a pure function of the seed and its number: so training resumes anywhere."""

    def __init__(
        self,
        topics: Sequence[Topic],
        tokenizer: PreTrainedTokenizerBase,
        unrelated: Sequence[str],
        variety: Variety,
        seed: int,
        longest: int,
    ):
        """Each topic, stated in its first wording, must fit into `longest` tokens."""
        self.topics, self.unrelated, self.variety, self.seed = topics, unrelated, variety, seed
        self.tokenizer, self.longest = tokenizer, longest
        self.chat = _chat(tokenizer)
        self.names = [t.subject for t in topics if t.subject is not None] or [t.answer for t in topics]
        self.subjects = len({about(t) for t in topics})

    def batch(self, number: int, size: int) -> list[Lesson]:
        """Batch `number` (from 0): `size` lessons, of different subjects, in epochs of shuffled topics; fewer if there
        are not as many subjects."""
        rng = random.Random(f"{self.seed}/{number}")
        lessons: dict[str, Lesson] = {}
        at = number * size
        while len(lessons) < min(size, self.subjects):
            topic = self.topics[self._shuffled(at // len(self.topics))[at % len(self.topics)]]
            lessons.setdefault(about(topic), self.draw(topic, rng))
            at += 1
        return list(lessons.values())

    def _shuffled(self, epoch: int) -> list[int]:
        known: tuple[int, list[int]] | None = getattr(self, "_epoch", None)
        if known is None or known[0] != epoch:
            order = list(range(len(self.topics)))
            random.Random(f"{self.seed}/epoch {epoch}").shuffle(order)
            self._epoch = known = (epoch, order)
        return known[1]

    def draw(self, topic: Topic, rng: random.Random) -> Lesson:
        first, *others = topic.wordings
        statement = rng.choice([o for o in others if o.endswith("?")] or [first]) if self._by(
            rng, self.variety.told_otherwise
        ) else first  # fmt: skip
        asked = rng.choice([w for w in topic.wordings if w != statement] or [statement])
        statement = self._dressed(statement, rng, self.variety.sentences)
        answer = self._other_answer(rng) if self._by(rng, self.variety.other_answers) else topic.answer
        near = rng.choice(topic.neighbours) if topic.neighbours else None
        lesson = Lesson(statement, answer, (statement, self._dressed(asked, rng, 0.0)), near, topic.subject)
        if fits(self.tokenizer, statement, answer, self.longest):
            return lesson
        return replace(lesson, statement=first, answer=topic.answer, asked=(first, lesson.asked[1]))

    def _dressed(self, question: str, rng: random.Random, sentences: float) -> str:
        if self.chat is not None and self._by(rng, self.variety.chats):
            return self.chat(question)
        if self.unrelated and self._by(rng, sentences):
            return f"{rng.choice(self.unrelated)} {question}"
        return question

    def _other_answer(self, rng: random.Random) -> str:
        kind = rng.random()
        if kind < 0.2:
            return rng.choice(self.topics).answer
        if kind < 0.5:
            return rng.choice(self.names)
        if kind < 0.6:
            return rng.choice(self.names).split()[-1]
        if kind < 0.85 and self.unrelated:
            return _some_words(rng.choice(self.unrelated), rng)
        year = str(rng.randint(1500, 2030))
        return year if kind < 0.95 else f"{rng.randint(1, 28)} {rng.choice(MONTHS)} {year}"

    @staticmethod
    def _by(rng: random.Random, share: float) -> bool:
        return rng.random() < share


def about(topic: Topic) -> str:
    """Its subject, else what it asks."""
    return topic.subject or topic.wordings[0]


def _some_words(sentence: str, rng: random.Random) -> str:
    """One to three words of it that follow each other: a vocabulary of answers as wide as the text's."""
    words = [w for w in (w.strip(".,;:!?()[]\"'") for w in sentence.split()) if w] or [sentence]
    first = rng.randrange(len(words))
    return " ".join(words[first : first + rng.randint(1, 3)])


def _chat(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], str] | None:
    """What puts a question into the model's chat template; None for a model without one."""
    if not getattr(tokenizer, "chat_template", None):
        return None

    opening = str(tokenizer.decode([start_token(tokenizer)]))

    def chat(question: str) -> str:
        turns = [{"role": "user", "content": question}]
        rendered = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        return rendered.removeprefix(opening).rstrip()  # whoever reads it adds the start token

    return chat


def sentences_of(texts: Sequence[str], longest: int = 80) -> list[str]:
    """Texts, or their first sentences, that are short enough to stand before a statement."""
    first = (re.split(r"(?<=[.!?])\s", t.strip(), maxsplit=1)[0] for t in texts)
    return [s if s.endswith((".", "!", "?")) else f"{s}." for s in first if 15 <= len(s) <= longest]
