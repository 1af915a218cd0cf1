"""Ask: a prompt's continuation as it is written, another one beside it, and the next-token probabilities of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..config import Mode
from ..text.generation import Writing
from ..text.spaces import continuing
from ..text.tokens import decode_after
from ..text.word_probabilities import words_of_one_token
from .jobs import Tell

if TYPE_CHECKING:
    from ..workspace.workspace import Workspace

LIKELIEST = 5
"""Number of tokens of each side that are shown, beside the tracked ones."""


@dataclass(frozen=True)
class Side:
    """The model in one of the ways in which it can answer."""

    mode: Mode
    edited: bool

    @property
    def title(self) -> str:
        return f"{'with' if self.edited else 'without'} edits, {self.mode} mode"


@dataclass(frozen=True)
class Ask:
    prompt: str
    mode: Mode = "dynamic"
    beside: Literal["unedited", "other mode", "nothing"] = "unedited"
    max_new_tokens: int = 32
    track: tuple[str, ...] = ()
    """words whose next-token probability is shown too"""

    @property
    def sides(self) -> tuple[Side, ...]:
        asked = Side(self.mode, True)
        match self.beside:
            case "unedited":
                return asked, Side(self.mode, False)
            case "other mode":
                return asked, Side("standard" if self.mode == "dynamic" else "dynamic", True)
            case "nothing":
                return (asked,)


def ask(ws: Workspace, form: Ask, tell: Tell) -> dict[str, Any]:
    """Tells the bars first, then the pieces of each side's answer. Raises NPTError for bad input."""
    how = Writing(form.max_new_tokens)
    tell({"type": "next", "sides": [s.title for s in form.sides], "tokens": next_tokens(ws, form)})
    answers = []
    for number, side in enumerate(form.sides):

        def piece(text: str, number: int = number) -> None:
            tell({"type": "piece", "side": number, "text": text})

        answers.append(ws.write(form.prompt, how, side.mode, piece, side.edited).text)
    return {"answers": answers}


def next_tokens(ws: Workspace, form: Ask) -> list[dict[str, Any]]:
    """The tracked words, and the likeliest tokens of each side that are none of these: their probabilities on every
    side. A word counts with all of its tokens, as it continues the prompt."""
    track = tuple(dict.fromkeys(word.strip() for word in form.track))
    words = zip(
        track, *(ws.word_probabilities(form.prompt, track, side.mode, side.edited) for side in form.sides), strict=True
    )
    shown = [
        {"token": continuing(form.prompt, word), "tracked": word, "probabilities": list(each)} for word, *each in words
    ]
    found = [ws.next_token(form.prompt, side.mode, side.edited) for side in form.sides]
    likeliest = {t for p in found for t in p.topk(min(LIKELIEST, len(p))).indices.tolist()}
    likeliest -= words_of_one_token(ws.tokenizer, form.prompt, track)
    before = ws.tokens(form.prompt)
    for t in sorted(likeliest, key=lambda t: -max(p[t].item() for p in found)):
        token = decode_after(ws.tokenizer, before, [t], skip_special_tokens=False)
        shown.append({"token": token, "tracked": None, "probabilities": [p[t].item() for p in found]})
    return shown
