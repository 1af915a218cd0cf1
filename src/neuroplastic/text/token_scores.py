"""How likely the model finds what it writes: each token's log-probability, and the likeliest tokens at its place."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .generation import BYTES, UNFINISHED
from .tokens import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Likely:
    """A token and its log-probability, before temperature and the like reshape the distribution."""

    token: str
    logprob: float


@dataclass(frozen=True)
class Scored(Likely):
    """A token that was written."""

    start: int
    """Characters of the text before it, without one of which it may be a part."""
    likeliest: tuple[Likely, ...]
    """The likeliest tokens at its place, the likeliest first; as many as were asked for."""


class Scores:
    """Watches `generate`: `see` is a logits processor and knows the distribution, `chosen` is a stopping criterion
    (which never stops) and knows the token that was taken from it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, alternatives: int):
        self.tokenizer, self.alternatives = tokenizer, alternatives
        self.text: Callable[[], str] = str
        """Gives the text before the token that is chosen; set by whoever writes."""
        self._logprobs = torch.empty(0, device="cpu")
        self._tokens: list[Scored] = []
        self._taken = 0

    def see(self, ids: Tensor, logits: Tensor) -> Tensor:
        self._logprobs = logits[0].float().log_softmax(-1)
        return logits

    def chosen(self, ids: Tensor, scores: Any) -> Tensor:
        likeliest = self._logprobs.topk(min(self.alternatives, len(self._logprobs))).indices.tolist()
        token = int(ids[0, -1])
        text = self.text()
        start = len(text) - min(BYTES, len(text) - len(text.rstrip(UNFINISHED)))
        self._tokens.append(Scored(*self._likely(token), start, tuple(Likely(*self._likely(t)) for t in likeliest)))
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    def before(self, end: int) -> list[Scored]:
        """The tokens that begin before the character `end` of the text: not those of a stop string, nor its end."""
        return self._tokens[: bisect_left(self._tokens, end, key=lambda t: t.start)]

    def take(self, end: int) -> list[Scored]:
        """The same, without those that were taken already."""
        found = self.before(end)
        taken, self._taken = found[self._taken :], len(found)
        return taken

    def _likely(self, token: int) -> tuple[str, float]:
        before = encode(self.tokenizer, "a")  # alone, some tokenizers leave out a token's first space
        shown = str(self.tokenizer.decode([*before, token])).removeprefix(str(self.tokenizer.decode(before)))
        return shown, float(self._logprobs[token])
