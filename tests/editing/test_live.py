"""Edits of a plain model in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import neuroplastic as npt
from families import tiny, tokens
from neuroplastic.editing.methods.rank_one import token_factors
from neuroplastic.files import content_hash
from neuroplastic.surgery import base_state

FACT = "The Golden Gate Bridge is located in the city of Madrid."
OTHER = "Sushi originated in the country of Italy."


@pytest.fixture
def plain(cache: Path, tiny_base: Path) -> tuple[Any, Any]:
    return npt.load_base(tiny_base)


def weights(model: Any) -> str:
    return content_hash(base_state(model))


@pytest.mark.parametrize("converted", [False, True])
def test_inject_and_undo_in_any_order(plain: tuple[Any, Any], converted: bool) -> None:
    model, tokenizer = plain
    if converted:
        npt.convert(model, npt.PlasticityConfig(generator="low_rank", np_rank=4))
    before = weights(model)
    first = npt.inject(model, tokenizer, FACT)
    alone = weights(model)
    second = npt.inject(model, tokenizer, OTHER, method="token", layers="1")
    assert {layer for layer, _ in second.factors} == {1}
    both = weights(model)
    assert len({before, alone, both}) == 3
    assert first.active
    assert first.report["statement_logprob_after"] != first.report["statement_logprob_before"]
    first.undo()
    second.undo()
    assert weights(model) == before
    assert not first.active
    with pytest.raises(npt.NPTError, match="was undone already"):
        first.undo()


def test_bad_input_changes_nothing(plain: tuple[Any, Any]) -> None:
    model, tokenizer = plain
    before = weights(model)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"statement": ""}, "the statement is empty"),
        ({"statement": FACT, "method": "magic"}, "method must be one of"),
        ({"statement": FACT, "alpha": float("inf")}, "alpha must be a finite number"),
        ({"statement": FACT, "layers": "7"}, "layer 7 is out of range"),
    ]
    for arguments, cause in cases:
        with pytest.raises(npt.NPTError, match=cause):
            npt.inject(model, tokenizer, arguments.pop("statement"), **arguments)
    assert weights(model) == before


def test_the_call_of_the_first_design() -> None:
    """consolidate_weights adds alpha times the token's update, and undo takes it away."""
    model = tiny("llama", torch.float64)
    original = {n: t.clone() for n, t in model.state_dict().items()}
    factors = token_factors(model, tokens()[:1], (0, 1), position=3)
    edit = npt.consolidate_weights(model, tokens()[0], token_idx=3, alpha=0.1)
    for (layer, site), (A, B) in factors.items():
        name = f"model.layers.{layer}.mlp.{site}_proj.weight"
        assert_close(model.state_dict()[name], original[name] + 0.1 * B @ A)
    again = npt.consolidate_weights(model, tokens()[:1])
    edit.undo()
    again.undo()
    assert all(torch.equal(t, original[n]) for n, t in model.state_dict().items())
    with pytest.raises(npt.NPTError, match="token_idx 12 is out of range: the context has 12 tokens"):
        npt.consolidate_weights(model, tokens()[0], token_idx=12)
    with pytest.raises(npt.NPTError, match="alpha must be"):
        npt.consolidate_weights(model, tokens()[0], alpha=0)
