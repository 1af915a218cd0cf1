"""Answers under teacher forcing: how likely they are, and which tokens the model finds likeliest in their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..text.scoring import Continuation, score
from ..text.tokens import encode_pair, start_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Answers(NamedTuple):
    """N answers, each after its prompt."""

    logprob: Tensor
    """mean log-probability per token, nats (N,)"""
    accuracy: Tensor
    """share of the answer's tokens that are the likeliest at their positions (N,)"""
    likeliest: list[list[int]]
    """the token that is likeliest at each place of the answer"""


def ask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]) -> Answers:
    """Every (prompt, answer), under teacher forcing. The answer follows the prompt as `encode_pair` has it: after a
    space, if the script writes spaces."""
    start = start_token(tokenizer)
    encoded = [encode_pair(tokenizer, prompt, answer) for prompt, answer in pairs]
    scores = score(model, [Continuation([start, *prompt], answer) for prompt, answer in encoded])
    return Answers(
        torch.stack([s.logprobs.mean() for s in scores]),
        torch.stack([s.right.float().mean() for s in scores]),
        [s.likeliest.tolist() for s in scores],
    )
