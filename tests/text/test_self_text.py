"""Text that a model writes itself: written once, and that of the package used for the model that wrote it alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from conftest import make_tokenizer
from families import tiny
from neuroplastic.files import content_hash, read_tensors
from neuroplastic.models import load_base
from neuroplastic.surgery import base_state
from neuroplastic.text import self_text as text
from neuroplastic.text.self_text import SHIPPED, random_words, self_text, write_text
from neuroplastic.text.tokens import start_token

FILE = SHIPPED / "smollm2-135m.safetensors"


def test_shipped_text_is_that_of_its_base_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the lengths that users get
    tensors, metadata = read_tensors(FILE)
    for seed, count in ((0, text.SELF_TEXTS), (1, text.CALIBRATION_TEXTS)):
        found = text._shipped(metadata["base"], count, seed)
        assert found is not None
        assert found.dtype == torch.int64
        assert torch.equal(found, tensors[f"seed{seed}"].long())
        assert text._shipped("0" * 64, count, seed) is None
        assert text._shipped(metadata["base"], count + 1, seed) is None
    assert text._shipped(metadata["base"], text.SELF_TEXTS, 2) is None


@pytest.mark.real
def test_shipped_text_is_what_the_model_writes() -> None:
    """The first words of some rows, from a forward pass over the whole text."""
    model, tokenizer = load_base()
    rows = read_tensors(FILE)[0]["seed0"][:3, :2].long()
    again = write_text(model, rows, 6, seed=5)
    assert again.shape == (3, 6)
    assert set(rows[:, 0].tolist()) == {start_token(tokenizer)}
    words = random_words(tokenizer, text.SELF_TEXTS, 0)
    assert rows[:, 1].tolist() == words[:3]
    with torch.no_grad():
        ids = read_tensors(FILE)[0]["seed0"][:4].long()
        nll = torch.nn.functional.cross_entropy(
            model(input_ids=ids).logits[:, 1:-1].flatten(0, 1), ids[:, 2:].flatten()
        )
    assert nll < 5  # its own sampled text; that of another model, or of shuffled rows, is far less likely


def test_random_words_are_words() -> None:
    tokenizer = make_tokenizer()
    words = random_words(tokenizer, 10)
    assert len(words) == 10
    assert all(str(tokenizer.decode([w])).strip().isalpha() for w in words)


def test_sampling_follows_the_model_and_the_seed() -> None:
    model = tiny("llama")
    state = torch.get_rng_state()
    opening = torch.full((4000, 1), 7)
    first = write_text(model, opening, 2)
    assert torch.equal(first, write_text(model, opening, 2))
    assert not torch.equal(first, write_text(model, opening, 2, seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        expected = model(input_ids=opening[:1]).logits[0, -1].softmax(-1)
    found = torch.bincount(first[:, 1], minlength=96) / 4000
    assert (found - expected).abs().max() < 5 * (expected.max() / 4000).sqrt()
    longer = write_text(model, opening[:3], 6)
    assert longer.shape == (3, 6)


def test_self_text_is_written_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer))
    base_hash = content_hash(base_state(model))
    statistics, held_out = self_text(model, tokenizer, base_hash)
    assert statistics.shape == (8, 24)
    assert held_out.shape == (4, 24)
    monkeypatch.setattr("neuroplastic.text.self_text.write_text", None)  # reading the cache must not need it
    again, _ = self_text(model, tokenizer, base_hash)
    assert torch.equal(again, statistics)
