"""Calibrated models: what they were fitted on, what they give back, and what a workspace keeps of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import PreTrainedModel

import neuroplastic as npt
from families import FAMILIES, PRE_NORM, tiny, tokens
from neuroplastic.calibration.calibrate import fit_generators
from neuroplastic.calibration.fit import matrix, solve, write
from neuroplastic.calibration.moments import collect
from neuroplastic.calibration.sensitivity import fisher_information, sensitivities
from neuroplastic.cli import main
from neuroplastic.files import read_json, write_json
from neuroplastic.modulation import residual_growth
from neuroplastic.observe import Seen, observing
from neuroplastic.structure import projection
from neuroplastic.surgery import Plasticity, mode

TEXT = torch.randint(3, 96, (12, 24), generator=torch.Generator().manual_seed(2))
NARROW: dict[str, Any] = {"generator": "low_rank", "np_rank": 6, "input": "effect"}


def converted(family: str = "llama", **settings: Any) -> PreTrainedModel:
    return npt.convert(tiny(family, torch.float64), npt.PlasticityConfig(**{**NARROW, **settings}))


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(input_ids=TEXT).logits
    return out


def seen_by(model: PreTrainedModel, layer: int) -> Seen:
    found: list[Seen] = []
    plasticity = npt.plastic_layers(model)[layer]
    with torch.no_grad(), mode(model, "standard"), observing([plasticity.parts], found.append):
        model(input_ids=TEXT)
    return found[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_observed_is_the_layer(family: str) -> None:
    seen = seen_by(converted(family), 1)
    p = seen.parts
    after = seen.h + p.attention_scale * seen.a
    assert_close(seen.x_c, after if p.norm is None else p.norm(after))
    assert_close(seen.x, seen.h if p.norm is None else p.norm(seen.h))
    assert_close(seen.y, projection(p.mlp, "down")(p.mlp.act_fn(seen.g) * seen.u))  # type: ignore[operator]


@pytest.mark.parametrize("family", FAMILIES)
def test_dual_of_full_rank_is_the_pretrained_model(family: str) -> None:
    model = converted(family, np_rank=32)
    before = logits(tiny(family, torch.float64))
    assert (logits(model) - before).abs().max() > 0.1
    assert min(fit_generators(model, TEXT).values()) > 0.9999
    assert (logits(model) - before).abs().max() < 1e-3 * before.abs().max()


def test_error_falls_with_rank_and_is_what_the_singular_values_say() -> None:
    errors = []
    for rank in (4, 12, 24):
        model = converted(np_rank=rank, layers="1")
        explained = fit_generators(model, TEXT)[1]
        p, seen = npt.plastic_layers(model)[1], seen_by(model, 1)
        e = (seen.x_c - seen.x).detach()
        W = torch.cat([matrix(projection(p.parts.mlp, site)) for site in ("gate", "up")])
        Q = torch.cat([p.generator.payload[site].weight.detach() for site in ("gate", "up")])  # type: ignore
        with torch.no_grad():
            left = e @ W.T - e @ p.generator.code.weight.T @ Q.T  # type: ignore[union-attr, operator]
        errors.append(float(left.square().sum() / (e @ W.T).square().sum()))
        assert errors[-1] == pytest.approx(1 - explained, rel=1e-3)
    assert errors[0] > errors[1] > errors[2] > 0


@pytest.mark.parametrize("source", ["attention", "effect"])
@pytest.mark.parametrize("preset", ["single", "dual", "triple"])
def test_weights_against_explicit_least_squares(preset: Any, source: Any) -> None:
    """The whole of a layer's fit from plain tensors: lstsq, weights of the sites, truncation."""
    model = converted(preset=preset, input=source, layers="1")
    p, seen = npt.plastic_layers(model)[1], seen_by(model, 1)
    with mode(model, "standard"):
        moments = collect(model, [p], TEXT)[1]
    write(p, solve(p, moments, ridge=0))
    mlp = p.parts.mlp
    e, a = (seen.x_c - seen.x).flatten(0, 1), seen.a.flatten(0, 1)
    s = a if source == "attention" else e
    g = seen.g[:, ::8].flatten(0, 1).requires_grad_()
    (slope,) = torch.autograd.grad(torch.nn.functional.silu(g).sum(), g)
    d_g, d_u = slope * seen.u[:, ::8].flatten(0, 1), torch.nn.functional.silu(g.detach())
    columns = matrix(projection(mlp, "down")).square().sum(0)
    beta = float(((d_g.square().mean(0) + d_u.square().mean(0)) / 2 * columns).mean()) ** 0.5
    wanted = {"gate": e @ matrix(projection(mlp, "gate")).T, "up": e @ matrix(projection(mlp, "up")).T, "down": a}
    weight = {"gate": beta, "up": beta, "down": 1.0}
    sites = p.config.axes.sites
    Y = torch.cat([weight[site] * wanted[site] for site in sites], 1)
    fitted = s @ torch.linalg.lstsq(s, Y).solution
    U, S, Vh = torch.linalg.svd(fitted, full_matrices=False)
    expected = (U[:, :6] * S[:6]) @ Vh[:6]
    code = s @ p.generator.code.weight.T  # type: ignore[union-attr, operator]
    ours = torch.cat([weight[site] * (code @ p.generator.payload[site].weight.T) for site in sites], 1)  # type: ignore
    assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def test_activations_against_explicit_least_squares() -> None:
    model = converted(preset="v2", layers="1", np_rank=32)
    p, seen = npt.plastic_layers(model)[1], seen_by(model, 1)
    fit_generators(model, TEXT)
    s = (seen.x_c - seen.x).flatten(0, 1)
    growth = residual_growth(seen.h, seen.a).flatten(0, 1) - 1
    wanted = (
        matrix(projection(p.parts.mlp, "gate"))
        @ (seen.x_c - (growth.unflatten(0, (12, 24)) + 1) * seen.x).flatten(0, 1).T
    )
    made = {part: p.generator.payload[part].weight @ (p.generator.code[part].weight @ s.T) for part in ("add", "mult")}  # type: ignore
    add = (s @ torch.linalg.lstsq(s, wanted.T).solution).T
    assert (made["add"] - add).norm() < 1e-3 * add.norm()
    mult = (s @ torch.linalg.lstsq(s, growth).solution)[:, 0]
    assert (made["mult"] - mult).norm() < 1e-3 * mult.norm() * 48**0.5


