"""How likely a model finds the continuations of texts: the one reader of answers, and the one maker of batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from .tokens import batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LARGEST_BATCH = 32
"""Rows read at once."""
COST_OF_A_BATCH = 64
"""Cost of a batch beside its tokens, in tokens."""
Row = tuple[int, ...]


class Continuation(NamedTuple):
    """Tokens that are read, start token included, and those that should follow them."""

    read: Sequence[int]
    wanted: Sequence[int]


class Score(NamedTuple):
    """What a model gives for the wanted tokens of one continuation, on the CPU."""

    logprobs: Tensor
    """of each wanted token, nats [n]"""
    likeliest: Tensor
    """the token that is likeliest in its place [n], int64"""
    right: Tensor
    """whether that is the wanted one [n], bool"""


def log_probabilities(head: nn.Module, states: Tensor) -> Tensor:
    """What a head predicts from last hidden states [..., d], in nats, in float32 at least [..., vocabulary]."""
    logits: Tensor = head(states)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


@torch.no_grad()
def score(model: PreTrainedModel, continuations: Sequence[Continuation]) -> list[Score]:
    """Each continuation under teacher forcing, by the model in the mode that it is in.

    They are read in padded batches of similar length. A row that another row begins with is not read by itself, because
    a causal model reads the two alike; both answers to a question are often such rows.
    """
    needed = [(*c.read, *c.wanted[:-1]) for c in continuations]
    longest = longest_rows(needed)
    rows = sorted(set(longest.values()), key=len)
    asks: dict[Row, list[int]] = {row: [] for row in rows}
    for i, row in enumerate(needed):
        asks[longest[row]].append(i)
    found: dict[int, Score] = {}
    head = model.get_output_embeddings()
    for some in batches_of_like_length([len(row) for row in rows]):
        ids, mask = batch([rows[i] for i in some], 0, model.device)
        states = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
        asked = [(j, i) for j, number in enumerate(some) for i in asks[rows[number]]]
        # the vocabulary is large: only the positions that predict a wanted token get logits
        at = [(j, len(continuations[i].read) - 1 + n) for j, i in asked for n in range(len(continuations[i].wanted))]
        row, column = torch.tensor(at, device=ids.device).T
        logprobs = log_probabilities(head, states[row, column])
        wanted = torch.tensor([t for _, i in asked for t in continuations[i].wanted], device=ids.device)
        of_wanted = logprobs.gather(-1, wanted[:, None])[:, 0]
        likeliest = logprobs.argmax(-1)
        lengths = [len(continuations[i].wanted) for _, i in asked]
        parts = (torch.split(t.cpu(), lengths) for t in (of_wanted, likeliest, likeliest == wanted))
        found |= {i: Score(*of_one) for (_, i), of_one in zip(asked, zip(*parts, strict=True), strict=True)}
    return [found[i] for i in range(len(continuations))]


def longest_rows(rows: Iterable[Row]) -> dict[Row, Row]:
    """Each row, and one that begins with it and is the beginning of no other."""
    found: dict[Row, Row] = {}
    last: Row = ()
    # in alphabetical order a row comes right before those that begin with it
    for row in sorted(set(rows), reverse=True):
        found[row] = found[last] if last[: len(row)] == row else row
        last = row
    return found


def batches_of_like_length(lengths: Sequence[int]) -> list[list[int]]:
    """Indices in batches of at most LARGEST_BATCH rows, whose padded tokens, and COST_OF_A_BATCH for each batch, are
    fewest."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    best: list[tuple[int, int]] = [(0, 0)]  # of the first i in order: the cost, and where their last batch begins
    for i in range(1, len(order) + 1):
        begins = range(max(0, i - LARGEST_BATCH), i)
        best.append(min((best[j][0] + (i - j) * lengths[order[i - 1]] + COST_OF_A_BATCH, j) for j in begins))
    batches: list[list[int]] = []
    end = len(order)
    while end > 0:
        begin = best[end][1]
        batches.append(order[begin:end])
        end = begin
    return batches[::-1]
