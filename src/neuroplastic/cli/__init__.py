"""The command line: parse, call, print. Every command is a thin layer over the Python interface.

Nothing heavy is imported before a command needs it, so that `npt --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from .common import run

# Importing them is what adds the commands, in the order in which they are listed.
# isort: off
from ..cli import model  # noqa: F401
from ..cli import learn  # noqa: F401
from ..cli import edit_commands  # noqa: F401
from ..cli import exchange  # noqa: F401
from ..cli import train_command  # noqa: F401
from ..cli import evaluate  # noqa: F401
from ..cli import studio_command  # noqa: F401
# isort: on


def main(args: Sequence[str] | None = None) -> int:
    """Entry point of `npt`. Returns the exit status."""
    args = list(sys.argv[1:] if args is None else args)
    try:
        try:
            return run(args)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, such as `head`, has seen enough; at exit, Python would flush once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as of a program that SIGPIPE ends
