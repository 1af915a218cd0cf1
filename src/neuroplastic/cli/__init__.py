"""The command line: parse, call, print. Every command is a thin layer over the Python interface.

Nothing heavy is imported before a command needs it, so that `npt --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from tyro.conf import FlagCreatePairsOff

from .. import __version__
from ..console import as_json, note
from ..errors import CheckFailed, NPTError
from .common import app, arguments

# Importing them is what adds the commands, in the order in which they are listed.
# isort: off
from ..cli import model  # noqa: F401
from ..cli import learn  # noqa: F401
from ..cli import edit_commands as ledger  # noqa: F401
from ..cli import exchange  # noqa: F401
from ..cli import train_command as train  # noqa: F401
from ..cli import evaluate  # noqa: F401
from ..cli import studio_command as studio  # noqa: F401
# isort: on

DESCRIPTION = """Neuro-Plastic Transformer: turn context into weights, and take it back.

First steps:
  npt demo                                     the whole story on a real model
  npt convert smollm2-135m W                   make a plastic model in the folder W
  npt fidelity W                               is it still itself?
  npt inject W "The Eiffel Tower is located in the city of Rome." --name tower
  npt ask W "You can visit the Eiffel Tower in the city of"
  npt undo W tower                             bit for bit as it was

Exit status: 0 done, 1 a check failed, 2 bad input.
With --json, standard output is one JSON object. npt --version prints the version."""


def main(args: Sequence[str] | None = None) -> int:
    """Entry point of `npt`. Returns the exit status."""
    args = list(sys.argv[1:] if args is None else args)
    try:
        try:
            return _run(args)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, such as `head`, has seen enough; at exit, Python would flush once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as of a program that SIGPIPE ends


def _run(args: list[str]) -> int:
    arguments[:] = args
    if args == ["--version"]:
        print(f"npt {__version__}")
        return 0
    try:
        return app.cli(prog="npt", description=DESCRIPTION, args=args or ["--help"], config=(FlagCreatePairsOff,)) or 0
    except (NPTError, CheckFailed) as e:
        if "--json" in args:
            print(as_json({"error": str(e)}))
        note(f"npt: {e}")
        return 2 if isinstance(e, NPTError) else 1
    except KeyboardInterrupt:
        note("npt: interrupted")
        return 130
