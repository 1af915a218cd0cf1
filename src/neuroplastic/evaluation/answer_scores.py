"""Answers under teacher forcing: how likely they are, and which tokens the model would have said instead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..text.tokens import batch, encode_pair, start_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Answers(NamedTuple):
    """N answers, each behind its prompt."""

    logprob: Tensor
    """mean log-probability per token, nats (N,)"""
    accuracy: Tensor
    """share of the answer's tokens that are the likeliest where they stand (N,)"""
    likeliest: list[list[int]]
    """the token that is likeliest at each place of the answer"""


Row = tuple[int, ...]
SPREAD = 1.3
"""A row may be so many times as long as the shortest of its batch: more would be spent on padding than on a batch."""


@torch.no_grad()
def ask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]) -> Answers:
    """Every (prompt, answer), read in padded batches of similar length. The answer follows the prompt as `encode_pair`
    has it: behind a space, where the script writes spaces.

    What another row begins with is read off that one: both answers to a question often are.
    """
    start = start_token(tokenizer)
    encoded = [encode_pair(tokenizer, prompt, answer) for prompt, answer in pairs]
    prompts, targets = [[start, *prompt] for prompt, _ in encoded], [answer for _, answer in encoded]
    needed = [tuple(p + t[:-1]) for p, t in zip(prompts, targets, strict=True)]
    longest, states = longest_rows(needed), dict[Row, Tensor]()
    for rows in of_similar_length(longest.values()):
        ids, mask = (t.to(model.device) for t in batch(rows, pad=start))
        read = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
        states |= dict(zip(rows, read, strict=True))
    # the vocabulary is large: only the positions that predict a token of an answer get logits
    predicting = [states[longest[n]][len(p) - 1 : len(n)] for n, p in zip(needed, prompts, strict=True)]
    logits = model.get_output_embeddings()(torch.cat(predicting)).float()
    wanted = torch.tensor([t for target in targets for t in target], device=logits.device)
    lengths = [len(t) for t in targets]
    found = logits.log_softmax(-1)[torch.arange(len(wanted), device=logits.device), wanted].cpu().split(lengths)
    likeliest = logits.argmax(-1)
    right = (likeliest == wanted).float().cpu().split(lengths)
    return Answers(
        torch.stack([f.mean() for f in found]),
        torch.stack([r.mean() for r in right]),
        [s.tolist() for s in likeliest.cpu().split(lengths)],
    )


def longest_rows(rows: Iterable[Row]) -> dict[Row, Row]:
    """Each row, and one that begins with it and is the beginning of no other: a causal model reads the two alike."""
    found: dict[Row, Row] = {}
    behind: Row = ()
    # in alphabetical order a row stands right before those that begin with it
    for row in sorted(set(rows), reverse=True):
        found[row] = found[behind] if behind[: len(row)] == row else row
        behind = row
    return found


def of_similar_length(rows: Iterable[Row]) -> list[list[Row]]:
    """Every row once, sorted into batches."""
    batches: list[list[Row]] = []
    for row in sorted(set(rows), key=len):
        if batches and len(row) <= SPREAD * len(batches[-1][0]):
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
