"""Ordinary text as a model itself writes it: what its statistics are measured on, and drift."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..console import Progress, progress
from ..errors import NPTError
from ..files import cache_dir, read_tensors, write_tensors
from ..kv_cache import cache_argument
from .tokens import context_length, encode, require_finite, start_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SELF_TEXTS, SELF_LENGTH, HELD_OUT = 128, 128, 16
"""Self-written text: how many sequences, how many tokens each, and how many of them are held out for measuring."""
CALIBRATION_TEXTS, CALIBRATION_HELD_OUT = 256, 64
"""The same for learning a generator, which needs more of both."""
SHIPPED = Path(__file__).parents[1] / "self_texts"


def self_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, base_hash: str) -> tuple[Tensor, Tensor]:
    """Ordinary text as the model itself writes it: (ids for statistics, ids held out), each (N, SELF_LENGTH).

    Sampled once per model at temperature 1, seeded, and cached under `base_hash`. Each sequence opens with the start
    token and a random word: left alone, an instruction-tuned model begins most of its texts with the same few tokens.
    The model must be the unedited base in standard mode.
    """
    ids = _written(model, tokenizer, base_hash, SELF_TEXTS, seed=0)
    return ids[HELD_OUT:], ids[:HELD_OUT]


def calibration_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, base_hash: str
) -> tuple[Tensor, Tensor]:
    """More of it, for learning a generator: (ids to learn from, ids held out), none of them in `self_text`."""
    ids = _written(model, tokenizer, base_hash, CALIBRATION_TEXTS, seed=1)
    return ids[CALIBRATION_HELD_OUT:], ids[:CALIBRATION_HELD_OUT]


def _written(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, base_hash: str, count: int, seed: int
) -> Tensor:
    """`count` sequences: those that come with this package, or from the cache, or written now and put there."""
    if (shipped := _shipped(base_hash, count, seed)) is not None:
        return shipped.to(model.device)
    name = f"self_text_{count}x{SELF_LENGTH}" + (f"_seed{seed}" if seed else "")
    path = cache_dir() / "statistics" / base_hash[:16] / f"{name}.safetensors"
    length = min(SELF_LENGTH, context_length(model))
    if path.exists():
        tensors, _ = read_tensors(path)
        ids = tensors.get("ids")
        if ids is None or tuple(ids.shape) != (count, length):
            raise NPTError(f"{path} does not hold the text it should; delete it and it is written again")
    else:
        with progress("the model writes its own calibration text (once per model)") as step:
            openings = [[start_token(tokenizer), word] for word in random_words(tokenizer, count, seed)]
            ids = write_text(model, torch.tensor(openings, device=model.device), length, seed, step)
        write_tensors(path, {"ids": ids.int()}, {"base": base_hash, "seed": seed, "temperature": 1.0})
    return ids.long().to(model.device)


def _shipped(base_hash: str, count: int, seed: int) -> Tensor | None:
    """The text of a model whose text comes with this package, so that its users need not wait for it to be written.

    `benchmarks/ship_text.py` writes these files.
    """
    for file in sorted(SHIPPED.glob("*.safetensors")):
        tensors, metadata = read_tensors(file)
        found = tensors.get(f"seed{seed}")
        if metadata.get("base") == base_hash and found is not None and tuple(found.shape) == (count, SELF_LENGTH):
            return found.long()
    return None


def random_words(
    tokenizer: PreTrainedTokenizerBase, count: int, seed: int = 0, pattern: str = r" [A-Za-z]{3,}"
) -> list[int]:
    """`count` different tokens that are a whole word of at least three letters, drawn at random from the vocabulary."""
    rng = torch.Generator("cpu").manual_seed(seed)
    order = torch.randperm(len(tokenizer), generator=rng, device=rng.device).tolist()
    special, before = set(tokenizer.all_special_ids), encode(tokenizer, "a")

    def is_word(
        token: int,
    ) -> bool:  # decoded after another one, because some tokenizers drop a space at the beginning
        shown = str(tokenizer.decode([*before, token]))[1:]
        return token not in special and re.fullmatch(pattern, shown) is not None

    words = filter(is_word, order)
    found = list(itertools.islice(words, count))
    if not found:
        raise NPTError("the tokenizer's vocabulary holds no words to begin a text with")
    return list(itertools.islice(itertools.cycle(found), count))


@torch.no_grad()
def write_text(
    model: PreTrainedModel, openings: Tensor, length: int, seed: int = 0, progress: Progress | None = None
) -> Tensor:
    """Continues openings (N, T0) to (N, length), sampled at temperature 1.

    Sampling inverts the cumulative distribution: `generate` draws one exponential per word of the vocabulary, which
    costs a third of a step on a CPU.
    """
    from transformers import DynamicCache

    rng = torch.Generator(device=model.device).manual_seed(seed)
    ids, new, cache = openings, openings, DynamicCache(config=model.config)
    while ids.shape[1] < length:
        logits = model(input_ids=new, use_cache=True, **cache_argument(model, cache)).logits[:, -1]
        require_finite(logits)
        cumulative = logits.float().softmax(-1).cumsum(-1)
        u = torch.rand((len(ids), 1), generator=rng, device=model.device) * cumulative[:, -1:]
        new = torch.searchsorted(cumulative, u).clamp_max(cumulative.shape[-1] - 1)
        ids = torch.cat([ids, new], 1)
        if progress is not None:
            progress(ids.shape[1], length)
    return ids
