"""Each figure against a direct computation."""

from __future__ import annotations

import pytest

import neuroplastic as npt
from families import tiny, tokens
from neuroplastic.evaluation.fidelity import buckets
from neuroplastic.text.perplexity import perplexity


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
    assert found.perplexity_ratio == pytest.approx(found.perplexity / found.perplexity_base)
    assert found.by_layer == {}
    assert {name: a.tokens for name, a in found.by_position.items()} == {"1": 3, "2-3": 6, "4-7": 12, "8-9": 6}
    third = (logp.exp() * (logp - logq)).sum(-1)[:, 1:3]
    assert found.by_position["2-3"].kl == pytest.approx(third.mean().item(), rel=1e-4)
    assert perplexity(base, text, batch_size=2) == pytest.approx(found.perplexity_base, rel=1e-5)
    assert all(layer.state.dynamic for layer in npt.plastic_layers(model).values())


@pytest.mark.usefixtures("no_grad")
def test_each_layer_alone() -> None:
    text, config = tokens(3, 10), npt.PlasticityConfig(preset="single")
    model = npt.convert(tiny("llama"), config)
    found = npt.measure_fidelity(model, text, batch_size=2, each_layer=True)
    for layer in ("0", "1"):
        one = npt.convert(tiny("llama"), npt.PlasticityConfig(preset="single", layers=layer))
        alone = npt.measure_fidelity(one, text)
        assert found.by_layer[layer].kl == pytest.approx(alone.kl, rel=1e-5)
        assert found.by_layer[layer].top1_agreement == alone.top1_agreement
        assert found.by_layer[layer].perplexity_ratio == pytest.approx(alone.perplexity_ratio, rel=1e-6)
    assert all(layer.state.dynamic for layer in npt.plastic_layers(model).values())


def test_buckets_of_positions_cover_all_once() -> None:
    for n in (1, 2, 3, 7, 8, 127):
        covered = [i for at in buckets(n).values() for i in range(n)[at]]
        assert covered == list(range(n))
    assert list(buckets(8)) == ["1", "2-3", "4-7", "8"]
