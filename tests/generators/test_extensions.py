"""Adaptive rank, settings per layer, gates and coarse codes: against the explicit formula, and in the limit where each
must be the plain generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import PreTrainedModel

import neuroplastic as npt
from families import tiny, tokens
from naive import naively
from neuroplastic.calibration.calibrate import fit_generators, solved
from neuroplastic.calibration.fit import matrix
from neuroplastic.generators import LowRank, Signals, make_generator
from neuroplastic.generators.low_rank import LowRankWeights
from neuroplastic.kv_cache import cache_argument, cache_of
from neuroplastic.modulation import effective_number, rank_k_effect
from neuroplastic.structure import projection as projection_of
from neuroplastic.surgery import mode, set_mode
from neuroplastic.training.loop import read_log
from neuroplastic.training.train_generators import FOLDER

D, F, B, T = 24, 40, 2, 8
TEXT = torch.randint(3, 96, (12, 24), generator=torch.Generator().manual_seed(2))
ADAPTIVE: dict[str, Any] = {"num_ranks": 4, "rank_weights": "attention"}
SPARSE: dict[str, Any] = {**ADAPTIVE, "top_ranks": 2}
GATED: dict[str, Any] = {"gate": "learned", "gate_threshold": 0.5}
COARSE: dict[str, Any] = {"coarse_rank": 3}
EVERYTHING: dict[str, Any] = {**SPARSE, **GATED, **COARSE}
EXTENDED = [
    {**settings, "key": key, "heads": heads}
    for settings in (ADAPTIVE, SPARSE, GATED, COARSE, EVERYTHING)
    for key in ("self", "learned")
    for heads in ("own", "projected")
]


def rand(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def signals(config: npt.PlasticityConfig) -> Signals:
    h, a, x, x_c, carried = (rand(B, T, D, seed=s) for s in range(5))
    coarse = rand(B, T, config.coarse_rank, seed=8) if config.coarse_rank else None
    return Signals(a=a, h=h, x=x, x_c=x_c, carried=carried, mlp_input=x, coarse=coarse)


def weights(preset: str = "triple", **settings: Any) -> tuple[LowRankWeights, Signals]:
    config = npt.PlasticityConfig(preset=preset, generator="low_rank", np_rank=6, **settings)  # type: ignore[arg-type]
    made = make_generator(config, D, F, layer=0).double()
    assert isinstance(made, LowRankWeights)
    if made.gate is not None:
        made.gate.wanted.weight.data.copy_(rand(1, 2 * D, seed=11))
        made.gate.wanted.bias.data.zero_()
    return made, signals(config)


def projection(site: str) -> torch.nn.Linear:
    d_in, d_out = (F, D) if site == "down" else (D, F)
    linear = torch.nn.Linear(d_in, d_out).double()
    with torch.no_grad():
        linear.weight.copy_(rand(d_out, d_in, seed=9))
        linear.bias.copy_(rand(d_out, seed=10))
    return linear


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("settings", EXTENDED)
@pytest.mark.parametrize("site", ["gate", "up", "down"])
def test_the_forward_pass_is_the_explicit_formula(site: Any, settings: dict[str, Any]) -> None:
    made, s = weights(**settings)
    W, z = projection(site), rand(B, T, F, seed=7) if site == "down" else s.mlp_input
    v_a, v_b = made.factors(site, W, z, s)
    assert v_b.abs().max() > 0
    assert_close(made(site, W, z, s), W(z) + rank_k_effect(v_a, v_b, z))
    if made.config.top_ranks:
        assert ((v_b != 0).any(-1).sum(-1) <= 2).all()


@pytest.mark.usefixtures("no_grad")
def test_weights_of_components_are_a_softmax_that_sums_to_k() -> None:
    made, s = weights(**ADAPTIVE)
    assert made.weights is not None
    a = s.a.flatten(0, 1)
    logits = (a / a.square().mean(-1, keepdim=True).sqrt()) @ made.weights.wanted.weight.T
    assert_close(made.component_weights(s), 4 * logits.softmax(-1))
    sparse, s = weights(**SPARSE)
    w = sparse.component_weights(s)
    assert w is not None
    assert ((w > 0).sum(-1) == 2).all()
    assert_close(w.sum(-1), torch.full((B * T,), 4.0, dtype=torch.float64))
    assert (effective_number(w) <= 2 + 1e-9).all()
    assert_close(effective_number(torch.ones(3, 4)), torch.full((3,), 4.0))


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("key", ["self", "learned"])
@pytest.mark.parametrize("site", ["gate", "down"])
def test_limits_are_the_plain_generator(site: Any, key: str) -> None:
    def out(made: LowRankWeights, s: Signals) -> Tensor:
        z = rand(B, T, F, seed=7) if site == "down" else s.mlp_input
        return made(site, projection(site), z, s)

    plain, s = weights(num_ranks=4, key=key)
    expected = out(plain, s)
    uniform, s = weights(**ADAPTIVE, key=key)
    assert (out(uniform, s) - expected).abs().max() > 1e-6
    uniform.weights.wanted.weight.zero_()  # type: ignore[union-attr]
    assert_close(out(uniform, signals(uniform.config)), expected)

    gated, s = weights(num_ranks=4, key=key, **GATED)
    assert (out(gated, s) - expected).abs().max() > 1e-6
    gated.gate.wanted.weight.zero_()  # type: ignore[union-attr]
    gated.gate.wanted.bias.fill_(40.0)  # type: ignore[union-attr]
    assert_close(out(gated, signals(gated.config)), expected)

    coarse, s = weights(num_ranks=4, key=key, **COARSE)
    own = dict(plain.state_dict())
    coarse.load_state_dict({name: padded(t, coarse.state_dict()[name]) for name, t in own.items()})
    assert_close(out(coarse, s), expected)  # a coarse code that no head reads
    coarse.code.weight.zero_()
    for name, t in coarse.named_parameters():
        if name.startswith(("payload", "key")):
            t.copy_(rand(*t.shape, seed=3))
    alone, _ = weights(num_ranks=4, key=key)
    alone.code = torch.nn.Identity()  # type: ignore[assignment]
    for name in ("payload", "key"):
        for site_, module in getattr(alone, name).items():
            given = getattr(coarse, name)[site_].weight
            flat = given if name == "payload" else given.T
            cut = flat.unflatten(-1, (4, 9))[..., :3].flatten(-2)
            module.weight = torch.nn.Parameter(cut if name == "payload" else cut.T)
    alone.width = 3
    assert s.coarse is not None
    only = Signals(a=s.coarse, h=None, x=None, x_c=None, carried=None, mlp_input=s.mlp_input)
    assert_close(out(coarse, signals(coarse.config)), out(alone, only))  # a fine code of zeros


def padded(t: Tensor, like: Tensor) -> Tensor:
    """Parameters of a generator of width 6 in one whose first 3 of 9 numbers are coarse."""
    if t.shape == like.shape:
        return t
    axis = 0 if t.shape[1] == like.shape[1] else 1  # of keys, of payloads
    parts = t.unflatten(axis, (4, 6))
    return torch.nn.functional.pad(parts, (3, 0) if axis == 1 else (0, 0, 3, 0)).flatten(axis, axis + 1)


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("settings", [{}, SPARSE])
def test_closed_tokens_cost_no_generator(settings: dict[str, Any]) -> None:
    made, s = weights(**GATED, **settings)
    gate, z = projection("gate"), s.mlp_input
    is_open = made.openness(s)[..., 0] >= 0.5  # type: ignore[index]
    assert 0 < is_open.sum() < is_open.numel()
    rows: list[int] = []
    made.code.register_forward_hook(lambda m, args, out: rows.append(out.shape[:-1].numel()))
    y = made("gate", gate, z, s)
    assert rows == [int(is_open.sum())]
    assert torch.equal(y[~is_open], gate(z)[~is_open])
    assert (y - gate(z))[is_open].abs().amax(-1).min() > 0


@pytest.mark.usefixtures("no_grad")
def test_fidelity_says_what_tokens_use() -> None:
    model = converted(layers="0,1", **SPARSE, **GATED, layer_overrides=("1:generator=analytic",))
    usage = npt.measure_fidelity(model, TEXT).usage
    assert list(usage) == ["0"]
    seen: list[Signals] = []
    p = npt.plastic_layers(model)[0]
    p.probe = lambda site, linear, z, s, y: seen.append(s)
    for rows in TEXT.split(4):
        model(rows)
    generator = p.generator
    assert isinstance(generator, LowRankWeights)
    g = torch.cat([generator.openness(s).flatten() for s in seen[::2]])  # type: ignore[union-attr]
    w = torch.cat([generator.weights(s.a.flatten(0, 1)) for s in seen[::2]])  # type: ignore[misc]
    assert usage["0"].gate[1] == pytest.approx(float(g.quantile(0.5)), rel=1e-5)
    assert usage["0"].modulated == pytest.approx(float((g >= 0.5).double().mean()))
    assert usage["0"].components[1] == pytest.approx(float(effective_number(w[g >= 0.5]).quantile(0.5)), rel=1e-5)


@pytest.mark.usefixtures("no_grad")
def test_a_gate_scales_activations_too() -> None:
    config = npt.PlasticityConfig(preset="v2", generator="low_rank", np_rank=6, **GATED)
    made = make_generator(config, D, F, layer=0).double()
    assert isinstance(made, LowRank)
    made.gate.wanted.weight.copy_(rand(1, 2 * D, seed=11))  # type: ignore[union-attr]
    made.gate.wanted.bias.zero_()  # type: ignore[union-attr]
    s, W = signals(config), projection("gate")
    g = made.openness(s)
    assert g is not None
    g = torch.where(g >= 0.5, g, 0.0)
    mult, add = (g * made.payload[p](made.code[p](s.a)) for p in ("mult", "add"))  # type: ignore[index, operator]
    assert_close(made("gate", W, s.mlp_input, s), W(s.mlp_input) * (1 + mult) + add)


# --- whole models ------------------------------------------------------------------------------------------------


def converted(family: str = "llama", **settings: Any) -> PreTrainedModel:
    config = {"generator": "low_rank", "np_rank": 6, "input": "effect", **settings}
    model = npt.convert(tiny(family, torch.float64), npt.PlasticityConfig(**config))
    for p in npt.plastic_layers(model).values():  # gates that differ from token to token
        if isinstance(p.generator, LowRank) and p.generator.gate is not None:
            p.generator.gate.wanted.weight.data.copy_(rand(1, 2 * p.generator.d_model, seed=5))
            p.generator.gate.wanted.bias.data.zero_()
    return model


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("settings", [ADAPTIVE, SPARSE, GATED, COARSE, EVERYTHING, {"heads": "projected"}])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_model_is_that_of_the_explicit_path_and_decodes_as_it_reads(family: str, settings: dict[str, Any]) -> None:
    model, ids = converted(family, **settings), tokens(2, 9)
    fast = model(ids).logits
    with naively(model):
        assert_close(model(ids).logits, fast)
    first = model(ids[:, :5], use_cache=True)
    rest = model(ids[:, 5:], **cache_argument(model, cache_of(first))).logits
    assert_close(torch.cat([first.logits, rest], 1), fast)
    with mode(model, "standard"):
        assert_close(model(ids).logits, tiny(family, torch.float64)(ids).logits)


def test_a_coarse_code_is_made_once_and_learns_from_every_layer() -> None:
    model = converted(layers="0,1", coarse_rank=3)
    first, second = (p.generator for p in npt.plastic_layers(model).values())
    assert isinstance(first, LowRank)
    assert isinstance(second, LowRank)
    assert first.coarse is not None
    assert second.coarse is None
    made: list[Tensor] = []
    first.coarse.register_forward_hook(lambda m, args, out: made.append(out))
    model(tokens(1, 4)).logits.sum().backward()
    assert len(made) == 1
    together = first.coarse.weight.grad.clone()  # type: ignore[union-attr]
    model.zero_grad()
    for head in second.get_submodule("payload").parameters():  # the second layer no longer reads it
        head.data[:, :3] = 0
    model(tokens(1, 4)).logits.sum().backward()
    assert (first.coarse.weight.grad - together).abs().max() > 0  # type: ignore[operator]
    assert all(p.state.coarse is None for p in npt.plastic_layers(model).values())
    set_mode(model, "standard", "0")
    with pytest.raises(npt.NPTError, match="layer 1 takes its coarse code from layer 0"):
        model(tokens(1, 4))
    alone = converted(layers="0,1", coarse_rank=3, coarse_group=1)
    set_mode(alone, "standard", "0")
    alone(tokens(1, 4))


def test_layers_of_their_own() -> None:
    overrides = {0: {"rank": 3, "preset": "single"}, 1: {"generator": "analytic"}}
    model = converted(preset="triple", layer_overrides=overrides, **COARSE, **ADAPTIVE)
    first, second = npt.plastic_layers(model).values()
    assert (first.config.np_rank, first.config.axes.sites, first.state.drop) == (3, ("gate",), False)
    assert (second.config.generator, second.state.drop) == ("analytic", True)
    set_mode(model, "standard", "0")
    with torch.no_grad():
        assert_close(model(tokens()).logits, tiny("llama", torch.float64)(tokens()).logits)
    explained = fit_generators(model, TEXT)
    assert set(explained) == {0}  # the exact generator has nothing to fit
    with pytest.raises(npt.NPTError, match="layer 1 has settings of its own, but is not among the plastic layers"):
        converted(layers="0", layer_overrides=overrides)


# --- closed form -------------------------------------------------------------------------------------------------


def payloads(model: PreTrainedModel, layer: int, given: Signals) -> Tensor:
    """What a layer's update adds at gate and up, of a dual generator [n, 2 f]."""
    p = npt.plastic_layers(model)[layer]
    out = []
    for site in ("gate", "up"):
        linear = getattr(p.parts.mlp, f"{site}_proj")
        out.append(p.generator(site, linear, given.mlp_input, given) - linear(given.mlp_input))
        given.codes.clear()
    return torch.cat(out, -1)


