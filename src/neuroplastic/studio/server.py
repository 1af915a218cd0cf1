"""The studio's web server: its routes, and its life from the first line printed to Ctrl-C."""

from __future__ import annotations

import re
import secrets
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ..cli import demo
from ..console import note
from ..editing.edit import Edit
from ..editing.inject_options import InjectOptions, Method, Start
from ..errors import CheckFailed, NPTError
from ..studio import asking, forms, looking, teaching
from ..studio import edit_table as ledger
from .access import Access, Guard, is_loopback
from .jobs import Busy, JobQueue, Stopped, Tell
from .openai import OpenAI
from .stream import answer, error_event, event_line, events, finished, stream

if TYPE_CHECKING:
    from ..workspace.workspace import Workspace

STATIC = Path(str(files(__package__) / "static"))
EXAMPLES = {
    "prompt": demo.QUESTIONS[1][1],
    "track": f"{demo.ANSWER}, Paris",
    "statement": demo.STATEMENT,
    "paraphrases": demo.QUESTIONS[1][1],
    "neighbours": demo.QUESTIONS[2][1],
    "text": demo.STATEMENT,
}
"""What an empty field of the page stands for."""


class Studio:
    """The endpoints that the page uses, each a function of the workspace that runs as a job."""

    def __init__(self, ws: Workspace, exports: Path):
        self.ws, self.exports = ws, exports
        self.packed: dict[str, Path] = {}
        self._jobs: JobQueue | None = None
        self._listed: tuple[tuple[Edit, ...], tuple[str, ...], dict[str, Any]] | None = None

    @property
    def jobs(self) -> JobQueue:
        assert self._jobs is not None, "the queue exists from the start of the application to its end"
        return self._jobs

    @asynccontextmanager
    async def open(self, app: Starlette) -> AsyncIterator[None]:
        self._jobs = JobQueue()
        try:
            yield
        finally:
            await self.jobs.close()

    # --- endpoints -------------------------------------------------------------------------------------------------

    async def index(self, request: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def state(self, request: Request) -> Response:
        starts = sorted(get_args(Start), key=lambda s: s != InjectOptions.start)  # the default comes first
        model = self.ws.info()
        return answer({"model": model, "examples": EXAMPLES, "methods": get_args(Method), "starts": starts})

    async def board(self, request: Request) -> Response:
        async def lines() -> AsyncIterator[str]:
            async for state in self.jobs.board.read():
                yield event_line(state)

        return events(lines())

    async def stop(self, request: Request) -> Response:
        self.jobs.stop()
        return answer({})

    async def ask(self, request: Request) -> Response:
        form = await self._form(request, asking.Ask)
        return stream(self.jobs.submit("answering", lambda tell: asking.ask(self.ws, form, tell)))

    async def teach(self, request: Request) -> Response:
        form = await self._form(request, teaching.Teach)
        _ = form.facts, form.options  # bad input is answered at once
        return stream(self.jobs.submit("teaching", lambda tell: teaching.teach(self.ws, form, tell), changes=True))

    async def edits(self, request: Request) -> Response:
        return await self._done(request, "asking the edits again", self._table)

    async def edit(self, request: Request) -> Response:
        name = request.path_params["name"]
        return await self._done(request, f"showing {name}", lambda: ledger.show(self.ws, name))

    async def change(self, request: Request) -> Response:
        name, action = request.path_params["name"], request.path_params["action"]
        if action not in ("undo", "redo", "drop"):
            raise NPTError(f"an edit can be undone, redone or dropped, not {action!r}")
        work = lambda: ledger.change(self.ws, name, action)  # noqa: E731
        return await self._done(request, f"{action} {name}", work, changes=True)

    async def verify(self, request: Request) -> Response:
        return await self._done(request, "verifying", lambda: ledger.verify(self.ws))

    async def take_in(self, request: Request) -> Response:
        form = await self._form(request, ledger.Import)
        return await self._done(request, "taking edits in", lambda: ledger.take_in(self.ws, form), changes=True)

    async def look(self, request: Request) -> Response:
        form = await self._form(request, looking.Look)
        return await self._done(request, "looking inside", lambda: looking.look(self.ws, form))

    async def cell(self, request: Request) -> Response:
        form = await self._form(request, looking.Cell)
        return await self._done(request, "looking inside", lambda: looking.cell(self.ws, form))

    async def export(self, request: Request) -> Response:
        form = await self._form(request, ledger.Export)

        def work(tell: Tell) -> dict[str, Any]:
            number = secrets.token_hex(8)
            folder = self.exports / number
            folder.mkdir()
            packed, report = ledger.export(self.ws, form, folder)
            self.packed[number] = packed
            return {"report": report, "file": packed.name, "address": f"/api/exports/{number}"}

        return stream(self.jobs.submit("exporting", work))

    async def exported(self, request: Request) -> Response:
        if (file := self.packed.get(request.path_params["number"])) is None:
            return answer({"error": {"message": "there is no such export; make it again"}}, 404)
        return FileResponse(file, filename=file.name)

    # --- what they share -------------------------------------------------------------------------------------------

    def _table(self) -> dict[str, Any]:
        """Made once for all open pages, until the edits are others."""
        edits, undone, known = self._listed or (None, None, {})
        if edits is not self.ws.edits or undone != self.ws.undone:
            known = ledger.listed(self.ws)
            self._listed = self.ws.edits, self.ws.undone, known
        return known

    async def _form(self, request: Request, form: type[forms.Form]) -> forms.Form:
        return forms.read(form, forms.parse(await request.body()))

    async def _done(self, request: Request, what: str, work: Callable[[], Any], changes: bool = False) -> Response:
        return answer(await finished(request, self.jobs.submit(what, lambda tell: work(), changes)))


def application(ws: Workspace, access: Access, exports: Path) -> Starlette:
    """The whole server but for its sockets. `exports` is an empty folder for what is made to be fetched."""
    studio = Studio(ws, exports)
    openai = OpenAI(ws, lambda: studio.jobs)

    def refused(request: Request, error: Exception) -> Response:
        status, event = error_event(error)
        return answer({"error": event}, status)

    routes = [
        Route("/", studio.index),
        Mount("/static", StaticFiles(directory=STATIC)),
        Route("/api/state", studio.state),
        Route("/api/board", studio.board),
        Route("/api/stop", studio.stop, methods=["POST"]),
        Route("/api/ask", studio.ask, methods=["POST"]),
        Route("/api/teach", studio.teach, methods=["POST"]),
        Route("/api/edits", studio.edits),
        Route("/api/edits/{name}", studio.edit),
        Route("/api/edits/{name}/{action}", studio.change, methods=["POST"]),
        Route("/api/verify", studio.verify, methods=["POST"]),
        Route("/api/import", studio.take_in, methods=["POST"]),
        Route("/api/look", studio.look, methods=["POST"]),
        Route("/api/cell", studio.cell, methods=["POST"]),
        Route("/api/export", studio.export, methods=["POST"]),
        Route("/api/exports/{number}", studio.exported),
        Route("/v1/models", openai.models),
        Route("/v1/models/{name:path}", openai.model),
        Route("/v1/completions", openai.completions, methods=["POST"]),
        Route("/v1/chat/completions", openai.chat, methods=["POST"]),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Guard, access=access)],
        exception_handlers=dict.fromkeys((NPTError, CheckFailed, Stopped, Busy, Exception), refused),
        lifespan=studio.open,
    )
    app.state.studio = studio
    return app


