"""A studio that runs: the real server on a tiny workspace, in a thread of the test's own process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import pytest

import neuroplastic as npt
from neuroplastic.studio.server import Server, address, application, door_for, listen

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('no such role') }}{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
Opening = Callable[..., AbstractContextManager[str]]


@pytest.fixture
def opened(tmp_path: Path) -> Opening:
    """Serves a workspace while it lasts, and gives its address."""

    @contextmanager
    def serving(ws: npt.Workspace, token: str | None = None) -> Iterator[str]:
        exports = tmp_path / "exports"
        exports.mkdir()
        door = door_for("127.0.0.1", token)
        with listen(door.host, 0) as sock:
            server = Server(application(ws, door, exports))
            thread = threading.Thread(target=server.run, args=([sock],))
            thread.start()
            try:
                yield address(door, sock)
            finally:
                server.should_exit = True
                thread.join()

    return serving


@pytest.fixture
def studio(workspace: npt.Workspace, opened: Opening) -> Iterator[str]:
    """The address of a studio on the tiny workspace, which can converse."""
    workspace.tokenizer.chat_template = CHAT_TEMPLATE
    with opened(workspace) as at:
        yield at


@pytest.fixture
def client(studio: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=studio, timeout=60) as client:
        yield client
