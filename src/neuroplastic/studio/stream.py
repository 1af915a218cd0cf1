"""Answers to requests: JSON, and events as the browser reads them while a job runs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ..console import as_json
from ..errors import CheckFailed, NPTError
from .jobs import Busy, Event, Job, Stopped

STATUS: dict[type[Exception], tuple[int, str]] = {
    NPTError: (400, "input"),
    CheckFailed: (409, "refused"),
    Stopped: (409, "stopped"),
    Busy: (503, "busy"),
}
"""Of exceptions that users are meant to see: HTTP status, and their kind to the page."""


def answer(data: Any, status: int = 200) -> Response:
    return Response(as_json(_finite(data)), status, media_type="application/json")


def error_event(error: Exception) -> tuple[int, Event]:
    """What a page is sent for an error: the HTTP status, and an event."""
    status, kind = next((s for e, s in STATUS.items() if isinstance(error, e)), (500, "failed"))
    message = str(error) if status != 500 else f"this went wrong, and is a bug: {type(error).__name__}: {error}"
    return status, {"type": "error", "kind": kind, "message": message}


def stream(job: Job) -> Response:
    """Events of the work as they come; the last one is its result or its error."""

    async def lines() -> AsyncIterator[str]:
        try:
            async for event in job.events():
                yield event_line(event)
            done = {"type": "result", "result": job.value}
            yield event_line(done if job.error is None else error_event(job.error)[1])
        finally:
            job.stop()

    return events(lines())


def event_line(event: Any) -> str:
    return f"data: {as_json(_finite(event))}\n\n"


def events(lines: AsyncIterator[str]) -> Response:
    return StreamingResponse(lines, media_type="text/event-stream")


async def finished(request: Request, job: Job) -> Any:
    """The result of the work, which is stopped if the client leaves. Raises what the work raised."""
    waiting, gone = asyncio.ensure_future(job.result()), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise Stopped("the client has left")
        return waiting.result()
    finally:
        job.stop()
        waiting.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _finite(data: Any) -> Any:
    """`data` with null for a number that is not finite: browsers read nothing else."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {k: _finite(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(v) for v in data]
    return data
