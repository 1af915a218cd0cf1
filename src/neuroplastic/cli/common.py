"""What the commands share: the app, their arguments, the workspace they work on, and how results are printed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional

from ..console import Terminal, as_json, status

if TYPE_CHECKING:
    from ..workspace.workspace import Workspace

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
