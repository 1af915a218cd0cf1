"""The methods that a suite compares: ways to make a model answer as a record wants, for as long as it is asked.

A method is a context manager. Inside it `engine.model` answers as taught; after it the model is bit for bit as before.
It may be entered while others are (sequential edits): it then comes on top of them, and is left before they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

from ..editing.inject_options import InjectOptions, Method
from ..errors import NPTError
from .records import Context, Record

if TYPE_CHECKING:
    from ..editing.engine import EditableModel

WITHOUT_EDIT = ("unedited", "prompt")
"""What methods are compared with: the model as it is, and with the statement before every prompt."""


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
    known = (*WITHOUT_EDIT, *get_args(Method))
    for method in methods:
        if method not in known:
            raise NPTError(f"method must be one of {', '.join(known)}, not {method!r}")


def editing_method(method: str) -> EditingMethod:
    """The method of that name: `unedited`, `prompt`, or a method of `InjectOptions` as it is by default."""
    check_methods([method])
    if method == "unedited":
        return unedited
    if method == "prompt":
        return in_prompt
    return injected(InjectOptions(method))  # type: ignore[arg-type]


@contextmanager
def unedited(engine: EditableModel, record: Record) -> Iterator[Taught]:
    """The model as it is."""
    yield Taught(weights=False)


@contextmanager
def in_prompt(engine: EditableModel, record: Record) -> Iterator[Taught]:
    """The statement as context, which costs tokens with every prompt."""
    yield Taught(context=f"Fact: {record.statement}\n", weights=False)


def injected(options: InjectOptions) -> EditingMethod:
    """An edit as `npt inject` makes it, after all others. It is given the statement, or the question and the
    answer, and not the subject."""

    @contextmanager
    def inject(engine: EditableModel, record: Record) -> Iterator[Taught]:
        active = engine.ledger.active
        (edit,) = engine.make([record.fact], options, [f"eval-{len(active) + 1}"])
        last = max((e.sequence for e in active), default=0)
        with engine.only((*active, replace(edit, sequence=last + 1))):
            yield Taught(edit.report["seconds"])

    return inject
