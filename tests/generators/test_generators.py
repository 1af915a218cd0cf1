"""Fast paths against the explicit formula W z + sum_k v_b (v_a . z), in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from families import tiny, tokens
from naive import naively
from neuroplastic import NPTError, PlasticityConfig, convert
from neuroplastic.config import Site
from neuroplastic.generators import Generator, Signals, make_generator
from neuroplastic.modulation import rank_k_effect, residual_growth
from neuroplastic.surgery import mode

D, F, B, T = 24, 160, 2, 8


def rand(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def signals(carried: bool = False) -> Signals:
    h, a, x, x_c, c = (rand(B, T, D, seed=s) for s in range(5))
    return Signals(a=a, h=h, x=x, x_c=x_c, carried=c if carried else None, mlp_input=reads("gate"))


def projection(site: Site) -> nn.Linear:
    d_in, d_out = (F, D) if site == "down" else (D, F)
    linear = nn.Linear(d_in, d_out, bias=True).double()
    with torch.no_grad():
        linear.weight.copy_(rand(d_out, d_in, seed=9))
        linear.bias.copy_(rand(d_out, seed=10))
    return linear


def reads(site: Site) -> Tensor:
    return rand(B, T, F if site == "down" else D, seed=7)


def generator(**settings: Any) -> Generator:
    return make_generator(PlasticityConfig(**settings), D, F, layer=0).double()


LOW_RANK = [
    {"key": key, "num_ranks": k, "input": source, "bottleneck": act}
    for key in ("self", "learned")
    for k in (1, 3)
    for source in ("attention", "effect")
    for act in ("linear", "relu")
]


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("settings", [{"generator": "analytic"}, *({"generator": "low_rank", **s} for s in LOW_RANK)])
@pytest.mark.parametrize("site", ["gate", "up", "down"])
def test_the_forward_pass_is_the_explicit_formula(site: Site, settings: dict[str, Any]) -> None:
    made = generator(preset="triple", np_rank=6, **settings)
    W, z, s = projection(site), reads(site), signals(carried=True)
    v_a, v_b = made.factors(site, W, z, s)  # type: ignore[operator]
    k = settings.get("num_ranks", 1)
    assert v_a.shape == (B, T, k, z.shape[-1])
    assert v_b.shape == (B, T, k, W.out_features)
    assert v_b.abs().max() > 0
    dW = torch.einsum("btko,btki->btoi", v_b, v_a)
    explicit = W(z) + torch.einsum("btoi,bti->bto", dW, z)
    assert_close(made(site, W, z, s), explicit)
    assert_close(W(z) + rank_k_effect(v_a, v_b, z), explicit)


@pytest.mark.usefixtures("no_grad")
def test_analytic_weights_give_the_pretrained_projection() -> None:
    made, s = generator(preset="triple"), signals(carried=True)
    for site in ("gate", "up"):
        assert_close(made(site, projection(site), reads(site), s), projection(site)(s.x_c))
    down, m = projection("down"), reads("down")
    assert_close(made("down", down, m, s), down(m) + s.carried)


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("modulation", ["additive", "multiplicative", "both"])
def test_analytic_activations(modulation: Any) -> None:
    made = generator(preset="v2", modulation=modulation)
    gate, z, s = projection("gate"), reads("gate"), signals()
    assert s.h is not None
    expected = gate(z) * residual_growth(s.h, s.a) if modulation == "multiplicative" else gate(s.x_c)
    assert_close(made("gate", gate, z, s), expected)


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("modulation", ["additive", "multiplicative", "both"])
def test_low_rank_activations(modulation: Any) -> None:
    made = generator(preset="v2", modulation=modulation, generator="low_rank", np_rank=6)
    gate, z, s = projection("gate"), reads("gate"), signals()
    expected = gate(z)
    adapters = {p: made.payload[p].weight @ made.code[p].weight for p in made.code}  # type: ignore[union-attr, index]
    if "mult" in adapters:
        expected = expected * (1 + s.a @ adapters["mult"].T)
    if "add" in adapters:
        expected = expected + s.a @ adapters["add"].T
    assert set(adapters) == {"additive": {"add"}, "multiplicative": {"mult"}, "both": {"add", "mult"}}[modulation]
    assert_close(made("gate", gate, z, s), expected)


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("settings", [s for s in LOW_RANK if s["bottleneck"] == "linear"])
def test_a_whole_model_is_that_of_the_explicit_path(settings: dict[str, Any]) -> None:
    config = PlasticityConfig(preset="triple", generator="low_rank", np_rank=6, **settings)
    model = convert(tiny("llama", torch.float64), config)
    fast = model(tokens(2, 9)).logits
    with naively(model):
        explicit = model(tokens(2, 9)).logits
    assert_close(fast, explicit)
    with mode(model, "standard"):
        assert (model(tokens(2, 9)).logits - fast).abs().max() > 1e-6


def test_initialisation_is_seeded_and_differs_by_layer() -> None:
    config = PlasticityConfig(generator="low_rank", np_rank=6, key="learned")
    first, again, other = (make_generator(config, D, F, layer=i).state_dict() for i in (3, 3, 4))
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not any(torch.equal(first[n], other[n]) for n in first)


def test_a_rank_above_the_width_is_refused() -> None:
    with pytest.raises(NPTError, match="np_rank 25 is above the model's width 24"):
        generator(generator="low_rank", np_rank=25)


class _Largest(TorchDispatchMode):
    """The largest tensor that any operation allocates; views of existing storage do not count."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in known:
                self.elements = max(self.elements, t.numel())
        return out


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize(
    "settings",
    [
        {"generator": "analytic"},
        {"generator": "low_rank", "np_rank": 4, "num_ranks": 8},
        {"generator": "low_rank", "np_rank": 4, "num_ranks": 8, "key": "learned"},
    ],
)
@pytest.mark.parametrize("site", ["gate", "up", "down"])
def test_no_update_and_no_stack_of_payloads_is_ever_formed(site: Site, settings: dict[str, Any]) -> None:
    """The largest tensor is the MLP's own (B, T, f): neither (d_out, d_in), 1.5 times as large, nor (B, T, k, f)."""
    made, W, z, s = (
        generator(preset="triple", **settings),
        projection(site),
        reads(site),
        signals(carried=True),
    )
    assert D * F > B * T * F
    with _Largest() as seen:
        made(site, W, z, s)
    assert 0 < seen.elements <= B * T * F
