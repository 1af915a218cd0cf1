"""The methods that a suite compares: ways to make a model answer as a record wants, for as long as it is asked.

A method is a context manager. Inside it `engine.model` answers as taught; after it the model is bit for bit as before.
It may be entered while others are (sequential edits): it then comes on top of them, and is left before they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

from ..console import note
from ..editing.inject_options import InjectOptions, Method
from ..errors import NPTError
from ..text.tokens import encode_after
from .records import Context, Record
from .retrieval import Index

if TYPE_CHECKING:
    from ..editing.engine import EditableModel
    from ..editing.fact import Fact

WITHOUT_EDIT = ("unedited", "prompt")
"""What methods are compared with: the model as it is, and with the statement before every prompt."""
RETRIEVAL = "retrieval"
"""Another such method: of all statements of a run, the one that matches a prompt best stands before it."""


@dataclass(frozen=True)
class Taught:
    """What was done to the model."""

    seconds: float = 0.0
    """duration of the edit, without what is made once per model"""
    context: Context = ""
    """text that stands before every prompt while the record is asked"""
    weights: bool = True
    """whether weights changed; if not, nothing can have drifted and there is nothing to keep"""


EditingMethod = Callable[["EditableModel", Record], AbstractContextManager[Taught]]


def check_methods(methods: Sequence[str]) -> None:
    """Raises NPTError for one that does not exist."""
    known = (*WITHOUT_EDIT, RETRIEVAL, *get_args(Method))
    for method in methods:
        if method not in known:
            raise NPTError(f"method must be one of {', '.join(known)}, not {method!r}")


def editing_method(method: str, statements: Sequence[str] = ()) -> EditingMethod:
    """The method of that name: `unedited`, `prompt`, `retrieval` of the best of `statements`, or a method of
    `InjectOptions` as it is by default. Raises NPTError as `check_methods` and `Index` do."""
    check_methods([method])
    if method == "unedited":
        return unedited
    if method == "prompt":
        return in_prompt
    if method == RETRIEVAL:
        return retrieved(statements)
    return injected(InjectOptions(method))  # type: ignore[arg-type]


@contextmanager
def unedited(engine: EditableModel, record: Record) -> Iterator[Taught]:
    """The model as it is."""
    yield Taught(weights=False)


@contextmanager
def in_prompt(engine: EditableModel, record: Record) -> Iterator[Taught]:
    """The statement as context, which costs tokens with every prompt."""
    yield Taught(context=as_context(record.statement), weights=False)


def as_context(statement: str) -> str:
    return f"Fact: {statement}\n"


def retrieved(statements: Sequence[str]) -> EditingMethod:
    """All statements in an index, whichever record is asked: of these, the best one for each prompt is its context.
    A prompt that shares no word with any of them has none."""
    index = Index(statements)

    def context(prompt: str) -> str:
        best = index.best(prompt)
        return as_context(best) if best is not None else ""

    @contextmanager
    def look_up(engine: EditableModel, record: Record) -> Iterator[Taught]:
        yield Taught(context=context, weights=False)

    return look_up


def injected(options: InjectOptions) -> EditingMethod:
    """Edits as `npt inject` makes them, after all others. They are made from the statement, or from the question and
    the answer, not from the subject; those of a passage from its sentences, all in one call, without the sentences
    that are too long for the injector."""

    @contextmanager
    def inject(engine: EditableModel, record: Record) -> Iterator[Taught]:
        active = engine.ledger.active
        facts = _short_enough(engine, options, record)
        edits = engine.make(facts, options, [f"eval-{len(active) + n}" for n in range(1, len(facts) + 1)])
        last = max((e.sequence for e in active), default=0)
        with engine.only((*active, *(replace(e, sequence=last + n) for n, e in enumerate(edits, 1)))):
            yield Taught(sum(e.report["seconds"] for e in edits))

    return inject


def _short_enough(engine: EditableModel, options: InjectOptions, record: Record) -> list[Fact]:
    """The facts of a record, of several only those that the method's injector can read; all, if it can read none, so
    that the method says why. What is left out is noted."""
    facts, injector = record.facts, engine.injector if options.asks_injector else None
    if injector is None or len(facts) == 1:
        return facts
    longest = injector.config.max_length
    lengths = (1 + sum(map(len, encode_after(engine.tokenizer, f.question, f.answer))) for f in facts)
    short = [f for f, length in zip(facts, lengths, strict=True) if length <= longest]
    if short and len(short) < len(facts):
        note(
            f"npt: record {record.id}: {len(facts) - len(short)} of its {len(facts)} sentences are longer than the "
            f"{longest} tokens that the injector reads, and are not taught"
        )
    return short or facts
