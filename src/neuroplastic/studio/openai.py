"""The plastic model for clients of OpenAI's interface: /v1/models, /v1/completions and /v1/chat/completions.

A model's name says how it answers: NAME with the edits in dynamic mode, NAME/standard in standard mode, NAME/unedited
without the edits. What the model cannot do is refused by name, never left out silently.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from ..errors import NPTError
from ..text import context_length
from ..writing import Writing, Written
from . import forms
from .asking import Side
from .desk import Desk, Event, Tell
from .stream import STATUS, answer, event_line, events, finished, told

if TYPE_CHECKING:
    from ..workspace import Workspace

SIDES = {"": Side("dynamic", True), "/standard": Side("standard", True), "/unedited": Side("dynamic", False)}
WITHOUT_EFFECT = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
)
"""Fields that clients send and that change nothing in an answer."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Fields of abilities that this model does not have, and the values that do not ask for them."""
LENGTH = {"completion": 16, "chat": 256}
"""Length of an answer where the request names none: OpenAI's own for completions; a chat ends by itself."""

Kind = Literal["completion", "chat"]


@dataclass(frozen=True)
class Sampled:
    """The fields that both kinds of request share."""

    model: str
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float = 0.0
    """0, unlike OpenAI's 1: an edit is seen in the likeliest answer"""
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    stream_options: dict[str, Any] | None = None

    def writing(self, length: int) -> Writing:
        """`length` is that of an answer where the request names none."""
        wanted = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return Writing(length if wanted is None else wanted, self.temperature, self.top_p, self.seed, self.stop)

    @property
    def with_usage(self) -> bool:
        return bool((self.stream_options or {}).get("include_usage"))


@dataclass(frozen=True, kw_only=True)
class Completion(Sampled):
    prompt: str


@dataclass(frozen=True, kw_only=True)
class Chat(Sampled):
    messages: tuple[dict[str, Any], ...]

    @property
    def conversation(self) -> list[dict[str, str]]:
        """Role and content of each message, its parts of text joined. Raises NPTError for any other part."""
        if not self.messages:
            raise NPTError("messages is empty")
        return [{"role": str(m.get("role", "")), "content": _content(m)} for m in self.messages]


class OpenAI:
    """The three endpoints on one workspace."""

    def __init__(self, ws: Workspace, desk: Callable[[], Desk]):
        self.ws, self.desk = ws, desk
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

    async def _answered(self, request: Request, kind: Kind, form: type[Completion] | type[Chat]) -> Response:
        try:
            asked = forms.read(form, _known(forms.parse(await request.body())))
            if (side := self._side(asked.model)) is None:
                return self._no_model(asked.model)
            work = self._work(kind, asked, side)
            job = self.desk().submit("answering a client", work)
            if not asked.stream:
                return answer(_Answer(kind, asked.model).whole(await finished(request, job)))
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
                    yield event_line(made.piece(first["text"]))
                async for event in waiting:
                    yield event_line(made.piece(event["text"]))
                if job.error is not None:
                    yield event_line(_error(job.error)[1])
                    return
                yield event_line(made.ended(job.value))
                if asked.with_usage:
                    yield event_line(made.used(job.value))
                yield "data: [DONE]\n\n"
            finally:
                job.stop()

        return events(lines())

    def _work(self, kind: Kind, asked: Completion | Chat, side: Side) -> Callable[[Tell], Written]:
        """Raises NPTError for bad input that needs no model to be seen."""
        conversation = asked.conversation if isinstance(asked, Chat) else []
        asked.writing(LENGTH[kind])

        def work(tell: Tell) -> Written:
            ids = self.ws.tokens(asked.prompt) if isinstance(asked, Completion) else self.ws.chat_tokens(conversation)
            room = context_length(self.ws.model) - len(ids)
            how = asked.writing(max(1, min(LENGTH[kind], room)))
            return self.ws.write(ids, how, side.mode, lambda piece: tell({"text": piece}), side.edited)

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

    def whole(self, made: Written) -> Event:
        said = {"message": {"role": "assistant", "content": made.text}} if self.chat else {"text": made.text}
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._of(kind, [self._choice(said, _reason(made))]), "usage": _usage(made)}

    def begun(self) -> Event:
        return self._chunk({"role": "assistant", "content": ""} if self.chat else "")

    def piece(self, text: str) -> Event:
        return self._chunk({"content": text} if self.chat else text)

    def ended(self, made: Written) -> Event:
        return self._chunk({} if self.chat else "", _reason(made))

    def used(self, made: Written) -> Event:
        return {**self._of(self._kind_of_chunk, []), "usage": _usage(made)}

    def _chunk(self, said: Any, reason: str | None = None) -> Event:
        named = {"delta" if self.chat else "text": said}
        return self._of(self._kind_of_chunk, [self._choice(named, reason)])

    @property
    def _kind_of_chunk(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _of(self, kind: str, choices: list[Event]) -> Event:
        return {**self.head, "object": kind, "choices": choices}

    def _choice(self, said: Event, reason: str | None) -> Event:
        return {"index": 0, **said, "logprobs": None, "finish_reason": reason}


def _reason(made: Written) -> str:
    return "stop" if made.ended else "length"


def _usage(made: Written) -> dict[str, int]:
    total = made.prompt_tokens + made.new_tokens
    return {"prompt_tokens": made.prompt_tokens, "completion_tokens": made.new_tokens, "total_tokens": total}


def _known(data: dict[str, Any]) -> dict[str, Any]:
    """The fields that count, in one form each. Raises NPTError where one asks for what the model cannot do."""
    kept = {}
    for name, value in data.items():
        if value is None or name in WITHOUT_EFFECT:
            continue
        if name in NEUTRAL:
            if value not in NEUTRAL[name]:
                raise NPTError(f"this model has no {name}; leave it out")
            continue
        kept[name] = value
    if isinstance(kept.get("stop"), str):
        kept["stop"] = [kept["stop"]]
    prompt = kept.get("prompt")
    if isinstance(prompt, list):
        if len(prompt) != 1 or not isinstance(prompt[0], str):
            raise NPTError("prompt must be one text; several at once, or tokens, are not taken")
        kept["prompt"] = prompt[0]
    return kept


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts: list[Any] = content if isinstance(content, list) else [None]
    if not all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in parts):
        raise NPTError("the content of a message must be text")
    return "".join(p["text"] for p in parts)


def _error(error: Exception) -> tuple[int, Event]:
    status, event = told(error)
    kind = "invalid_request_error" if status == 400 else "server_error"
    return status, _body(event["message"], kind, None, event["kind"])


def _refused(error: Exception) -> Response:
    status, body = _error(error)
    return answer(body, status)


def _body(message: str, kind: str, param: str | None, code: str) -> Event:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
