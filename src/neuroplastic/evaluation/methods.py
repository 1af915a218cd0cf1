"""The methods that a suite compares: ways to make a model answer as a record wants, for as long as it is asked.

A method is a context manager. Inside it `engine.model` answers as taught; after it the model is bit for bit as before.
It may be entered while others are (sequential edits): it then comes on top of them, and is left before they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, get_args

from ..editing.inject_options import InjectOptions, Method
from ..errors import NPTError
from ..text.tokens import context_length, encode
from .questions import longest_question
from .records import Context, Record
from .retrieval import Index

if TYPE_CHECKING:
    from ..editing.engine import EditableModel
    from ..editing.fact import Fact

Baseline = Literal["rome", "memit", "lora", "ft"]
"""Other people's methods, in `baselines`."""
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
    untaught: Mapping[str, str] = field(default_factory=dict)
    """by record, what of it could not be taught, and why"""


EditingMethod = Callable[["EditableModel", Record], AbstractContextManager[Taught]]
BatchMethod = Callable[["EditableModel", Sequence[Record]], AbstractContextManager[Taught]]
"""Many records by one call; `seconds` is then the time per record."""


def known_methods() -> tuple[str, ...]:
    """The names that `editing_method` takes."""
    return (*WITHOUT_EDIT, RETRIEVAL, *get_args(Method), *get_args(Baseline))


def check_methods(methods: Sequence[str]) -> None:
    """Raises NPTError for one that does not exist."""
    for method in methods:
        if method not in known_methods():
            raise NPTError(f"method must be one of {', '.join(known_methods())}, not {method!r}")


def why_not(engine: EditableModel, method: str) -> str | None:
    """Why no record can be taught to this model by a method; None if that depends on the record."""
    from ..editing.methods.learned import NO_INJECTOR

    return NO_INJECTOR if method == "learned" and engine.injector is None else None


def editing_method(method: str, statements: Sequence[str] = ()) -> EditingMethod:
    """The method of that name: `unedited`, `prompt`, `retrieval` of the best of `statements`, a method of
    `InjectOptions` as it is by default, or a baseline. Raises NPTError as `check_methods` and `Index` do."""
    check_methods([method])
    if method == "unedited":
        return unedited
    if method == "prompt":
        return in_prompt
    if method == RETRIEVAL:
        return retrieved(statements)
    if method in get_args(Baseline):
        from .baselines import BASELINES

        return BASELINES[method]
    return injected(InjectOptions(method))  # type: ignore[arg-type]


def batch_method(method: str) -> BatchMethod | None:
    """How that method teaches many records by one call; None if it has no form of its own for that, and would teach
    them one after another."""
    if method == "prompt":
        return all_in_prompt
    if method in get_args(Baseline):
        from .baselines import BATCHES

        return BATCHES.get(method)
    return all_injected(InjectOptions(method)) if method in get_args(Method) else None  # type: ignore[arg-type]


@contextmanager
def unedited(engine: EditableModel, record: Record) -> Iterator[Taught]:
    """The model as it is."""
    yield Taught(weights=False)


def in_prompt(engine: EditableModel, record: Record) -> AbstractContextManager[Taught]:
    """The statement as context, which costs tokens with every prompt. Raises NPTError as `all_in_prompt` does."""
    return all_in_prompt(engine, [record])


@contextmanager
def all_in_prompt(engine: EditableModel, records: Sequence[Record]) -> Iterator[Taught]:
    """The statements of all records as context: as many of the first ones as fit into the model's beside the longest
    question. Raises NPTError if the first one does not."""
    room = context_length(engine.model) - longest_question(engine.tokenizer, records)
    context = ""
    untaught: dict[str, str] = {}
    for i, record in enumerate(records):
        longer = context + as_context(record.statement)
        if (tokens := len(encode(engine.tokenizer, longer))) > room:
            if not context:
                raise NPTError(f"the statement has {tokens} tokens, and beside the questions there is room for {room}")
            untaught = {r.id: f"beside {i} statements there is no room for more in the prompt" for r in records[i:]}
            break
        context = longer
    yield Taught(context=context, weights=False, untaught=untaught)


def as_context(statement: str) -> str:
    return f"Fact: {statement}\n"


def retrieved(statements: Sequence[str]) -> EditingMethod:
    """All statements in an index, whichever record is asked: of these, the best one for each prompt is its context.
    A prompt that shares no word with any of them has none."""
    began = time.perf_counter()
    index = Index(statements)
    seconds = (time.perf_counter() - began) / len(statements)

    def context(prompt: str) -> str:
        best = index.best(prompt)
        return as_context(best) if best is not None else ""

    @contextmanager
    def look_up(engine: EditableModel, record: Record) -> Iterator[Taught]:
        yield Taught(seconds, context, weights=False)

    return look_up


def injected(options: InjectOptions) -> EditingMethod:
    """Edits as `npt inject` makes them, after all others. They are made from the statement, or from the question and
    the answer, not from the subject; those of a passage from its sentences, all in one call."""
    inject_all = all_injected(options)

    def inject(engine: EditableModel, record: Record) -> AbstractContextManager[Taught]:
        return inject_all(engine, [record])

    return inject


def all_injected(options: InjectOptions) -> BatchMethod:
    """The same for several records by one call. Of several facts of a record, those that cannot be taught are left
    out; raises NPTError if that leaves none."""

    @contextmanager
    def inject(engine: EditableModel, records: Sequence[Record]) -> Iterator[Taught]:
        active = engine.ledger.active
        facts: list[Fact] = []
        untaught: dict[str, str] = {}
        for record in records:
            some, why = teachable(engine, options, record)
            facts += some
            if why:
                untaught[record.id] = why
        edits = engine.make(facts, options, [f"eval-{len(active) + i}" for i in range(1, len(facts) + 1)])
        last = max((e.sequence for e in active), default=0)
        placed = [replace(e, sequence=last + i) for i, e in enumerate(edits, 1)]
        with engine.only((*active, *placed)):
            yield Taught(sum(e.report["seconds"] for e in edits) / len(records), untaught=untaught)

    return inject


def teachable(engine: EditableModel, options: InjectOptions, record: Record) -> tuple[list[Fact], str]:
    """The facts of a record, of several only those that the method can teach, and what is left out, if anything is.
    Raises NPTError if that is all of them."""
    facts = record.facts
    found: list[Fact] = []
    refused: list[NPTError] = []
    for fact in facts if len(facts) > 1 else ():
        try:
            engine.check([fact], options)
        except NPTError as e:
            refused.append(e)
        else:
            found.append(fact)
    if refused and not found:
        raise refused[0]
    return found or facts, left_out(len(refused), len(facts), str(refused[0])) if refused else ""


def left_out(some: int, of: int, why: str) -> str:
    """How many facts of a record a method leaves out."""
    return f"{some} of its {of} sentences {'is' if some == 1 else 'are'} not taught: {why}"
