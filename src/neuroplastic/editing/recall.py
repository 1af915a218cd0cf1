"""Does the model say what it was told: the statement's own log-probability, and its answer asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import NPTError
from ..text.tokens import batch, encode, encode_after, encode_pair, start_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROWS = 64
"""Sequences read at once."""


@dataclass(frozen=True)
class Asked:
    """What to ask a model: a statement to read, and the question and answer in it."""

    statement: str
    question: str
    answer: str


@dataclass(frozen=True)
class Recall:
    """How a model continues a statement."""

    statement_logprob: float
    """mean log-probability per token (nats) of the statement behind the start token"""
    answer_probability: float
    """probability of the answer behind the question"""
    holds: bool
    """every token of the answer is the likeliest one"""
    elsewhere_probability: float
    """mean probability of the answer where the question stands behind unrelated text; that of the question alone
    where there is no such text"""


@torch.no_grad()
def recall(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Asked],
    prefixes: Sequence[Sequence[int]] = (),
) -> list[Recall]:
    """Each statement and question, read by the model in the mode that it is in; `prefixes` are unrelated texts."""
    start = start_token(tokenizer)
    rows: list[tuple[list[int], list[int]]] = []  # what is read, and how it goes on
    answers: list[tuple[int, int, slice]] = []  # the statement's row, the answer's, and where it stands there
    for a in asked:
        question, answer = encode_after(tokenizer, a.question, a.answer)
        statement = encode(tokenizer, a.statement)
        first, n = len(rows), len(question) + len(answer)
        rows.append(([start], statement))
        if statement[:n] == question + answer:  # mostly: then it is read once for both
            answers.append((first, first, slice(len(question), n)))
        else:
            answers.append((first, first + 1, slice(len(answer))))
            rows.append(([start, *question], answer))
        rows += [([start, *prefix, *question], answer) for prefix in prefixes]
    said = _read_all(model, rows)
    found = []
    for first, own, at in answers:
        logprobs, likeliest = said[own]
        probability = logprobs[at].sum().exp().item()
        others = [s.sum().exp().item() for s, _ in said[own + 1 : own + 1 + len(prefixes)]] or [probability]
        holds = bool(likeliest[at].all())
        found.append(Recall(said[first][0].mean().item(), probability, holds, sum(others) / len(others)))
    return found


@torch.no_grad()
def word_probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, words: Sequence[str]
) -> list[float]:
    """The probability that `prompt` goes on with each word: the product over all of the word's tokens, each behind
    those before it. So words that begin with the same token (1889, 1925) are told apart.

    Read by the model in the mode that it is in. Raises NPTError for an empty word.
    """
    if not all(word.strip() for word in words):
        raise NPTError("a word to track is empty")
    start = start_token(tokenizer)
    pairs = (encode_pair(tokenizer, prompt, word) for word in words)
    return [said.sum().exp().item() for said, _ in _read_all(model, [([start, *p], w) for p, w in pairs])]


def words_of_one_token(tokenizer: PreTrainedTokenizerBase, prompt: str, words: Sequence[str]) -> set[int]:
    """The tokens that are all of a word, after the prompt."""
    tokens = (encode_pair(tokenizer, prompt, word)[1] for word in words)
    return {t[0] for t in tokens if len(t) == 1}


def _read_all(model: PreTrainedModel, rows: Sequence[tuple[list[int], list[int]]]) -> list[tuple[Tensor, Tensor]]:
    """`_read` in batches of like length, in the order of the rows."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for done in range(0, len(order), ROWS):
        some = order[done : done + ROWS]
        found |= zip(some, _read(model, [rows[i] for i in some]), strict=True)
    return [found[i] for i in range(len(rows))]


def _read(model: PreTrainedModel, rows: Sequence[tuple[list[int], list[int]]]) -> list[tuple[Tensor, Tensor]]:
    """Per row, the log-probability of each token it goes on with, and whether it is the likeliest one."""
    ids, mask = (t.to(model.device) for t in batch([read + on[:-1] for read, on in rows], pad=0))
    states = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
    at = [(i, len(read) - 1 + j) for i, (read, on) in enumerate(rows) for j in range(len(on))]
    row, column = torch.tensor(at, device=ids.device).T
    # the vocabulary is large: only the positions that predict what follows get logits
    logits = model.get_output_embeddings()(states[row, column]).float().log_softmax(-1)
    wanted = torch.tensor([t for _, on in rows for t in on], device=ids.device)
    lengths = [len(on) for _, on in rows]
    right = (logits.argmax(-1) == wanted).split(lengths)
    logprobs = logits[torch.arange(len(wanted), device=ids.device), wanted].split(lengths)
    return [(lp.cpu(), r.cpu()) for lp, r in zip(logprobs, right, strict=True)]
