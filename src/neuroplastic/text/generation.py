"""How a model continues a prompt, token by token: streamed as it is written, and stopped where it should end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import NPTError
from .tokens import context_length, decode_after, require_finite

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .token_scores import Scores

Tell = Callable[[str], None]
"""Called with each piece of a text as it is written; what it raises ends the writing."""
Processor = Callable[[Tensor, Tensor], Tensor]
"""Called with the tokens so far (N, T) and the logits of the next one (N, V); returns the logits."""
COLDEST, HOTTEST = 0.01, 100
"""Temperatures to draw at: below, logits divided by it would overflow; above, all tokens are the same."""
UNFINISHED, BYTES = "�", 3  # what a character decodes to while some of its bytes are missing, and how many there may be


@dataclass(frozen=True)
class Writing:
    """How a continuation is written. Raises NPTError if a setting is out of range."""

    max_new_tokens: int = 32
    """Length at which it ends at the latest."""

    temperature: float = 0.0
    """0 takes the likeliest token; above, tokens are drawn."""

    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability."""

    seed: int | None = None
    """Of the draws; None for others every time."""

    stop: tuple[str, ...] = ()
    """The text ends before the first of these."""

    top_k: int = 0
    """Draw from this many of the likeliest tokens; 0 for all."""

    min_p: float = 0.0
    """Draw from the tokens that have at least this share of the likeliest one's probability."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise NPTError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if self.temperature != 0 and not COLDEST <= self.temperature <= HOTTEST:
            raise NPTError(f"temperature must be 0, or from {COLDEST} to {HOTTEST}, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise NPTError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.top_k < 0:
            raise NPTError(f"top_k must be at least 1, or 0 for all tokens, not {self.top_k}")
        if not 0 <= self.min_p <= 1:
            raise NPTError(f"min_p must be from 0 to 1, not {self.min_p}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise NPTError(f"seed must be from 0 to 2^63 - 1, not {self.seed}")
        if "" in self.stop:
            raise NPTError("a stop string is empty")

    @property
    def draws(self) -> dict[str, Any]:
        """As arguments of `generate`."""
        if self.temperature == 0:
            return {"do_sample": False}
        narrowed = {"top_p": self.top_p, "top_k": self.top_k, "min_p": self.min_p}
        return {"do_sample": True, "temperature": self.temperature, **narrowed}


@dataclass(frozen=True)
class Written:
    """A continuation."""

    text: str
    ended: bool
    """the model ended it, or a stop string did; else it is cut at max_new_tokens"""
    prompt_tokens: int
    new_tokens: int


@torch.no_grad()
def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    how: Writing,
    tell: Tell = lambda piece: None,
    scores: Scores | None = None,
) -> Written:
    """Continues `ids`, with the model in the mode that it is in. The pieces given to `tell`, joined, are the text;
    `scores` is given the log-probability of every token, before `tell` gets the piece with that token.

    Raises NPTError if prompt and continuation do not fit into the model's context.
    """
    if len(ids) + how.max_new_tokens > (room := context_length(model)):
        raise NPTError(
            f"the prompt has {len(ids)} tokens; with {how.max_new_tokens} new ones it does not fit into the "
            f"model's {room}"
        )
    prompt = torch.tensor([list(ids)], device=model.device)
    teller = _Teller(tokenizer, len(ids), how.stop, tell)
    if scores is not None:
        scores.text = lambda: teller.text
    with torch.random.fork_rng(enabled=how.seed is not None):
        if how.seed is not None:
            torch.manual_seed(how.seed)
        out = generate(
            model,
            prompt,
            torch.ones_like(prompt),
            [] if scores is None else [scores.see],
            stopping_criteria=[teller] if scores is None else [scores.chosen, teller],
            max_new_tokens=how.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id or 0,
            **how.draws,
        )
    new = out[0, len(ids) :]
    teller.finish()
    ended = teller.stopped or len(new) < how.max_new_tokens or int(new[-1]) in _ends(model)
    return Written(teller.sent, ended, len(ids), len(new))


def generate(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, processors: Sequence[Processor] = (), **settings: Any
) -> Tensor:
    """The model's own `generate` on prompts (N, T), which obeys these settings and nothing else. `processors` see the
    logits before each token is chosen.

    Raises NPTError if the model's logits are not finite numbers.
    """
    watching = [_finite, *processors]
    with own_settings_ignored(model):
        out: Tensor = model.generate(input_ids=ids, attention_mask=mask, **settings, logits_processor=watching)
    return out


def _finite(ids: Tensor, logits: Tensor) -> Tensor:
    require_finite(logits)
    return logits


@contextmanager
def own_settings_ignored(model: PreTrainedModel) -> Iterator[None]:
    """While it lasts, `generate` takes from the model's own generation_config only the tokens that end a text.

    A pretrained model may bring a repetition penalty, a minimum length, forbidden words or beams. `generate` falls back
    on them for every argument that is not given or is None, and what is called greedy is then no longer the argmax.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=getattr(own, "eos_token_id", None))
    try:
        yield
    finally:
        model.generation_config = own


class _Teller:
    """A stopping criterion, called after every token. It tells what is new of the text, except what may still change: a
    character without all of its bytes, and what may be the beginning of a stop string."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, start: int, stop: Sequence[str], tell: Tell):
        self.tokenizer, self.start, self.stop, self.tell = tokenizer, start, stop, tell
        self.sent = self.text = ""
        self.stopped = False

    def __call__(self, ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        before, new = ids[0, : self.start].tolist(), ids[0, self.start :].tolist()
        self.text = decode_after(self.tokenizer, before, new)
        found = [at for s in self.stop if (at := self.text.find(s)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
        else:
            self._tell(self.text[: len(self.text) - self._held_back()])
        return torch.full((len(ids),), self.stopped, device=ids.device)

    def finish(self) -> None:
        self._tell(self.text)

    def _held_back(self) -> int:
        unfinished = min(BYTES, len(self.text) - len(self.text.rstrip(UNFINISHED)))
        written = len(self.text) + 1
        beginnings = (n for s in self.stop for n in range(1, min(len(s), written)) if self.text.endswith(s[:n]))
        return max(unfinished, *beginnings, 0)

    def _tell(self, text: str) -> None:
        if len(text) > len(self.sent):
            piece, self.sent = text[len(self.sent) :], text
            self.tell(piece)


def _ends(model: PreTrainedModel) -> tuple[int, ...]:
    end = getattr(model.generation_config, "eos_token_id", None)
    return () if end is None else tuple(end) if isinstance(end, list | tuple) else (int(end),)
