"""Who may use the studio: the person at this machine, or whoever has the token. Every request passes here first.

A page of another site can make a browser send requests here. It cannot choose their Host and Origin headers, so both
are checked; a name that another site points at this machine (DNS rebinding) is not among the hosts answered to.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_BODY = 4 * 2**20
"""Bytes of a request: more than the longest context holds, so that what limits a text is the number of its tokens."""
READ_AT_MOST = 4 * LARGEST_BODY
"""Bytes that are read of a body that is too large, so that its sender sees the answer before the connection ends."""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


def is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


@dataclass(frozen=True)
class Access:
    """Where the studio listens, and the token that opens it; None if being at this machine is enough."""

    host: str
    token: str | None

    def answers_to(self, name: str) -> bool:
        """Whether the host that a request names is this one. Elsewhere than on the loopback, any address is: another
        site's page always comes with a name."""
        if is_loopback(name) or name == self.host:
            return True
        return not is_loopback(self.host) and (_address(name) is not None or name == socket.gethostname().lower())

    def accepts(self, given: Iterable[str]) -> bool:
        return self.token is None or any(hmac.compare_digest(t.encode(), self.token.encode()) for t in given)


class Refusal(Exception):
    """A request that is not let in."""

    def __init__(self, status: int, why: str):
        super().__init__(why)
        self.status = status


class Guard:
    """Lets requests through to `app`, with their bodies read, or answers them itself."""

    def __init__(self, app: ASGIApp, access: Access):
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        greeted, cookie = False, f"npt_studio_{(scope['server'] or ('', ''))[1]}"  # cookies are shared between ports

        async def reply(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if greeted:  # the page's own requests, and links that it opens, then carry it
                    headers.append("set-cookie", f"{cookie}={self.access.token}; Path=/; HttpOnly; SameSite=Strict")
            await send(message)

        headers = Headers(scope=scope)
        try:
            self._check_headers(scope, headers)
            asked = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
            greeted = bool(asked) and scope["path"] == "/" and self.access.token is not None
            if not self.access.accepts([*_carried(headers, cookie), *(asked if greeted else [])]):
                greeted = False
                raise Refusal(401, "this studio needs its token: open the address that npt studio printed")
            body = await _body(headers, receive)
        except Refusal as e:
            await JSONResponse({"error": {"message": str(e)}}, e.status)(scope, receive, reply)
            return
        pending: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

        async def read() -> Message:
            return pending.pop() if pending else await receive()

        await self.app(scope, read, reply)

    def _check_headers(self, scope: Scope, headers: Headers) -> None:
        hosts = headers.getlist("host")
        name = _name(f"//{hosts[0]}") if len(hosts) == 1 else None
        if name is None or not self.access.answers_to(name):
            raise Refusal(403, f"this studio does not answer to the host {', '.join(hosts)!r}")
        origin = headers.get("origin")
        if origin is not None and origin not in (f"http://{hosts[0]}", f"https://{hosts[0]}"):
            raise Refusal(403, f"a page of {origin!r} may not use this studio")
        own = headers.get("sec-fetch-site", "none") in ("none", "same-origin")
        opened = scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if not own and not opened:
            raise Refusal(403, "a page of another site may not use this studio")


async def _body(headers: Headers, receive: Receive) -> bytes:
    """The whole body of a request. Raises Refusal if it is too large."""
    parts, length = [], 0
    announced = headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > READ_AT_MOST:
        raise _too_large()
    while length <= READ_AT_MOST:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(400, "the body is incomplete")
        part = message.get("body", b"")
        length += len(part)
        if length <= LARGEST_BODY:
            parts.append(part)
        if not message.get("more_body", False):
            break
    if length > LARGEST_BODY:
        raise _too_large()
    return b"".join(parts)


def _too_large() -> Refusal:
    return Refusal(413, f"the body is too large: at most {LARGEST_BODY} bytes are read")


def _carried(headers: Headers, name: str) -> list[str]:
    """The tokens that a request carries: as OpenAI's clients send theirs, and in the page's cookie."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    found = [bearer.strip()] if scheme.lower() == "bearer" else []
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        cookie = None
    return found + ([cookie.value] if cookie is not None else [])


def _name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