@pytest.mark.parametrize("extended", [ADAPTIVE, SPARSE, {"gate": "learned"}, {"heads": "projected"}])
def test_the_closed_form_is_that_of_the_plain_generator(extended: dict[str, Any]) -> None:
    k = {n: v for n, v in extended.items() if n == "num_ranks"}
    plain, other = converted(**k), converted(**extended)
    assert fit_generators(plain, TEXT) == pytest.approx(fit_generators(other, TEXT))
    with torch.no_grad():
        assert_close(other(TEXT).logits, plain(TEXT).logits, rtol=1e-6, atol=1e-6)


def test_a_coarse_code_in_closed_form_is_a_regression_on_both_codes() -> None:
    model = converted(coarse_rank=4, np_rank=5)
    explained = fit_generators(model, TEXT)
    seen: dict[int, Signals] = {}
    plastic = npt.plastic_layers(model)
    for i, p in plastic.items():

        def probe(site: Any, linear: Any, z: Tensor, s: Signals, y: Tensor, i: int = i) -> None:
            seen[i] = s

        p.probe = probe
    with torch.no_grad():  # layer 0 reads what it was fitted on; layer 1 what the converted layer 0 makes
        model(TEXT)
    s, p = seen[0], plastic[0]
    assert s.x_c is not None
    assert s.x is not None
    assert s.coarse is not None
    e, z = ((t.flatten(0, 1)) for t in (s.x_c - s.x, s.coarse))
    assert_close(z.T @ z / len(z), torch.eye(4, dtype=torch.float64), rtol=1e-3, atol=1e-3)
    W = torch.cat([matrix(projection_of(p.parts.mlp, "gate")), matrix(projection_of(p.parts.mlp, "up"))])
    y = e @ W.T
    A = p.generator.get_parameter("code.weight").detach()
    code = torch.cat([z, e @ A.T], 1)
    best = code @ torch.linalg.lstsq(code, y).solution  # the heads are the best for these codes
    with torch.no_grad():
        ours = payloads(model, 0, s).flatten(0, 1)
    assert_close(ours, best, rtol=1e-3, atol=1e-3 * float(best.abs().max()))
    left = float((y - ours).square().sum() / y.square().sum())
    assert left == pytest.approx(1 - explained[0], abs=2e-3)
    # the first layer's own code finds what the coarse one leaves: both together are the best of that rank or worse
    whole = solved(converted(np_rank=9), TEXT)[0].explained(9)
    assert explained[0] <= whole + 1e-6
    assert solved(converted(np_rank=5), TEXT)[0].explained(5) < explained[0]


