"""What a model writes by itself when it is asked: greedy, to the end of its turn or of a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..errors import NPTError
from ..text.generation import generate
from ..text.tokens import batch, context_length, decode_after, encode, start_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NEW_TOKENS = 50
"""Number of tokens after which a reply is cut."""
LARGEST_BATCH = 16
"""Prompts continued at once. Batches are made in the order of the prompts, so that the same prompts always give the
same tokens: sums of floats depend on a batch's shape in the last bit."""


class Reply(NamedTuple):
    text: str
    """up to the end of its first line that is not blank"""
    tokens: list[int]
    """those that were written, without what ended the turn"""


@torch.no_grad()
def replies(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]]
) -> list[Reply]:
    """The reply to each prompt, given as tokens. Raises NPTError if one does not fit into the model's context."""
    if prompts and (longest := max(map(len, prompts))) + NEW_TOKENS > (room := context_length(model)):
        raise NPTError(
            f"a question has {longest} tokens; with {NEW_TOKENS} new ones it does not fit into the model's {room}"
        )
    ends, pad = turn_ends(model, tokenizer), start_token(tokenizer)
    found: list[Reply] = []
    for first in range(0, len(prompts), LARGEST_BATCH):
        some = prompts[first : first + LARGEST_BATCH]
        ids, mask = batch(some, pad, model.device, left=True)
        line = _LineEnds(tokenizer, ids.shape[1])
        out = generate(
            model,
            ids,
            mask,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=sorted(ends),
            pad_token_id=pad,
            stopping_criteria=[line],
        )
        for row, prompt in zip(out.tolist(), some, strict=True):
            new = row[ids.shape[1] :]
            new = new[: next((i for i, t in enumerate(new) if t in ends), len(new))]
            text = decode_after(tokenizer, prompt, new)
            found.append(Reply(text.lstrip().partition("\n")[0], new))
    return found


def turn_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end what a model writes: those that it names, the end of a text, the beginning of another one,
    and what its chat template writes after a turn of its own."""
    own = getattr(model.generation_config, "eos_token_id", None)
    ends = set(own if isinstance(own, list | tuple) else [own]) | {tokenizer.eos_token_id, start_token(tokenizer)}
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "mark of the end"}]
        after = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition("mark of the end")[2]
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        ends |= set([t for t in encode(tokenizer, after) if t in special][:1])
    return {int(t) for t in ends if t is not None}


class _LineEnds:
    """A stopping criterion: of each text, whether a line that is not blank has ended."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, start: int):
        self.tokenizer, self.start = tokenizer, start
        self._breaks: dict[int, bool] = {}
        """of each token that was seen, whether it holds the end of a line"""

    def __call__(self, ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.tensor([self._ended(row) for row in ids[:, self.start :].tolist()], device=ids.device)

    def _ended(self, new: list[int]) -> bool:
        last = new[-1]
        if last not in self._breaks:
            self._breaks[last] = "\n" in str(self.tokenizer.decode([last]))
        return self._breaks[last] and "\n" in str(self.tokenizer.decode(new)).lstrip()
