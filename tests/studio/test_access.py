"""Whom the studio answers: its own page, and who has its token."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest

import neuroplastic as npt
from neuroplastic.errors import NPTError
from neuroplastic.studio.access import Access
from neuroplastic.studio.server import access_for, listen
from serving import served

FACT = "The Golden Gate Bridge is located in the city of Madrid."


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:8765"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "192.168.0.7"}, 403),
        ({"Host": "["}, 403),
        ({"Host": ""}, 403),
        ({"Host": "localhost", "Origin": "http://localhost"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://localhost:3000"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
    ],
)
def test_only_the_own_page_is_let_in(client: httpx.Client, headers: dict[str, str], status: int) -> None:
    response = client.get("/api/state", headers=headers)
    assert response.status_code == status
    assert response.headers["x-content-type-options"] == "nosniff"


def test_another_sites_page_changes_nothing(client: httpx.Client, workspace: npt.Workspace) -> None:
    workspace.inject(FACT, "token", "bridge")
    for headers in (
        {"Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
        {"Host": "rebound.example"},
    ):
        assert client.post("/api/edits/bridge/undo", headers=headers).status_code == 403
    assert [e.name for e in workspace.edits] == ["bridge"]


def test_the_pages_policy(client: httpx.Client) -> None:
    policy = client.get("/").headers["content-security-policy"]
    for part in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"):
        assert part in policy
    assert "unsafe" not in policy
    page = client.get("/").text
    assert "http:" not in page
    assert "https:" not in page


def test_a_token_opens_the_studio(workspace: npt.Workspace, tmp_path: Path) -> None:
    token = "a-good-token-1"
    with served(workspace, tmp_path / "exports", token) as at, httpx.Client(base_url=at.partition("?")[0]) as client:
        assert at.endswith(f"?token={token}")
        for headers in ({}, {"Authorization": "Bearer nothing"}, {"Cookie": "npt_studio=x"}):
            for path in ("/", "/static/main.js", "/api/state", "/v1/models", f"/api/state?token={token}"):
                assert client.get(path, headers=headers).status_code == 401
        assert client.get("/?token=another").status_code == 401
        assert not client.cookies
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {token}"}).status_code == 200
        first = client.get("/", params={"token": token})
        assert first.status_code == 200
        assert "HttpOnly; SameSite=Strict" in first.headers["set-cookie"]
        assert client.get("/api/state").status_code == 200  # by the cookie


def test_another_host_needs_a_token() -> None:
    assert access_for("127.0.0.1", None).token is None
    assert access_for("::1", None).token is None
    first, second = access_for("0.0.0.0", None), access_for("0.0.0.0", None)
    assert first.token is not None
    assert first.token != second.token
    assert len(first.token) >= 24
    assert access_for("0.0.0.0", "my-own-token").token == "my-own-token"
    for token in ("short", "with spaces in", "ünterschied", ""):
        with pytest.raises(NPTError, match="a token has"):
            access_for("0.0.0.0", token)
    door = Access("0.0.0.0", "my-own-token")
    assert door.answers_to("192.168.0.7")
    assert door.answers_to(socket.gethostname().lower())
    assert not door.answers_to("evil.example")


def test_where_it_cannot_listen() -> None:
    with listen("127.0.0.1", 0) as sock, pytest.raises(NPTError, match="choose another --host or --port"):
        listen("127.0.0.1", sock.getsockname()[1])
    with pytest.raises(NPTError, match="from 0 to 65535"):
        listen("127.0.0.1", 70_000)
    with pytest.raises(NPTError, match="cannot listen on"):
        listen("a" * 300, 0)
    with pytest.raises(NPTError, match="the host is empty"):
        listen(" ", 0)