def test_where_the_mlp_reads_attention_there_is_nothing_to_add() -> None:
    model = converted(preset="v1")
    assert set(fit_generators(model, TEXT).values()) == {1.0}
    assert_close(logits(model), logits(tiny("llama", torch.float64)))


@pytest.mark.parametrize("family", PRE_NORM)
def test_every_layer_carries_its_residual_scale(family: str) -> None:
    model = converted(family, preset="triple", input="attention", np_rank=32, layers="1")
    p, seen = npt.plastic_layers(model)[1], seen_by(model, 1)
    fit_generators(model, TEXT)
    Q = p.generator.payload["down"].weight @ p.generator.code.weight  # type: ignore
    expected = seen.a * p.parts.attention_scale / p.parts.mlp_scale
    assert (seen.a @ Q.T - expected).norm() < 1e-3 * expected.norm()


def test_moments_do_not_depend_on_batches_and_do_not_grow() -> None:
    model = converted()
    layers = list(npt.plastic_layers(model).values())
    with mode(model, "standard"):
        one = collect(model, layers, TEXT)[1]
        longer = collect(model, layers, TEXT.repeat(4, 1))[1]
    assert_close(one.ss, longer.ss)
    assert_close(one.slopes, longer.slopes)
    assert longer.count == 4 * one.count == 4 * TEXT.numel()
    sizes = [sum(t.numel() for t in vars(m).values() if isinstance(t, Tensor)) for m in (one, longer)]
    assert sizes[0] == sizes[1]


