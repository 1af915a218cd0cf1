"""What a request of OpenAI's interface may hold: read into one form, or refused by name.

Clients send much by default that asks for nothing: such a field is accepted if its value changes no answer, and
refused if it asks for what this server does not have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import NPTError
from ..studio import forms
from ..text.generation import COLDEST, Writing

Kind = Literal["completion", "chat"]

WITHOUT_EFFECT = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "parallel_tool_calls", "prediction"),
    *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "cache_prompt", "cache_salt"),
    *("verbosity", "request_id", "session_id", "keep_alive"),
)
"""Fields that change nothing in an answer: for bookkeeping, caches, or abilities that are asked for elsewhere."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    # several answers, or a part of the question in them
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "use_beam_search": (False,),
    # other distributions to draw from
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "repeat_penalty": (1,),
    "length_penalty": (1,),
    "typical_p": (1,),
    "tfs_z": (1,),
    "top_a": (0,),
    "mirostat": (0,),
    "dynatemp_range": (0,),
    "xtc_probability": (0,),
    "dry_multiplier": (0,),
    "logit_bias": ({}, []),
    "bad_words": ([],),
    # other ends
    "ignore_eos": (False,),
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "include_stop_str_in_output": (False,),
    # other text
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "documents": ([],),
    # tools, and answers of a form
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "grammar": ("",),
    "modalities": (["text"],),
}
"""Fields of abilities that this server does not have, and the values that do not ask for them."""
OF_ONE_KIND: dict[Kind, dict[str, tuple[Any, ...]]] = {
    "completion": {"top_logprobs": (0,), "chat_template_kwargs": ({},)},
    "chat": {},
}
"""The same, of fields that the other kind of request has."""
CACHING = ("cache_control", "prompt_cache_breakpoint")
"""Fields of a message or a part of it that change nothing in an answer."""
MOST_ALTERNATIVES: dict[Kind, int] = {"completion": 5, "chat": 20}
"""OpenAI's own limits."""
STREAM_OPTIONS = ("include_usage", "include_obfuscation")


@dataclass(frozen=True)
class Sampled:
    """The fields that both kinds of request share."""

    model: str
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float = 0.0
    """0, unlike OpenAI's 1: an edit is seen in the likeliest answer"""
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    stream_options: dict[str, Any] | None = None

    def writing(self, length: int) -> Writing:
        """`length` is that of an answer if the request names none. Raises NPTError for a value out of range."""
        wanted = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        cold = 0 <= self.temperature < COLDEST  # clients write 1e-8 for servers that refuse 0
        return Writing(
            max_new_tokens=length if wanted in (None, -1) else wanted,
            temperature=0.0 if cold else self.temperature,
            top_p=self.top_p,
            top_k=0 if self.top_k == -1 else self.top_k,
            min_p=self.min_p,
            seed=None if self.seed == -1 else self.seed,
            stop=self.stop,
        )

    @property
    def alternatives(self) -> int | None:
        """How many likeliest tokens are named at the place of each, beside its own log-probability; None for none of
        this. Raises NPTError if it is out of range."""
        raise NotImplementedError

    @property
    def with_usage(self) -> bool:
        """Raises NPTError for an option of streams that this server does not have."""
        for name, value in (self.stream_options or {}).items():
            if name not in STREAM_OPTIONS and value:
                raise NPTError(f"this server has no {name} in stream_options; leave it out")
            if value not in (None, False, True):
                raise NPTError(f"{name} in stream_options must be true or false, not {forms.shown(value)}")
        return bool((self.stream_options or {}).get("include_usage"))


@dataclass(frozen=True, kw_only=True)
class Completion(Sampled):
    prompt: str
    logprobs: int | None = None

    @property
    def alternatives(self) -> int | None:
        return None if self.logprobs is None else _alternatives("completion", "logprobs", self.logprobs)


