"""The studio's queue of jobs, done one after another: whatever needs the model waits here for its turn.

Requests come on an event loop, and jobs are done in one thread of their own. So no two tabs ever use the model at once,
and a job that nobody waits for any longer stops at its next piece of text or step of progress.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

from ..console import reported_to
from ..errors import CheckFailed, NPTError

Event = dict[str, Any]
Tell = Callable[[Event], None]
"""Called with what a page should see while a job runs."""
Work = Callable[[Tell], Any]

WAITING = 256
"""Number of jobs that may wait; more are turned away."""
log = logging.getLogger("uvicorn.error")


class Stopped(Exception):
    """The job was stopped, by a person or because nobody waits for it; what it had done was taken back."""


class Busy(Exception):
    """Too many jobs are waiting already."""


class Board:
    """The state that every open page sees: what is being worked on, and how often the edits have changed."""

    def __init__(self) -> None:
        self.state: Event = {"working": None, "what": "", "done": 0, "total": 0, "waiting": 0, "changes": 0}
        self._readers: set[asyncio.Event] = set()
        self.closed = False

    def change(self, **changed: Any) -> None:
        """On the event loop."""
        self.state.update(changed)
        for reader in self._readers:
            reader.set()

    def close(self) -> None:
        self.closed = True
        self.change()

    async def read(self) -> AsyncIterator[Event]:
        """The state as it is, and again whenever it has changed."""
        changed = asyncio.Event()
        self._readers.add(changed)
        try:
            while not self.closed:
                yield dict(self.state)
                await changed.wait()
                changed.clear()
        finally:
            self._readers.remove(changed)


class Job:
    """One piece of work in the queue, seen from the event loop."""

    def __init__(self, what: str, work: Work, changes: bool):
        self.what, self.work, self.changes = what, work, changes
        self.value: Any = None
        self.error: Exception | None = None
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """The work ends at its next step; if it has ended already, this does nothing."""
        self._stopped.set()

    def tell(self, event: Event) -> None:
        """From the worker. Raises Stopped if the work is to end."""
        if self._stopped.is_set():
            raise Stopped("stopped; nothing was changed")
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def end(self, error: Exception | None, value: Any) -> None:
        """From the worker, at the end."""
        self.error, self.value = error, value
        self._loop.call_soon_threadsafe(self._events.put_nowait, None)

    async def events(self) -> AsyncIterator[Event]:
        """The events of the job. At its end `value` is its result, or there is an `error`. A reader that leaves
        early stops it."""
        try:
            while (event := await self._events.get()) is not None:
                yield event
        finally:
            self.stop()

    async def result(self) -> Any:
        """Raises the work's error, if it has one."""
        async for _ in self.events():
            pass
        if self.error is not None:
            raise self.error
        return self.value


class JobQueue:
    """Takes jobs and does them in the order in which they came. Made on the event loop."""

    def __init__(self) -> None:
        self.board = Board()
        self._loop = asyncio.get_running_loop()
        self._waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._open: list[Job] = []
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="studio")
        self._thread.start()

    def submit(self, what: str, work: Work, changes: bool = False) -> Job:
        """`what` is shown on every page while the job runs; `changes` says that it changes the edits.

        Raises Busy if too many jobs are waiting, and Stopped once the queue is closed.
        """
        if self._closed:
            raise Stopped("the studio is closing")
        if len(self._open) >= WAITING:
            raise Busy(f"{len(self._open)} requests are waiting already; try again later")
        job = Job(what, work, changes)
        self._open.append(job)
        self._waiting.put(job)
        self._show_waiting()
        return job

    def stop(self) -> None:
        """Stops what is being worked on now."""
        if self._open:
            self._open[0].stop()

    async def close(self) -> None:
        """Stops all jobs, and returns once the last one has ended."""
        self._closed = True
        for job in self._open:
            job.stop()
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)
        self.board.close()

    # --- in the worker's thread ------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._waiting.get()) is not None:
            self._show(working=job.what, what="", done=0, total=0)
            value: Any = None
            error: Exception | None = None
            try:
                with reported_to(self._listener(job)):
                    job.tell({"type": "begun"})
                    value = job.work(job.tell)
            except (NPTError, CheckFailed, Stopped) as e:
                error = e
            except Exception as e:
                log.exception("%s failed", job.what)
                error = e
            job.end(error, value)
            self._loop.call_soon_threadsafe(self._done, job)

    def _listener(self, job: Job) -> Callable[[str, int, int], None]:
        def listen(what: str, done: int, total: int) -> None:
            job.tell({"type": "progress", "what": what, "done": done, "total": total})
            self._show(what=what, done=done, total=total)

        return listen

    def _show(self, **changed: Any) -> None:
        self._loop.call_soon_threadsafe(lambda: self.board.change(**changed))

    # --- on the event loop -----------------------------------------------------------------------------------------

    def _done(self, job: Job) -> None:
        self._open.remove(job)
        if job.changes:
            self.board.change(changes=self.board.state["changes"] + 1)
        if not self._open:
            self.board.change(working=None)
        self._show_waiting()

    def _show_waiting(self) -> None:
        self.board.change(waiting=max(0, len(self._open) - 1))
