"""The log of a training as trackers take it, through Accelerate."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

from ..errors import NPTError


@contextmanager
def tracking(accelerator: Any, name: str, settings: Mapping[str, Any]) -> Iterator[None]:
    """A run of the trackers that `accelerator` was made with, if any; it ends even if training breaks down.

    What they have to say goes to standard error. Raises NPTError if one cannot begin.
    """
    try:
        with redirect_stdout(sys.stderr):
            accelerator.init_trackers(name, config=as_text(settings))
    except Exception as e:  # each tracker has errors of its own
        raise NPTError(f"the tracker cannot begin: {' '.join(str(e).split())}") from None
    try:
        yield
    finally:
        with redirect_stdout(sys.stderr):
            for tracker in accelerator.trackers:
                _finish(tracker)


def _finish(tracker: Any) -> None:
    if tracker.name == "trackio":  # the run's own finish(), which is Accelerate's way, is followed by another at exit
        import trackio

        trackio.finish()
    else:
        tracker.finish()


def as_text(settings: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Settings without mappings inside; what is neither a number nor a truth value is written out."""
    return {n: v if isinstance(v, bool | int | float) else str(v) for n, v in flat(settings).items()}


def numbers(entry: Mapping[str, Any]) -> dict[str, int | float]:
    """What can be drawn of a line of the log; its step is given to trackers beside it."""
    return {n: v for n, v in flat(entry).items() if isinstance(v, int | float) and n != "step"}


def flat(entries: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in mappings inside, under the names of both."""
    found: dict[str, Any] = {}
    for name, value in entries.items():
        found |= {f"{name}.{n}": v for n, v in flat(value).items()} if isinstance(value, Mapping) else {name: value}
    return found
