"""Drift on ordinary text against the explicit formulas."""

from __future__ import annotations

import pytest
import torch

import neuroplastic as npt
from neuroplastic.evaluation.ordinary import ROWS, OrdinaryText
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
