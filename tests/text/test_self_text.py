"""Text that comes with the package is used for the model that wrote it, and for no other."""

from __future__ import annotations

import pytest
import torch

from neuroplastic.files import read_tensors
from neuroplastic.models import load_base
from neuroplastic.text import self_text as text
from neuroplastic.text.tokens import start_token

FILE = text.SHIPPED / "smollm2-135m.safetensors"


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
    again = text.write_text(model, rows, 6, seed=5)
    assert again.shape == (3, 6)
    assert set(rows[:, 0].tolist()) == {start_token(tokenizer)}
    words = text.random_words(tokenizer, text.SELF_TEXTS, 0)
    assert rows[:, 1].tolist() == words[:3]
    with torch.no_grad():
        ids = read_tensors(FILE)[0]["seed0"][:4].long()
        nll = torch.nn.functional.cross_entropy(
            model(input_ids=ids).logits[:, 1:-1].flatten(0, 1), ids[:, 2:].flatten()
        )
    assert nll < 5  # its own sampled text; that of another model, or of shuffled rows, is far less likely
