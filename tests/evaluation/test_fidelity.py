"""Each figure against a direct computation."""

from __future__ import annotations

import pytest

import neuroplastic as npt
from families import tiny, tokens
from neuroplastic.evaluation.fidelity import perplexity


@pytest.mark.usefixtures("no_grad")
def test_figures_are_what_they_say() -> None:
    text = tokens(3, 10)
    base = tiny("llama")
    model = npt.convert(tiny("llama"), npt.PlasticityConfig(preset="single"))
    found = npt.measure_fidelity(model, text, batch_size=2)
    p = base(input_ids=text, output_hidden_states=True)
    q = model(input_ids=text, output_hidden_states=True)
    logp, logq = p.logits[:, :-1].log_softmax(-1), q.logits[:, :-1].log_softmax(-1)
    target = text[:, 1:, None]
    assert found.tokens == 27
    assert found.perplexity_base == pytest.approx((-logp.gather(-1, target)).mean().exp().item(), rel=1e-5)
    assert found.perplexity == pytest.approx((-logq.gather(-1, target)).mean().exp().item(), rel=1e-5)
    assert found.kl == pytest.approx((logp.exp() * (logp - logq)).sum(-1).mean().item(), rel=1e-4)
    assert found.top1_agreement == pytest.approx((logp.argmax(-1) == logq.argmax(-1)).float().mean().item())
    assert found.max_logit_error == pytest.approx((p.logits - q.logits).abs().max().item(), rel=1e-5)
    states, base_states = q.hidden_states[1][:, 1:], p.hidden_states[1][:, 1:]
    assert found.per_layer_error["0"] == pytest.approx(
        ((states - base_states).norm() / base_states.norm()).item(), rel=1e-4
    )
    assert found.kl > 0.01
    assert perplexity(base, text, batch_size=2) == pytest.approx(found.perplexity_base, rel=1e-5)
    assert all(layer.state.dynamic for layer in npt.plastic_layers(model).values())
