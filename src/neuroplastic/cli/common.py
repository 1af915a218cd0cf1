"""What the commands share: the app, their arguments, the workspace they work on, and how results are printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import FlagCreatePairsOff, Positional

from .. import __version__
from ..console import Terminal, as_json, note, status
from ..errors import CheckFailed, NPTError

if TYPE_CHECKING:
    from ..workspace.workspace import Workspace

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

app = tyro.extras.SubcommandApp()

ModelArg = Annotated[Positional[str], tyro.conf.arg(metavar="MODEL")]
WorkspaceArg = Annotated[Positional[Path], tyro.conf.arg(metavar="WORKSPACE")]
NameArg = Annotated[Positional[str], tyro.conf.arg(metavar="NAME")]
PromptArg = Annotated[Positional[str], tyro.conf.arg(metavar="PROMPT")]
StatementArg = Annotated[Positional[str | None], tyro.conf.arg(metavar="STATEMENT")]
DestArg = Annotated[Positional[Path], tyro.conf.arg(metavar="DEST")]
SourceArg = Annotated[Positional[Path], tyro.conf.arg(metavar="DIR")]
Json = Annotated[bool, tyro.conf.arg(help="Print one JSON object on standard output.")]

arguments: list[str] = []
"""The words of the command line that runs, for commands that must know which flags were given."""

LOADED: dict[Path, Workspace] = {}
"""The workspace of a shell, in which commands find it open."""


def open_workspace(path: Path) -> Workspace:
    """The workspace at `path`, loaded unless it is already."""
    if path in LOADED:
        return LOADED[path]
    from ..workspace.settings import read_settings
    from ..workspace.workspace import Workspace

    read_settings(path)  # bad input is answered before torch is asked for anything
    with status(f"opening {path}"):
        return Workspace.open(path)


def show_result(json: bool, result: dict[str, Any], human: Callable[[Terminal, dict[str, Any]], object]) -> int:
    """Prints one JSON object, or what `human` makes of it for a person; returns exit status 0."""
    if json:
        print(as_json(result))
    else:
        human(Terminal(), result)
    return 0


def run(args: Sequence[str]) -> int:
    """Runs one command, as `npt` or as a shell does; returns its exit status, and prints what went wrong."""
    arguments[:] = args
    if list(args) == ["--version"]:
        print(f"npt {__version__}")
        return 0
    try:
        return (
            app.cli(prog="npt", description=DESCRIPTION, args=list(args) or ["--help"], config=(FlagCreatePairsOff,))
            or 0
        )
    except (NPTError, CheckFailed) as e:
        if "--json" in args:
            print(as_json({"error": str(e)}))
        note(f"npt: {e}")
        return 2 if isinstance(e, NPTError) else 1
    except KeyboardInterrupt:
        note("npt: interrupted")
        return 130


def size_in_words(r: dict[str, Any]) -> str:
    """What an edit changes of the base: nothing if it is gated, else a share of each projection."""
    if r["gated"]:
        return "no weight of the base changes: units beside it act where the subject is read"
    largest = max(v for sites in r["relative_norm"].values() for v in sites.values())
    return f"largest |dW|/|W| of any projection: {largest:.2%}"