@pytest.fixture
def workspace(tmp_path: Path, cache: Path, tiny_base: Path) -> npt.Workspace:
    return npt.Workspace.create(tmp_path / "w", tiny_base)


SHORT: dict[str, Any] = {"steps": 6, "batch_size": 2, "max_length": 16, "eval_tokens": 24, "curriculum": "0.4,0.3,0.3"}


@pytest.mark.parametrize(
    "settings", [ADAPTIVE, EVERYTHING, {**SPARSE, **COARSE, "heads": "projected", "key": "learned"}]
)
def test_trained_saved_and_read_again(workspace: npt.Workspace, settings: dict[str, Any]) -> None:
    config = npt.PlasticityConfig(generator="low_rank", np_rank=4, input="effect", **settings)
    workspace.reconfigure(config)
    workspace.save_generators()
    before = {n: t.clone() for n, t in workspace.model.named_parameters() if ".plasticity." in n}
    init: Any = "random" if settings.get("key") == "learned" else "calibrated"
    npt.train(workspace, npt.TrainSettings(**SHORT, init=init, gate_open=0.2, lr=1e-2, every=2))
    after = {n: t for n, t in workspace.model.named_parameters() if ".plasticity." in n}
    moved = [n for n in before if not torch.equal(before[n], after[n])]
    assert set(moved) == set(before)
    again = npt.Workspace.open(workspace.path)
    with torch.no_grad():
        left, right = (w.model(input_ids=tokens()).logits for w in (workspace, again))
    assert torch.equal(left, right)


def test_a_gate_learns_to_close(workspace: npt.Workspace) -> None:
    settings = {**SHORT, "steps": 40, "curriculum": "1,0,0", "lr": 0.1, "gate_open": 0.3, "gate_weight": 10.0}
    workspace.reconfigure(npt.PlasticityConfig(generator="low_rank", np_rank=4, input="effect", gate="learned"))
    npt.train(workspace, npt.TrainSettings(**settings))
    log = [e for e in read_log(workspace.path / FOLDER) if "gate.0" in e]
    first, last = log[0], log[-1]
    assert first["openness"] > 0.9
    assert last["openness"] < 0.5
    assert "rank.0" in last
