"""The name of the cache follows the signature of the model that is called."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.testing import assert_close
from transformers import DynamicCache

from families import tiny, tokens
from neuroplastic.kv_cache import cache_argument, cache_of


class Old(nn.Module):
    def forward(self, past_key_values: Any = None) -> None: ...


class New(nn.Module):
    def forward(self, cache: Any = None) -> None: ...


def test_the_name_is_that_of_the_signature() -> None:
    assert cache_argument(Old(), 1) == {"past_key_values": 1}
    assert cache_argument(New(), 1) == {"cache": 1}


def test_the_cache_of_an_output_is_found_under_either_name() -> None:
    assert cache_of({"cache": 1}) == 1
    assert cache_of({"past_key_values": 2}) == 2


@torch.no_grad()
def test_the_installed_transformers_reads_on_from_a_cache() -> None:
    model, ids = tiny("llama"), tokens(2, 9)
    cache = DynamicCache(config=model.config)
    first = model(ids[:, :5], use_cache=True, **cache_argument(model, cache))
    assert cache_of(first) is cache
    rest = model(ids[:, 5:], **cache_argument(model, cache)).logits
    assert_close(torch.cat([first.logits, rest], 1), model(ids).logits)
