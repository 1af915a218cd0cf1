"""Records of an edit suite: one fact to be taught, its paraphrases, and its neighbourhood. Files that hold them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..editing.fact import Fact, asked, fact_of
from ..errors import NPTError
from ..extras import need_extra
from ..files import lines_of, read_text
from ..text.spaces import continuing, without_trailing_spaces
from .strict import normalise
from .teachable import facts_in

Context = str | Callable[[str], str]
"""What stands before a prompt: a text, or one chosen for the prompt."""
Form = Literal["text", "question", "chat"]


class Question(NamedTuple):
    """Something that the model answers by writing."""

    figure: str
    """what its answer counts for"""
    form: Form
    """continued as it is, between `Question:` and `Answer:`, or through the model's chat template"""
    text: str
    answers: tuple[str, ...] = ()
    """ways to write its answer; if there are none, the record's `new` and its aliases"""
    against: tuple[str, ...] = ()
    """answers that contradict its own `answers`"""


class Claim(NamedTuple):
    """A sentence that is taught, by itself or in a paragraph, and the question that it answers."""

    statement: str
    question: str
    answer: str
    old: str = ""
    """the answer that held before, if the data has one"""


def before(context: Context, prompt: str) -> str:
    """The text that stands before this prompt."""
    return context if isinstance(context, str) else context(prompt)


@dataclass(frozen=True)
class Record:
    """One edit: `prompt` should be followed by `new` instead of `true`; neighbours should keep their own."""

    id: str
    prompt: str
    new: str
    true: str
    paraphrases: tuple[str, ...]
    neighbours: tuple[tuple[str, str], ...]
    """prompts and their true answers"""
    subject: str | None = None
    """as the data marks it; it is not given to our own methods"""
    portability: tuple[tuple[str, str], ...] = ()
    """questions whose answers follow from the new fact, and these answers"""
    openings: tuple[str, ...] = ()
    """beginnings of texts about the subject, to be continued freely"""
    sentence: str = ""
    """the fact as people state it, if the record has it: then it is all that a method is given"""
    sentences: tuple[str, ...] = ()
    """those of `sentence`, if it is a passage of several facts; each that can be taught is given to a method"""
    aliases: tuple[str, ...] = ()
    """other ways to write `new`"""
    questions: tuple[Question, ...] = ()
    """what the model is asked where it answers by writing"""
    unrelated: tuple[Question, ...] = ()
    """of the same forms, about something else: their answers should stay what they are"""
    claims: tuple[Claim, ...] = ()
    """what the record teaches, sentence by sentence, to be judged true or false"""

    @property
    def statement(self) -> str:
        return self.sentence or self._joined

    @property
    def facts(self) -> list[Fact]:
        """What a method is given: one fact, or those of a passage. Raises NPTError if one cannot be taught."""
        if self.sentences:
            return list(facts_in(self.sentences))
        return [fact_of(self.sentence) if self.sentence else asked(self.prompt, self.new)]

    @property
    def _joined(self) -> str:
        return f"{without_trailing_spaces(self.prompt)}{continuing(self.prompt, self.new)}."

    def after(self, context: Context) -> Record:
        """The same prompts, with `context` before each of them."""
        if not context:
            return self

        def put(prompt: str) -> str:
            return before(context, prompt) + prompt

        return replace(
            self,
            prompt=put(self.prompt),
            paraphrases=tuple(put(p) for p in self.paraphrases),
            neighbours=tuple((put(p), answer) for p, answer in self.neighbours),
            portability=tuple((put(p), answer) for p, answer in self.portability),
            openings=tuple(put(p) for p in self.openings),
        )

    def check(self) -> None:
        """Raises ValueError if a prompt or an answer is missing, empty or no text."""
        pairs = (*self.neighbours, *self.portability)
        texts = [self.new, *self.aliases, *self.paraphrases, *self.openings, *(t for p in pairs for t in p)]
        if self.questions:
            every = (*self.questions, *self.unrelated)
            texts += [self.statement, *(t for q in every for t in (q.text, *q.answers, *q.against))]
        else:
            texts += [self.prompt, self.true]
        complete = bool(self.questions or (self.paraphrases and self.neighbours))
        if not (complete and all(isinstance(t, str) and t.strip() for t in texts)):
            raise ValueError("a prompt or an answer is missing, empty or no text")
        for answers in ((self.new,), *(q.answers for q in self.questions if q.answers)) if self.questions else ():
            if not any(map(normalise, answers)):
                raise ValueError(f"the answer {answers[0]!r} has no word that could be found")
        if not isinstance(self.true, str):
            raise ValueError("the old answer is no text")
        if not isinstance(self.subject, str | None):
            raise ValueError("the subject is no text")


def first_text(answer: Any) -> str:
    """An answer, or the first of a list of them (of lists, in KnowEdit, which gives aliases). Raises ValueError."""
    while isinstance(answer, list) and answer:
        answer = answer[0]
    if not isinstance(answer, str):
        raise ValueError("an answer is an empty list, or no text")
    return answer.strip()


def is_know_edit(item: dict[str, Any]) -> bool:
    """Whether a record is laid out as in KnowEdit (Zhang et al. 2401.01286), which EasyEdit reads."""
    return isinstance(item.get("locality"), dict) or ("labels" in item and "concept" in item)