@dataclass(frozen=True, kw_only=True)
class Chat(Sampled):
    messages: tuple[dict[str, Any], ...]
    logprobs: bool = False
    top_logprobs: int = 0
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def alternatives(self) -> int | None:
        wanted = _alternatives("chat", "top_logprobs", self.top_logprobs)
        if wanted and not self.logprobs:
            raise NPTError("top_logprobs goes with logprobs: true")
        return wanted if self.logprobs else None

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """The messages as a chat template takes them. Raises NPTError if one is none."""
        if not self.messages:
            raise NPTError("messages is empty")
        return [_message(m) for m in self.messages]

    @property
    def variables(self) -> dict[str, Any]:
        """What is given to the chat template beside the messages."""
        effort = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        return {**effort, **(self.chat_template_kwargs or {})}


def read(form: type[Completion | Chat], data: Mapping[str, Any]) -> Completion | Chat:
    """The request. Raises NPTError if it is malformed, or asks for what this server does not have."""
    kind: Kind = "completion" if form is Completion else "chat"
    neutral, kept = {**NEUTRAL, **OF_ONE_KIND[kind]}, {}
    for name, value in data.items():
        if value is None or name in WITHOUT_EFFECT:
            continue
        if name in neutral:
            if value not in neutral[name]:
                raise NPTError(f"this model has no {name}; leave it out")
            continue
        kept[name] = value
    if isinstance(kept.get("stop"), str):
        kept["stop"] = [kept["stop"]]
    if kind == "completion":
        kept.pop("reasoning_effort", None)  # there is no chat template to read it
        if kept.get("logprobs") is False:
            del kept["logprobs"]
        if isinstance(prompt := kept.get("prompt"), list):
            if len(prompt) != 1 or not isinstance(prompt[0], str):
                raise NPTError("prompt must be one text; several at once, or tokens, are not taken")
            kept["prompt"] = prompt[0]
    asked = forms.read(form, kept)
    _ = asked.writing(1), asked.alternatives, asked.with_usage  # bad input is answered before there is any work
    return asked


def _alternatives(kind: Kind, name: str, wanted: int) -> int:
    if not 0 <= wanted <= (most := MOST_ALTERNATIVES[kind]):
        raise NPTError(f"{name} must be from 0 to {most}, not {wanted}")
    return wanted


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Role, content and what else a message says. Raises NPTError if it has no role, or its content is no text."""
    role = message.get("role")
    if not isinstance(role, str) or not role.strip():
        raise NPTError(
            "a message has no role" if role in (None, "") else f"a role must be text, not {forms.shown(role)}"
        )
    empty: tuple[Any, ...] = (None, "", [], {})
    fields = {k: v for k, v in message.items() if k not in ("role", "content", *CACHING) and v not in empty}
    if "tool_calls" in fields:
        fields["tool_calls"] = _tool_calls(fields["tool_calls"])
    return {"role": role, "content": _content(role, message.get("content")), **fields}


def _content(role: str, content: Any) -> str:
    """The text of a message, its parts joined."""
    if content is None and role == "assistant":  # it called a tool without a text
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise NPTError(f"the content of a message of the role {role!r} must be text, not {forms.shown(content)}")
    return "".join(map(_part, content))


def _part(part: Any) -> str:
    if not isinstance(part, dict):
        raise NPTError(f"a part of a message's content must be an object, not {forms.shown(part)}")
    if part.get("type") != "text":
        raise NPTError(f"the content of a message must be text; this model reads no {forms.shown(part.get('type'))}")
    if not isinstance(part.get("text"), str):
        raise NPTError("a part of a message's content has no text")
    for name, value in part.items():
        if name not in ("type", "text", *CACHING) and value not in (None, "", [], {}):
            raise NPTError(f"this model does not read {name!r} of a part of a message; leave it out")
    return str(part["text"])


def _tool_calls(calls: Any) -> list[dict[str, Any]]:
    """Calls as chat templates take them: the arguments of a function as an object, not as its JSON."""
    if not isinstance(calls, list) or not all(isinstance(c, dict) for c in calls):
        raise NPTError("tool_calls of a message must be a list of objects")
    read = []
    for call in calls:
        function = call.get("function")
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            try:
                arguments = json.loads(function["arguments"] or "{}")
            except (ValueError, RecursionError):
                arguments = None
            if not isinstance(arguments, dict):
                raise NPTError(f"the arguments of a tool call are no JSON object: {forms.shown(function['arguments'])}")
            call = {**call, "function": {**function, "arguments": arguments}}
        read.append(call)
    return read
