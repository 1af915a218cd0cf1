"""Does the model say what it was told: the statement's own log-probability, and its last word asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from ..text import batch, encode, start_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Recall:
    """How a model continues a statement."""

    statement_logprob: float
    """mean log-probability per token (nats) of the statement behind the start token"""
    answer_probability: float
    """probability of the statement's last word behind all that comes before it"""
    holds: bool
    """every token of that word is the likeliest one"""


def question_and_answer(statement: str) -> tuple[str, str]:
    """A statement's last word, without punctuation behind it, and what comes before: the question it answers.

    "The Bridge is in Madrid." -> ("The Bridge is in", " Madrid"). The question is empty where there is one word only.
    """
    m = re.fullmatch(r"(.*?)(\s*\S+?)[.!?…。\"')\]]*\s*", statement.rstrip(), re.DOTALL)
    assert m is not None  # a statement holds more than white space
    return m[1], m[2]


@torch.no_grad()
def recall(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, statement: str) -> Recall:
    """One forward pass over the statement and its question; the model is asked in the mode that it is in."""
    start = start_token(tokenizer)
    question, answer = (encode(tokenizer, text) for text in question_and_answer(statement))
    rows = [[start, *encode(tokenizer, statement)], [start, *question, *answer]]
    ids, mask = (t.to(model.device) for t in batch(rows, pad=start))
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
    n = len(rows[0])
    logprob = -cross_entropy(logits[0, : n - 1], ids[0, 1:n]).item()
    wanted = torch.tensor(answer, device=model.device)
    said = logits[1, len(question) : len(question) + len(answer)].log_softmax(-1)
    probability = said[torch.arange(len(answer)), wanted].sum().exp().item()
    return Recall(logprob, probability, bool((said.argmax(-1) == wanted).all()))