def test_a_relu_bottleneck_carries_half_the_rank() -> None:
    linear, relu = converted(np_rank=6), converted(np_rank=13, bottleneck="relu")
    fit_generators(linear, TEXT)
    fit_generators(relu, TEXT)
    assert_close(logits(linear), logits(relu))


def test_components_with_the_self_key_share_the_payload() -> None:
    one, three = converted(), converted(num_ranks=3)
    fit_generators(one, TEXT)
    fit_generators(three, TEXT)
    assert_close(logits(one), logits(three))


def test_sequential_fits_on_what_earlier_layers_really_give() -> None:
    at_once, in_order = converted(np_rank=3), converted(np_rank=3)
    fit_generators(at_once, TEXT)
    fit_generators(in_order, TEXT, sequential=True)
    state, other = (npt.plastic_layers(m) for m in (at_once, in_order))

    def same(layer: int) -> bool:
        left, right = (s[layer].generator.code.weight for s in (state, other))  # type: ignore[union-attr]
        return torch.allclose(left.abs(), right.abs(), rtol=1e-4)  # type: ignore

    assert same(0)
    assert not same(1)
    npt.set_mode(in_order, "standard", layers="1")
    parts: Plasticity = other[1]
    moments = collect(in_order, [parts], TEXT)[1]
    before = {n: t.clone() for n, t in parts.generator.state_dict().items()}
    write(parts, solve(parts, moments))
    assert all(torch.equal(t, before[n]) for n, t in parts.generator.state_dict().items())


# --- in a workspace --------------------------------------------------------------------------------------------------


def test_a_calibrated_workspace_is_kept(workspace: npt.Workspace) -> None:
    edit = workspace.inject("The Golden Gate Bridge is located in the city of Madrid.")
    weights = workspace.weights_hash()
    done = npt.calibrate(workspace, npt.CalibrateOptions(np_rank=16))
    assert done.ranks == {"0": 16, "1": 16}
    assert done.perplexity == pytest.approx(done.perplexity_base, rel=0.1)
    assert workspace.weights_hash() == weights
    again = npt.Workspace.open(workspace.path)
    assert again.config == workspace.config
    assert (again.config.generator, again.config.input, again.config.np_rank) == ("low_rank", "effect", 16)
    assert [e.name for e in again.edits] == [edit.name]
    with torch.no_grad():
        left, right = (w.model(input_ids=tokens()).logits for w in (workspace, again))
    assert torch.equal(left, right)
    assert again.fidelity().kl < 0.1


def test_auto_spends_its_budget(workspace: npt.Workspace) -> None:
    base = workspace.info()["parameters"]
    done = npt.calibrate(workspace, npt.CalibrateOptions(np_rank="auto", budget="10%"))
    assert 0.08 * base < done.generator_parameters <= 0.1 * base
    assert npt.Workspace.open(workspace.path).info()["generator_parameters"] == done.generator_parameters


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_sensitivity_is_what_a_small_error_costs(family: str) -> None:
    """Of changes drawn at random behind a layer, at one token, against the divergences that they cause."""
    model = tiny(family, torch.float64)
    text = TEXT[:2].repeat(60, 1)  # the same rows with other tokens drawn
    found = sensitivities(model, [0, 1], text)
    with torch.no_grad():
        base = model(input_ids=TEXT[:2]).logits.log_softmax(-1)
        for layer, expected in found.items():
            drawing, costs = torch.Generator().manual_seed(1), []
            for at in range(1, TEXT.shape[1]):
                delta = torch.randn(2, 32, dtype=torch.float64, generator=drawing) * 1e-4

                def hook(module: Any, args: Any, output: Any, at: int = at, delta: Tensor = delta) -> Any:
                    h = output[0] if isinstance(output, tuple) else output
                    h[:, at] += delta

                handle = model.model.layers[layer].register_forward_hook(hook)
                changed = model(input_ids=TEXT[:2]).logits.log_softmax(-1)
                handle.remove()
                kl = (base.exp() * (base - changed)).sum((-1, -2))
                costs.append(float((kl / delta.square().sum(-1)).mean()))
            assert sum(costs) / len(costs) == pytest.approx(expected, rel=0.2)
    assert all(p.grad is None for p in model.parameters())


