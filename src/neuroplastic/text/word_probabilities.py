"""How likely words continue a prompt, over all of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..errors import NPTError
from .scoring import Continuation, score
from .tokens import encode_pair, start_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def word_probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, words: Sequence[str]
) -> list[float]:
    """The probability that each word continues `prompt`: the product over all of the word's tokens, each given those
    before it, which distinguishes words that begin with the same token (1889, 1925).

    Read by the model in the mode that it is in. Raises NPTError for an empty word.
    """
    if not all(word.strip() for word in words):
        raise NPTError("a word to track is empty")
    start = start_token(tokenizer)
    pairs = (encode_pair(tokenizer, prompt, word) for word in words)
    rows = [Continuation([start, *before], word) for before, word in pairs]
    return [s.logprobs.sum().exp().item() for s in score(model, rows)]


def words_of_one_token(tokenizer: PreTrainedTokenizerBase, prompt: str, words: Sequence[str]) -> set[int]:
    """The tokens that are all of a word, after the prompt."""
    tokens = (encode_pair(tokenizer, prompt, word)[1] for word in words)
    return {t[0] for t in tokens if len(t) == 1}
