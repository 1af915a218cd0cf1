"""What a person sees: notes, progress bars and tables, all on standard error or through one console.

Standard output belongs to the result of a command, so that `--json` can be piped.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from rich.console import Console
from rich.text import Text

Progress = Callable[[int, int], None]
"""Called with (done, total) while work is done."""
Listener = Callable[[str, int, int], None]
"""Called with (what, done, total) while work is done; total is 0 if the length of the work is not known."""
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_ESCAPED_IN_JSON = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` as a terminal can show it: control characters other than a newline and a tab, and halves of surrogate
    pairs, are written as escapes, so that what a model or a file says cannot drive the terminal."""
    return _UNPRINTABLE.sub(_escape, text.replace("\r\n", "\n"))


def as_json(data: Any) -> str:
    """`data` as JSON on one line, whatever its reader takes for the end of a line: U+0085, U+2028 and U+2029, at which
    many split, are escaped, and so is what JSON itself lets through but no terminal or encoding takes."""
    text = json.dumps(data, ensure_ascii=False)
    return _ESCAPED_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def note(text: str) -> None:
    """One line on standard error."""
    print(printable(text), file=sys.stderr, flush=True)


class Terminal(Console):
    """A console that prints text as it is: brackets are no markup, `:smile:` is no emoji, and control characters are
    shown as escapes. What is to be bold or coloured says so by its style."""

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def print_styled(self, *parts: str | tuple[str, str]) -> None:
        """One line of parts; a part may be a pair of a text and its style."""
        pairs = ((p, "") if isinstance(p, str) else p for p in parts)
        self.print(Text.assemble(*(self.render_str(text, style=style) for text, style in pairs)))


def stderr_console() -> Terminal:
    return Terminal(stderr=True)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


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
    described = TextColumn("{task.description}", markup=False)
    columns = (described, BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Bar(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(printable(what), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def status(what: str) -> Iterator[None]:
    """A spinner on a terminal, nothing elsewhere; for work of unknown length."""
    console = stderr_console()
    if not console.is_terminal:
        yield
        return
    with console.status(console.render_str(what)):
        yield
