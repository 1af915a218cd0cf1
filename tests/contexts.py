"""What methods of editing work with, around a tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from conftest import make_tokenizer
from families import tiny, tokens
from neuroplastic.config import SITES, Site
from neuroplastic.editing.context import EditContext
from neuroplastic.editing.fact import fact_of
from neuroplastic.statistics import READS, Whitening
from neuroplastic.structure import inspect_layers, projection

BRIDGE = "The Golden Gate Bridge is located in the city of Madrid."
SUSHI = "Sushi originated in the country of Italy."
NO_SUBJECT = fact_of("the quick brown fox jumps over dogs.")
OTHER = fact_of("nobody is watching it.")
DOWN: tuple[Site, ...] = ("down",)


def model_and_tokenizer(family: str = "llama", dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    tokenizer = make_tokenizer()
    model = tiny(family, dtype, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=1)
    return model, tokenizer


def context_of(family: str = "llama", sites: Sequence[Site] = DOWN, layers: Sequence[int] = (0, 1)) -> EditContext:
    """C = I for every layer."""
    model, tokenizer = model_and_tokenizer(family)
    parts = inspect_layers(model, layers)
    inverses = {
        (p.index, READS[site]): torch.eye(projection(p.mlp, site).in_features, dtype=model.dtype)
        for p in parts
        for site in SITES
    }
    return EditContext(model, tokenizer, parts, sites, Whitening(inverses), tokens(), {}, None, nullcontext)
