"""The command that opens the studio."""

from __future__ import annotations

from ..console import printable
from ..extras import need_extra
from .common import WorkspaceArg, app, open_workspace


@app.command
def studio(workspace: WorkspaceArg, *, port: int = 8765, host: str = "127.0.0.1", token: str | None = None) -> int:
    """Open a page in which a person asks the model, teaches it, and sees what an edit does; Ctrl-C closes it.

    The page is at the address that is printed; before, a model never edited is measured once, which for one of 135M
    takes about a minute. /v1 beside it is an OpenAI-compatible interface to the same model.

    Args:
        workspace: The workspace.
        port: Port to listen on; 0 takes a free one.
        host: Address to listen on. Any other than this machine's own needs a token, which is printed.
        token: Token that opens the studio (default: none on this machine, a new one elsewhere).
    """
    need_extra("studio", "starlette", "uvicorn", "matplotlib", reason="the studio")
    from ..studio.server import access_for, address, listen, serve
    from ..workspace.settings import read_settings

    read_settings(workspace)
    access = access_for(host, token)
    with listen(host, port) as sock:
        ws = open_workspace(workspace)
        ws.engine.prepare()  # here, with its progress in the terminal, so that a visitor of the page need not wait
        print(printable(f"studio of {workspace}: {address(access, sock)}"), flush=True)
        serve(ws, sock, access)
    return 0