class Server(uvicorn.Server):
    """Ends its work before it waits for connections to end: an open page's would last for ever."""

    def __init__(self, app: Starlette):
        self.app = app
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="on",
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=5,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        studio: Studio = self.app.state.studio
        await studio.jobs.close()
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A socket on which requests wait from now on. Raises NPTError if there can be none."""
    if not host.strip():
        raise NPTError("the host is empty; leave --host out, or name an address of this machine")
    if not 0 <= port < 65536:
        raise NPTError(f"port must be from 0 to 65535, not {port}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as e:  # a name too long for DNS is the latter
        why = getattr(e, "strerror", None) or str(e)
        raise NPTError(f"cannot listen on {host}, port {port}: {why}; choose another --host or --port") from None


def serve(ws: Workspace, sock: socket.socket, access: Access) -> None:
    """Serves until it is interrupted or terminated; then stops what is being worked on and leaves the workspace
    whole."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="npt-studio-") as exports:
        server = Server(application(ws, access, Path(exports)))
        with suppress(KeyboardInterrupt):  # uvicorn has shut down, and raises again what it was sent
            server.run(sockets=[sock])
        note("npt: the studio is closed")


def access_for(host: str, token: str | None) -> Access:
    """Access without a token at this machine itself, and elsewhere with the one given, or a new one."""
    if token is not None and not re.fullmatch(r"[A-Za-z0-9_-]{8,}", token):
        raise NPTError("a token has at least 8 letters, digits, dashes and underscores")
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(24)
    return Access(host.lower(), token)


def address(access: Access, sock: socket.socket) -> str:
    """What to open in a browser."""
    port = sock.getsockname()[1]
    host = f"[{access.host}]" if ":" in access.host else access.host
    return f"http://{host}:{port}/" + (f"?token={access.token}" if access.token else "")
