"""Answers under teacher forcing: how likely they are, and which tokens the model would have said instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..text import batch, encode, start_token

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


@torch.no_grad()
def ask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]) -> Answers:
    """Every (prompt, answer) read in one padded batch; the answer stands behind a space.

    Answers of one token behind the same prompt are read off one row.
    """
    start = start_token(tokenizer)
    prompts = [[start, *encode(tokenizer, prompt)] for prompt, _ in pairs]
    targets = [encode(tokenizer, f" {answer}") for _, answer in pairs]
    needed = [tuple(p + t[:-1]) for p, t in zip(prompts, targets, strict=True)]
    rows = {read: i for i, read in enumerate(dict.fromkeys(needed))}
    ids, mask = (t.to(model.device) for t in batch(list(rows), pad=start))
    states = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
    at = [
        (rows[read], len(p) - 1 + j) for read, p, t in zip(needed, prompts, targets, strict=True) for j in range(len(t))
    ]
    row, column = torch.tensor(at, device=ids.device).T
    # the vocabulary is large: only the positions that predict a token of an answer get logits
    logits = model.get_output_embeddings()(states[row, column]).float()
    wanted = torch.tensor([t for target in targets for t in target], device=ids.device)
    lengths = [len(t) for t in targets]
    found = logits.log_softmax(-1)[torch.arange(len(wanted), device=ids.device), wanted].cpu().split(lengths)
    likeliest = logits.argmax(-1)
    right = (likeliest == wanted).float().cpu().split(lengths)
    return Answers(
        torch.stack([f.mean() for f in found]),
        torch.stack([r.mean() for r in right]),
        [s.tolist() for s in likeliest.cpu().split(lengths)],
    )
