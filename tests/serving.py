"""A studio that runs: the real server, in a thread of the test's own process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import neuroplastic as npt
from neuroplastic.studio.server import Server, access_for, address, application, listen

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('no such role') }}{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@contextmanager
def served(ws: npt.Workspace, exports: Path, token: str | None = None) -> Iterator[str]:
    """The address of a studio on `ws`, while it lasts."""
    exports.mkdir()
    door = access_for("127.0.0.1", token)
    with listen(door.host, 0) as sock:
        server = Server(application(ws, door, exports))
        thread = threading.Thread(target=server.run, args=([sock],))
        thread.start()
        try:
            yield address(door, sock)
        finally:
            server.should_exit = True
            thread.join()
