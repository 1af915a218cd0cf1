"""The plastic model for clients of OpenAI's interface: /v1/models, /v1/completions and /v1/chat/completions.

A model's name says how it answers: NAME with the edits in dynamic mode, NAME/standard in standard mode, NAME/unedited
without the edits. What the model cannot do is refused by name, never left out silently.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from ..studio import forms
from ..text.generation import UNFINISHED, Written
from ..text.token_scores import Likely, Scored, Scores
from ..text.tokens import context_length
from .asking import Side
from .jobs import Event, JobQueue, Tell
from .requests import Chat, Completion, Kind, read
from .stream import STATUS, answer, error_event, event_line, events, finished

if TYPE_CHECKING:
    from ..workspace.workspace import Workspace

SIDES = {"": Side("dynamic", True), "/standard": Side("standard", True), "/unedited": Side("dynamic", False)}
LENGTH = {"completion": 16, "chat": 256}
"""Length of an answer if the request names none: OpenAI's own for completions; a chat ends by itself."""
IMPOSSIBLE = -9999.0

Made = tuple[Written, list[Scored] | None]
"""What was written, and its tokens' log-probabilities if they were asked for."""


class OpenAI:
    """The three endpoints on one workspace."""

    def __init__(self, ws: Workspace, jobs: Callable[[], JobQueue]):
        self.ws, self.jobs = ws, jobs
        self.name = Path(ws.base.spec).name
        self.since = int(time.time())

    async def models(self, request: Request) -> Response:
        return answer({"object": "list", "data": [self._model(self.name + suffix) for suffix in SIDES]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if self._side(name) is None:
            return self._no_model(name)
        return answer(self._model(name))

    async def completions(self, request: Request) -> Response:
        return await self._answered(request, "completion", Completion)

    async def chat(self, request: Request) -> Response:
        return await self._answered(request, "chat", Chat)

    # --- what they share -------------------------------------------------------------------------------------------

    async def _answered(self, request: Request, kind: Kind, form: type[Completion | Chat]) -> Response:
        try:
            asked = read(form, forms.parse(await request.body()))
            if (side := self._side(asked.model)) is None:
                return self._no_model(asked.model)
            work = self._work(kind, asked, side)
            job = self.jobs().submit("answering a client", work)
            if not asked.stream:
                return answer(_Answer(kind, asked.model).whole(*await finished(request, job)))
            waiting = job.events()
            await anext(waiting, None)  # it is its turn
            first = await anext(waiting, None)
            if job.error is not None:  # before the first piece: one of the whole request
                raise job.error
        except tuple(STATUS) as e:
            return _refused(e)

        async def lines() -> AsyncIterator[str]:
            made = _Answer(kind, asked.model)
            try:
                yield event_line(made.begun())
                if first is not None:
                    yield event_line(made.piece(**first))
                async for event in waiting:
                    yield event_line(made.piece(**event))
                if job.error is not None:
                    yield event_line(_error(job.error)[1])
                    return
                written, _ = job.value
                yield event_line(made.ended(written))
                if asked.with_usage:
                    yield event_line(made.used(written))
                yield "data: [DONE]\n\n"
            finally:
                job.stop()

        return events(lines())

    def _work(self, kind: Kind, asked: Completion | Chat, side: Side) -> Callable[[Tell], Made]:
        """Raises NPTError for bad input that needs no model to be seen."""
        conversation = asked.conversation if isinstance(asked, Chat) else []

        def tokens() -> list[int]:
            if isinstance(asked, Completion):
                return self.ws.tokens(asked.prompt)
            return self.ws.chat_tokens(conversation, asked.variables)

        def work(tell: Tell) -> Made:
            ids = tokens()
            how = asked.writing(max(1, min(LENGTH[kind], context_length(self.ws.model) - len(ids))))
            scores = None if asked.alternatives is None else Scores(self.ws.tokenizer, asked.alternatives)
            length = 0

            def piece(text: str) -> None:
                nonlocal length
                length += len(text)
                tell({"text": text, "scored": None if scores is None else scores.take(length)})

            written = self.ws.write(ids, how, side.mode, piece, side.edited, scores)
            return written, None if scores is None else scores.before(length)

        return work

    def _side(self, name: str) -> Side | None:
        return SIDES.get(name.removeprefix(self.name)) if name.startswith(self.name) else None

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self.since, "owned_by": "neuroplastic"}

    def _no_model(self, name: str) -> Response:
        known = ", ".join(self.name + suffix for suffix in SIDES)
        message = f"there is no model {name!r}; there are {known}"
        return answer(_body(message, "invalid_request_error", "model", "model_not_found"), 404)


class _Answer:
    """One answer in OpenAI's format, whole or in chunks."""

    def __init__(self, kind: Kind, model: str):
        self.chat = kind == "chat"
        self.head = {
            "id": ("chatcmpl-" if self.chat else "cmpl-") + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, made: Written, scored: list[Scored] | None) -> Event:
        content = {"message": {"role": "assistant", "content": made.text}} if self.chat else {"text": made.text}
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._of(kind, [self._choice(content, _reason(made), scored)]), "usage": _usage(made)}

    def begun(self) -> Event:
        return self._chunk({"role": "assistant", "content": ""} if self.chat else "")

    def piece(self, text: str, scored: list[Scored] | None) -> Event:
        return self._chunk({"content": text} if self.chat else text, None, scored)

    def ended(self, made: Written) -> Event:
        return self._chunk({} if self.chat else "", _reason(made))

    def used(self, made: Written) -> Event:
        return {**self._of(self._kind_of_chunk, []), "usage": _usage(made)}

    def _chunk(self, content: Any, reason: str | None = None, scored: list[Scored] | None = None) -> Event:
        named = {"delta" if self.chat else "text": content}
        return self._of(self._kind_of_chunk, [self._choice(named, reason, scored)])

    @property
    def _kind_of_chunk(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _of(self, kind: str, choices: list[Event]) -> Event:
        return {**self.head, "object": kind, "choices": choices}

    def _choice(self, content: Event, reason: str | None, scored: list[Scored] | None) -> Event:
        logprobs = None if scored is None else _chat_logprobs(scored) if self.chat else _logprobs(scored)
        return {"index": 0, **content, "logprobs": logprobs, "finish_reason": reason}


def _reason(made: Written) -> str:
    return "stop" if made.ended else "length"


def _usage(made: Written) -> dict[str, int]:
    total = made.prompt_tokens + made.new_tokens
    return {"prompt_tokens": made.prompt_tokens, "completion_tokens": made.new_tokens, "total_tokens": total}


def _logprobs(scored: list[Scored]) -> Event:
    """Those of a completion. Each place's likeliest tokens are joined by the one that was taken, as in OpenAI's."""
    return {
        "tokens": [s.token for s in scored],
        "token_logprobs": [_finite(s) for s in scored],
        "top_logprobs": [{t.token: _finite(t) for t in (*reversed(s.likeliest), s)} for s in scored],
        "text_offset": [s.start for s in scored],
    }


def _chat_logprobs(scored: list[Scored]) -> Event:
    return {
        "content": [{**_entry(s), "top_logprobs": [_entry(t) for t in s.likeliest]} for s in scored],
        "refusal": None,
    }


def _entry(likely: Likely) -> Event:
    known = None if UNFINISHED in likely.token else list(likely.token.encode())  # a part of a character is no text
    return {"token": likely.token, "logprob": _finite(likely), "bytes": known}


def _finite(likely: Likely) -> float:
    """The log-probability; that of an impossible token as OpenAI writes it, since JSON has no infinity."""
    return max(likely.logprob, IMPOSSIBLE)


def _error(error: Exception) -> tuple[int, Event]:
    status, event = error_event(error)
    kind = "invalid_request_error" if status == 400 else "server_error"
    return status, _body(event["message"], kind, None, event["kind"])


def _refused(error: Exception) -> Response:
    status, body = _error(error)
    return answer(body, status)


def _body(message: str, kind: str, param: str | None, code: str) -> Event:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
