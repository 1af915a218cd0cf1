"""What a person sees: notes, progress bars and tables, all on standard error or through one console.

Standard output belongs to the result of a command, so that `--json` can be piped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Progress = Callable[[int, int], None]
"""Called with (done, total) as work goes on."""
Listener = Callable[[str, int, int], None]
"""Called with (what, done, total) as work goes on; total is 0 where the length of the work is not known."""
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def note(text: str) -> None:
    """One line on standard error."""
    print(text, file=sys.stderr, flush=True)


def stderr_console() -> Console:
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def reported_to(listener: Listener) -> Iterator[None]:
    """While it lasts, progress of this thread goes to `listener`, not to the terminal; what it raises ends the work."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


def stage(what: str) -> None:
    """Work too short for a bar begins; for a listener alone."""
    if (listener := _listener.get()) is not None:
        listener(what, 0, 0)


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """A bar with the time left on a terminal; one plain line elsewhere."""
    if (listener := _listener.get()) is not None:
        listener(what, 0, 0)
        yield lambda done, total: listener(what, done, total)
        return
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = stderr_console()
    if not console.is_terminal:
        note(what)
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Bar(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def status(what: str) -> Iterator[None]:
    """A spinner on a terminal, nothing elsewhere; for work of unknown length."""
    console = stderr_console()
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield
