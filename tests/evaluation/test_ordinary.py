"""Drift on ordinary text against the explicit formulas."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import neuroplastic as npt
from neuroplastic.evaluation.ordinary import LENGTH, ROWS, Ordinary, OrdinaryText, rows_of_text
from neuroplastic.structure import projection
from neuroplastic.surgery import mode


@pytest.mark.usefixtures("no_grad")
def test_drift_is_what_it_says(workspace: npt.Workspace) -> None:
    engine = workspace.engine
    text = engine.text[1][:ROWS]
    ordinary = OrdinaryText(engine)
    assert ordinary.drift() == (0, 0)
    with mode(engine.model, "standard"):
        p = engine.model(input_ids=text).logits[:, :-1].double().log_softmax(-1)
    weight = projection(engine.parts[0].mlp, "down").weight
    before = weight.detach().clone()
    weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
    with mode(engine.model, "standard"):
        q = engine.model(input_ids=text).logits[:, :-1].double().log_softmax(-1)
    found = ordinary.drift()
    rise = -(q - p).gather(-1, text[:, 1:, None]).mean()
    assert found.perplexity == pytest.approx(rise.exp().item() - 1, rel=1e-4)
    assert found.kl == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-4)
    assert found.kl > 0.001
    weight.copy_(before)
    assert ordinary.drift() == (0, 0)


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("name", ["text.txt", "text.jsonl"])
def test_drift_on_a_given_text_stands_beside_that_on_the_models_own(
    workspace: npt.Workspace, tmp_path: Path, name: str
) -> None:
    engine = workspace.engine
    written = "The quick brown fox. " * 100
    (tmp_path / name).write_text(json.dumps({"text": written}) if name.endswith("l") else written)
    rows = rows_of_text(engine.tokenizer, tmp_path / name, engine.model.device)
    assert rows.shape == (ROWS, LENGTH)
    assert str(engine.tokenizer.decode(rows[0, 1:])).startswith("The quick brown fox. The")
    ordinary = Ordinary(engine, rows)
    projection(engine.parts[0].mlp, "down").weight.mul_(1.1)
    found = ordinary.drift()
    assert found.keys() == {"perplexity", "kl", "perplexity_text", "kl_text"}
    assert 0 < found["kl"] != found["kl_text"] > 0
    assert Ordinary(engine).drift().keys() == {"perplexity", "kl"}
