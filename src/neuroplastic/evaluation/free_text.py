"""Fluency, beyond teacher forcing: whether the answer is in what the model writes freely, and how well it writes."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..text.generation import generate
from ..text.spaces import without_trailing_spaces
from ..text.tokens import batch, decode_after, encode, start_token
from .records import Context, Record

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ANSWER_TOKENS = 20
"""Number of tokens written greedily after the edit's prompt and after each paraphrase."""
ESSAY_TOKENS, ESSAYS, TOP_K = 60, 4, 5
"""Number of tokens written after an opening about the subject, and of openings at most; each token is drawn from the
likeliest TOP_K (ROME)."""


def written(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: Record, context: Context = "", seed: int = 0
) -> dict[str, float]:
    """`es_gen` and `ps_gen`: share of greedy continuations of the edit's prompt and of the paraphrases, if it has any,
    that hold the new answer. `entropy`: n-gram entropy of longer texts about the subject (bits), mean over texts; from
    the record's openings, or from its own prompts if it has none."""
    prefixed = record.after(context)
    prompts = (prefixed.prompt, *prefixed.paraphrases)
    own, *others = (float(holds(text, record.new)) for text in write(model, tokenizer, prompts, ANSWER_TOKENS))
    openings = (prefixed.openings or prompts)[:ESSAYS]
    bare = (record.openings or (record.prompt, *record.paraphrases))[:ESSAYS]
    texts = write(model, tokenizer, openings, ESSAY_TOKENS, seed=seed)
    # as in ROME, a text counts with its opening; the context before that does not
    entropies = [ngram_entropy(o + t) for o, t in zip(bare, texts, strict=True)]
    found = {"es_gen": own} | ({"ps_gen": sum(others) / len(others)} if others else {})
    return found | {"entropy": sum(entropies) / len(entropies)}


@torch.no_grad()
def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    new_tokens: int,
    seed: int | None = None,
) -> list[str]:
    """The continuations of all prompts, in one batch padded on the left: greedy, or drawn with `seed` from the
    TOP_K likeliest tokens. The global random state stays as it is."""
    start = start_token(tokenizer)
    rows = [[start, *encode(tokenizer, without_trailing_spaces(p))] for p in prompts]
    ids, mask = batch(rows, start, model.device, left=True)
    pad = tokenizer.pad_token_id
    how = (
        {"do_sample": False} if seed is None else {"do_sample": True, "top_k": TOP_K, "top_p": 1.0, "temperature": 1.0}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0 if seed is None else seed)
        out = generate(
            model,
            ids,
            mask,
            max_new_tokens=new_tokens,
            pad_token_id=start if pad is None else pad,
            **how,
        )
    return [decode_after(tokenizer, row[: ids.shape[1]], row[ids.shape[1] :]) for row in out.tolist()]


def holds(text: str, answer: str) -> bool:
    """Whether the answer stands in the text, as whole words, in capitals or not."""
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE) is not None


def ngram_entropy(text: str) -> float:
    """H_2 / 3 + 2 H_3 / 3 with H_n the entropy, in bits, of the distribution of the text's n-grams of words (Zhang et
    al. 2018; weights as in ROME). Low if a text repeats itself; it also grows with the text's length."""
    words = re.findall(r"\w+|[^\w\s]", text)
    return (_entropy(words, 2) + 2 * _entropy(words, 3)) / 3


def _entropy(words: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    total = counts.total()
    return -sum(c / total * math.log2(c / total) for c in counts.values()) if total else 0.0
