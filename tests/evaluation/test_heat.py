"""Modulation norms against the dense weight updates."""

from __future__ import annotations

import pytest
import torch

import neuroplastic as npt
from conftest import make_tokenizer
from families import tiny
from neuroplastic.evaluation.heat import modulation_norms

STATEMENT = "The Golden Gate Bridge is in Madrid."


@pytest.mark.parametrize(
    "config", [None, npt.PlasticityConfig(generator="low_rank", np_rank=4, num_ranks=2, layers="1")]
)
def test_norms_are_those_of_dense_updates(config: npt.PlasticityConfig | None) -> None:
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer))
    if config is not None:
        npt.convert(model, config)
    found = modulation_norms(model, tokenizer, STATEMENT)
    assert found.layers == ([0, 1] if config is None else [1])
    assert "".join(found.tokens) == STATEMENT.replace(" ", "")
    for layer, norms in zip(found.layers, found.norms, strict=True):
        for position, norm in enumerate(norms):
            own = npt.extract_modulation(model, tokenizer, STATEMENT, position)
            dense = [own.dense(*place).square().sum() for place in own.factors if place[0] == layer]
            assert norm == pytest.approx(torch.stack(dense).sum().sqrt().item(), rel=1e-4)
