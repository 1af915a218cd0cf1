"""Records taught so that they are in place at the same time, with those named that a method cannot teach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from ..errors import NPTError
from .methods import BatchMethod, EditingMethod, Taught
from .records import Record

if TYPE_CHECKING:
    from ..editing.engine import EditableModel


def one_after_another(teach: EditingMethod) -> BatchMethod:
    """A method that teaches one record, as one that teaches several: each stays in place while the next one is taught.
    The text before every question is that of all of them; one that is chosen for a question, that of the last."""

    @contextmanager
    def teach_all(engine: EditableModel, records: Sequence[Record]) -> Iterator[Taught]:
        with ExitStack() as stack:
            taught = [stack.enter_context(teach(engine, record)) for record in records]
            texts = [t.context for t in taught if isinstance(t.context, str)]
            context = "".join(texts) if len(texts) == len(taught) else taught[-1].context
            seconds = sum(t.seconds for t in taught) / len(taught)
            untaught = {record: why for t in taught for record, why in t.untaught.items()}
            yield Taught(seconds, context, any(t.weights for t in taught), untaught)

    return teach_all


def teach_group(
    stack: ExitStack, engine: EditableModel, records: Sequence[Record], teach: BatchMethod
) -> tuple[Taught | None, dict[str, str]]:
    """Enters a method for all records that it can teach, for as long as `stack` lasts; what it did, if there are any,
    and why it cannot teach the others.

    If it raises NPTError for all of them, each is tried alone, so that one record hinders no other.
    """
    try:
        return stack.enter_context(teach(engine, records)), {}
    except NPTError as e:
        refused = {records[0].id: str(e)} if len(records) == 1 else {}
        why = str(e)
    rest = []
    for record in records if len(records) > 1 else ():
        try:
            with teach(engine, [record]):
                rest.append(record)
        except NPTError as e:
            refused[record.id] = str(e)
    if not refused:  # they can be taught, but not with each other
        return None, {record.id: why for record in records}
    if not rest:
        return None, refused
    try:
        return stack.enter_context(teach(engine, rest)), refused
    except NPTError as e:
        return None, {record.id: refused.get(record.id, str(e)) for record in records}
