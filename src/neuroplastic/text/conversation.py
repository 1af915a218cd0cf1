"""A conversation as the model reads it: messages put into its chat template, and nothing of them left out."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from ..errors import NPTError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
"""`role`, `content`, and whatever else the template shows, such as `name` or `tool_calls`."""


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], variables: Mapping[str, Any] | None = None
) -> str:
    """The text of a conversation, up to where the model continues it. `variables` are for the template.

    Raises NPTError if the model has no chat template, or it does not take these messages or variables.
    """
    if not tokenizer.chat_template:
        raise NPTError("the model has no chat template: it is made to continue text, not to converse")
    own = {*inspect.signature(tokenizer.apply_chat_template).parameters, "messages", "conversations"}
    if taken := sorted(own & set(variables or {})):
        raise NPTError(f"{taken[0]!r} is no variable of a chat template that a request can set")
    options = {**(variables or {}), "tokenize": False, "add_generation_prompt": True}
    try:
        return str(tokenizer.apply_chat_template([dict(m) for m in messages], **options))
    except TemplateError as e:
        raise NPTError(f"the model's chat template does not take these messages: {e}") from None
    except Exception as e:  # a template is a program: content that is no text, for one, gives a TypeError
        raise NPTError(f"the model's chat template does not take these messages: {type(e).__name__}: {e}") from None


def refuse_left_out(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], variables: Mapping[str, Any] | None = None
) -> None:
    """Raises NPTError, naming the field, if the template would leave out a part of a message: where the
    conversation reads the same without it."""
    whole = render(tokenizer, messages, variables)
    shown = _shown(tokenizer, messages, variables)
    for number, message in enumerate(messages):
        for field, value in message.items():
            empty = not value or (isinstance(value, str) and not value.strip())
            if field == "role" or empty or (number, field) in shown:
                continue
            without = {k: v for k, v in message.items() if k != field}
            if field == "content":
                without["content"] = ""
            others = [*messages[:number], without, *messages[number + 1 :]]
            try:
                left_out = render(tokenizer, others, variables) == whole
            except NPTError:  # the template insists on it
                left_out = False
            if left_out:
                raise NPTError(
                    f"the model's chat template leaves out {field!r} of message {number + 1}, of the role "
                    f"{message['role']!r}: the model would not read it; leave it out, or say it in another message"
                )


def _shown(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], variables: Mapping[str, Any] | None
) -> set[tuple[int, str]]:
    """(number of the message, field) of texts that the template shows for sure: put other texts in their places, all at
    once, and they are there to be read. What is not found so is not left out for sure: a template may insist on a form.
    """
    marks = {
        (number, field): f"mark{number}of{place}end"
        for number, message in enumerate(messages)
        for place, (field, value) in enumerate(message.items())
        if field != "role" and isinstance(value, str) and value.strip()
    }
    marked = [{k: marks.get((number, k), v) for k, v in m.items()} for number, m in enumerate(messages)]
    try:
        read = render(tokenizer, marked, variables)
    except NPTError:
        return set()
    found = set(re.findall(r"mark\d+of\d+end", read))
    return {place for place, mark in marks.items() if mark in found}