def test_its_trace_is_that_of_the_fisher_information() -> None:
    model, text = tiny("llama", torch.float64), TEXT
    layers = {i: model.model.layers[i] for i in (0, 1)}
    F, traces = fisher_information(model, layers, text), sensitivities(model, [0, 1], text)
    for i, trace in traces.items():
        assert F[i].trace().item() / (2 * 32) == pytest.approx(trace, rel=1e-5)
        assert torch.linalg.eigvalsh(F[i]).min() > -1e-6


def test_a_file_of_text_is_read(workspace: npt.Workspace, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("The quick brown fox jumps over the lazy dog.\n\n" * 40)
    done = npt.calibrate(workspace, npt.CalibrateOptions(data=tmp_path / "t.txt", tokens=256, np_rank=8))
    assert 128 <= done.tokens <= 256


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"np_rank": 33}, "np_rank 33 is above the model's width 32"),
        ({"np_rank": "auto", "budget": "0.01%"}, "is too small: 2 layers need at least"),
        ({"data": Path("missing.txt")}, "there is no file"),
    ],
)
def test_a_calibration_that_cannot_be_changes_nothing(
    workspace: npt.Workspace, settings: dict[str, Any], cause: str
) -> None:
    files = {f: f.read_bytes() for f in workspace.path.glob("npt*")}
    config = workspace.config
    with pytest.raises(npt.NPTError, match=cause):
        npt.calibrate(workspace, npt.CalibrateOptions(**settings))
    assert workspace.config == config
    assert all(not list(p.generator.parameters()) for p in npt.plastic_layers(workspace.model).values())
    assert {f: f.read_bytes() for f in workspace.path.glob("npt*")} == files


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"tokens": 1}, "tokens must be at least 2"),
        ({"np_rank": 0}, "np_rank must be at least 1"),
        ({"np_rank": "most"}, "a whole number or auto"),
        ({"budget": "3%"}, "a budget has no meaning without"),
        ({"np_rank": "auto", "budget": "much"}, "budget must be a share"),
        ({"np_rank": "auto", "budget": "-3%"}, "budget must be above 0"),
        ({"np_rank": "auto", "sequential": True}, "leave --sequential out"),
    ],
)
def test_bad_options_are_named(settings: dict[str, Any], cause: str) -> None:
    with pytest.raises(npt.NPTError, match=cause):
        npt.CalibrateOptions(**settings)


def test_a_learned_key_has_no_closed_form(tmp_path: Path, cache: Path, tiny_base: Path) -> None:
    learned = npt.PlasticityConfig(generator="low_rank", key="learned", np_rank=4)
    ws = npt.Workspace.create(tmp_path / "w", tiny_base, learned)
    with pytest.raises(npt.NPTError, match="a learned key has no closed form"):
        npt.calibrate(ws)


def test_generators_saved_without_their_settings_are_read_as_the_new_ones(workspace: npt.Workspace) -> None:
    """What a kill between the two files leaves."""
    settings = read_json(workspace.path / "npt_config.json")
    npt.calibrate(workspace, npt.CalibrateOptions(np_rank=8))
    write_json(workspace.path / "npt_config.json", settings)
    assert npt.Workspace.open(workspace.path).config == workspace.config


def test_the_command(workspace: npt.Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", str(workspace.path), "--np-rank", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ranks"] == {"0": 8, "1": 8}
    assert main(["calibrate", str(workspace.path), "--np-rank", "4", "--sequential"]) == 0
    assert "perplexity on held-out text" in capsys.readouterr().out
    assert main(["calibrate", str(workspace.path), "--np-rank", "99", "--json"]) == 2