def text_of(item: dict[str, Any], name: str) -> str:
    """The text that an entry has under a name. Raises KeyError if it has none, and ValueError if that is empty."""
    value = item[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name!r} is empty or no text")
    return value


def list_of(item: dict[str, Any], name: str) -> list[Any]:
    """The list that an entry has under a name. Raises as `text_of` does."""
    value = item[name]
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name!r} is empty or no list")
    return value


def know_edit(item: dict[str, Any], name: str) -> Record:
    """A record of KnowEdit: answers are lists of aliases, of which the first counts; `locality` and `portability` hold
    named groups of prompts. Raises ValueError for those of its files that name no paraphrase, or no short answer."""
    if "labels" in item:
        raise ValueError("it is one of WikiBio: a whole passage to be written, which this suite has no question for")
    paraphrase = item.get("rephrase_prompt") or item.get("rephrase")
    if not paraphrase:
        raise ValueError("it has no rephrase_prompt to measure paraphrases with (of KnowEdit, the zsRE file does)")
    return Record(
        name,
        item["prompt"],
        first_text(item["target_new"]),
        first_text(item["ground_truth"]),
        tuple(paraphrase) if isinstance(paraphrase, list) else (paraphrase,),
        _groups(item["locality"]),
        item.get("subject"),
        _groups(item.get("portability") or {}),
    )


def _groups(groups: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """The prompts of all groups with their first answers, without those that have an empty one, as EasyEdit has it."""
    pairs = ((e["prompt"], first_text(e["ground_truth"] or "")) for group in groups.values() for e in group or ())
    return tuple((prompt, answer) for prompt, answer in pairs if answer)


def one_hop(item: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """The question in a record's `portability`, with its answer; none if it has no such entry."""
    given = item.get("portability")
    return () if given is None else ((given["New Question"], given["New Answer"].strip()),)


def read_records(
    source: str | Path,
    parse: Callable[[dict[str, Any], str], Record],
    link: Callable[[Sequence[Record]], list[Record]] = list,
) -> tuple[list[Record], dict[str, str]]:
    """The records of `source`, and, by id, what is wrong with those that are malformed.

    `source` is a JSON file with a list, a .jsonl file with an object in each line, or else a folder or a Hugging Face
    id that the `datasets` library reads, followed by `:SPLIT` if there are several splits. `parse` makes a record of an
    entry and of the id that it has if it names none; `link` gives records what they take from others. Raises NPTError
    if the source cannot be read, or if all that it holds is malformed.
    """
    records: list[Record] = []
    malformed, known = {}, set()
    for number, item in enumerate(_entries(source)):
        name = str(number)
        try:
            if not isinstance(item, dict):
                raise TypeError("not an object")
            name = str(item.get("case_id", number))
            if name in known:
                name = f"{name} (entry {number})"
                raise ValueError("its id is that of an earlier one")
            record = parse(item, name)
            record.check()
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, NPTError) as e:
            malformed[name] = f"no {e}" if isinstance(e, KeyError) else str(e)
        else:
            known.add(name)
            records.append(record)
    if malformed and not records:
        name, why = next(iter(malformed.items()))
        raise NPTError(f"{str(source)!r} holds no record that this suite can use; record {name}: {why}")
    return link(records), malformed


def _entries(source: str | Path) -> list[Any]:
    path = Path(source)
    if path.is_file() and path.suffix == ".jsonl":
        return [_entry(line, path, number) for number, line in enumerate(lines_of(read_text(path)), 1) if line.strip()]
    if path.is_file():
        try:
            data = json.loads(read_text(path))
        except ValueError as e:
            raise NPTError(f"cannot read {str(path)!r}: {e}") from None
        if not isinstance(data, list):
            raise NPTError(f"{path} is not a list of records")
        return data
    if path.suffix in (".json", ".jsonl"):
        raise NPTError(f"there is no file {str(path)!r}")
    return _dataset(str(source))


def _entry(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as e:
        raise NPTError(f"{path}, line {number} is not JSON: {e}") from None


def _dataset(source: str) -> list[Any]:
    """The entries of a dataset that the `datasets` library reads, as plain dictionaries."""
    name, _, split = source.partition(":")
    need_extra("eval", "datasets", reason=f"there is no file {source!r}; to read it as a dataset")
    import datasets

    try:
        found = datasets.load_dataset(name)
    except Exception as e:  # the library raises whatever its back ends raise
        raise NPTError(f"{source!r} is no file, and cannot be loaded as a dataset: {e}") from None
    if not split and len(found) > 1:
        raise NPTError(f"{name!r} has several splits; name one: {', '.join(f'{name}:{s}' for s in found)}")
    if split and split not in found:
        raise NPTError(f"{name!r} has no split {split!r}; it has {', '.join(found)}")
    return list(found[split or next(iter(found))])


def choose(records: Sequence[Record], limit: int | None, seed: int) -> list[Record]:
    """The first `limit` records of a seeded shuffle. Raises NPTError if there is none."""
    if limit is not None and limit < 1:
        raise NPTError(f"limit must be at least 1, not {limit}")
    shuffled = list(records)
    random.Random(seed).shuffle(shuffled)
    if not shuffled:
        raise NPTError("there is no record that can be used")
    return shuffled[:limit]
