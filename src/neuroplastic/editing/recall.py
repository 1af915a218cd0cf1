"""How well a model recalls its facts: the statement's own log-probability, and the probability of its answer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..text.scoring import Continuation, score
from ..text.tokens import encode, encode_after, start_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Query:
    """What to ask a model: a statement to read, and the question and answer in it."""

    statement: str
    question: str
    answer: str


@dataclass(frozen=True)
class Recall:
    """How a model continues a statement."""

    statement_logprob: float
    """mean log-probability per token (nats) of the statement after the start token"""
    answer_probability: float
    """probability of the answer after the question"""
    holds: bool
    """every token of the answer is the likeliest one"""
    elsewhere_probability: float
    """mean probability of the answer when unrelated text precedes the question; if there is no such text, the
    probability after the question alone"""


@torch.no_grad()
def recall(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    queries: Sequence[Query],
    prefixes: Sequence[Sequence[int]] = (),
) -> list[Recall]:
    """Each statement and question, read by the model in the mode that it is in; `prefixes` are unrelated texts."""
    start = start_token(tokenizer)
    rows: list[Continuation] = []  # for each query its statement, its answer alone, and after each of the prefixes
    for query in queries:
        question, answer = encode_after(tokenizer, query.question, query.answer)
        rows.append(Continuation([start], encode(tokenizer, query.statement)))
        rows += [Continuation([start, *prefix, *question], answer) for prefix in ((), *prefixes)]
    scores = iter(score(model, rows))
    found = []
    for _ in queries:
        statement, alone, *after = itertools.islice(scores, 2 + len(prefixes))
        elsewhere = [s.logprobs.sum().exp().item() for s in (after or [alone])]
        found.append(
            Recall(
                statement.logprobs.mean().item(),
                alone.logprobs.sum().exp().item(),
                bool(alone.right.all()),
                sum(elsewhere) / len(elsewhere),
            )
        )
    return found
