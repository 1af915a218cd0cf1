"""Peak memory of a stretch of work, as the operating system counts it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROCESS = Path("/proc/self")


@dataclass
class PeakMemory:
    """Filled in when the stretch is over."""

    bytes: int | None = None
    """largest resident memory of the process beyond that at the start"""
    missing: str | None = None
    """why it is not known"""


@contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    """Measures the work done inside.

    Linux keeps the largest resident size of a process (VmHWM in /proc/self/status), and sets it back to the present
    one when 5 is written to /proc/self/clear_refs; elsewhere the result says that it is missing, and why. Memory on
    accelerators does not count, nor does memory that a library holds free and uses again; glibc is asked to give its
    own back first.
    """
    found = PeakMemory()
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if give_back is not None:  # other C libraries have no such function, and keep less
        give_back(0)
    try:
        (PROCESS / "clear_refs").write_text("5")
        start = _resident("VmRSS")
    except OSError as e:
        found.missing = f"peak memory is not measured: {e.strerror or e} ({PROCESS / 'clear_refs'}, which Linux has)"
        yield found
        return
    yield found
    found.bytes = max(0, _resident("VmHWM") - start)


def _resident(entry: str) -> int:
    """An entry of /proc/self/status, in bytes."""
    for line in (PROCESS / "status").read_text().splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{PROCESS / 'status'} has no {entry}")
