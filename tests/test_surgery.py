"""What must keep working on a converted model, over random models of every family."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import PreTrainedModel, StaticCache

import neuroplastic as npt
from families import FAMILIES, NORM_BEHIND, PRE_NORM, REFUSED, tiny, tokens
from neuroplastic.kv_cache import cache_argument
from neuroplastic.structure import decoder_layers, inspect_layers
from neuroplastic.surgery import base_state

families = pytest.mark.parametrize("family", FAMILIES)
LOW_RANK = npt.PlasticityConfig(generator="low_rank", np_rank=8, num_ranks=2, key="learned")


def logits(model: PreTrainedModel, **inputs: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(**(inputs or {"input_ids": tokens()})).logits
    return out


def plastic(family: str, config: npt.PlasticityConfig = LOW_RANK, **kwargs: Any) -> PreTrainedModel:
    """A converted model whose modulation is far from small."""
    model = npt.convert(tiny(family, **kwargs), config)
    with torch.no_grad():
        for layer in npt.plastic_layers(model).values():
            for p in layer.generator.parameters():
                p.mul_(5)
    return model


@families
def test_structure_is_detected(family: str) -> None:
    parts = inspect_layers(tiny(family), [0, 1])
    for p in parts:
        assert (p.norm is None) == (family == "olmo2")
        assert (p.norm_after_mlp is not None) == (family in NORM_BEHIND)
        assert (p.attention_end is p.attention) == (family not in NORM_BEHIND)
        assert (p.entry is p.attention) == (family == "olmo2")
        assert p.attention_scale == p.mlp_scale == (0.22 if family == "granite" else 1.0)


@families
def test_standard_mode_is_the_pretrained_model(family: str) -> None:
    before = logits(tiny(family))
    model = plastic(family)
    assert not torch.allclose(logits(model), before, atol=1e-3)
    npt.set_mode(model, "standard")
    assert torch.equal(logits(model), before)


@families
def test_one_layer_can_be_switched_alone(family: str) -> None:
    one = npt.PlasticityConfig(layers="1", generator="low_rank", np_rank=8)
    expected = logits(npt.convert(tiny(family), one))
    both = npt.convert(tiny(family), npt.PlasticityConfig(layers="all", generator="low_rank", np_rank=8))
    npt.set_mode(both, "standard", layers="0")
    assert torch.equal(logits(both), expected)


@families
def test_analytic_dual_is_exact(family: str) -> None:
    before = logits(tiny(family, torch.float64))
    model = npt.convert(tiny(family, torch.float64), npt.PlasticityConfig(preset="dual"))
    assert_close(logits(model), before, atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", PRE_NORM)
def test_analytic_triple_is_exact(family: str) -> None:
    before = logits(tiny(family, torch.float64))
    model = npt.convert(tiny(family, torch.float64), npt.PlasticityConfig(preset="triple"))
    assert_close(logits(model), before, atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", NORM_BEHIND)
@pytest.mark.parametrize("preset", ["triple", "v2"])
def test_drop_is_refused_where_a_norm_stands_behind_the_mlp(family: str, preset: Any) -> None:
    model = tiny(family)
    with pytest.raises(npt.NPTError, match="attention_residual='drop' on layer 0: a norm after the MLP"):
        npt.convert(model, npt.PlasticityConfig(preset=preset))
    assert not npt.plastic_layers(model)


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # without and with biases
@pytest.mark.parametrize("settings", [{"mlp_input": "post_attention"}, {"modulation": "gate+up+down"}])
def test_other_exact_combinations(family: str, settings: dict[str, Any]) -> None:
    before = logits(tiny(family, torch.float64))
    model = npt.convert(tiny(family, torch.float64), npt.PlasticityConfig(preset="dual", **settings))
    assert_close(logits(model), before, atol=1e-9, rtol=0)


def test_single_and_v2_are_not_exact() -> None:
    before = logits(tiny("llama"))
    for preset in ("single", "v2"):
        model = npt.convert(tiny("llama"), npt.PlasticityConfig(preset=preset))
        assert (logits(model) - before).abs().max() > 0.1


@families
def test_generate_with_cache_equals_without(family: str) -> None:
    model = plastic(family)
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    inputs = {"input_ids": tokens(), "attention_mask": torch.ones_like(tokens())}
    cached = model.generate(**inputs, **settings, use_cache=True)
    assert torch.equal(cached, model.generate(**inputs, **settings, use_cache=False))


@families
def test_left_padding(family: str) -> None:
    model = plastic(family)
    padded = torch.cat([torch.zeros(2, 5, dtype=torch.long), tokens()], 1)
    mask = (torch.arange(17) >= 5).long().expand(2, -1)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    out = logits(model, input_ids=padded, attention_mask=mask, position_ids=positions)
    assert_close(out[:, 5:], logits(model), atol=1e-4, rtol=1e-4)


@families
def test_static_cache(family: str) -> None:
    model = plastic(family)
    cache = StaticCache(config=model.config, max_cache_len=32)
    with torch.no_grad():
        parts = tokens().split([9, 1, 1, 1], 1)
        pieces = [model(input_ids=part, **cache_argument(model, cache)).logits for part in parts]
    assert_close(torch.cat(pieces, 1), logits(model), atol=1e-4, rtol=1e-4)


@families
def test_activation_checkpointing_gives_the_same_gradients(family: str) -> None:
    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        model = plastic(family).train()
        if checkpointing:
            enable = "activation_checkpointing_enable"  # called gradient_checkpointing_enable by older transformers
            getattr(model, enable if hasattr(model, enable) else "gradient_checkpointing_enable")()
            assert all(layer.gradient_checkpointing for layer in decoder_layers(model))
        model(input_ids=tokens(), labels=tokens(), use_cache=False).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert any("plasticity" in n for n in plain)
    assert plain.keys() == checkpointed.keys()
    for name in plain:
        assert_close(plain[name], checkpointed[name])


@families
def test_compiles_without_a_graph_break(family: str) -> None:
    model = plastic(family)
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_close(compiled(input_ids=tokens(), use_cache=False).logits, logits(model))
        npt.set_mode(model, "standard")
        assert_close(compiled(input_ids=tokens(), use_cache=False).logits, logits(model))


@pytest.mark.slow
def test_compiles_with_inductor() -> None:
    """In a process of its own: inductor's imports quarrel with whoever has touched setuptools before."""
    code = """
import torch
from families import tokens
from test_surgery import logits, plastic
from torch.testing import assert_close

model = plastic("llama")
with torch.no_grad():
    compiled = torch.compile(model, fullgraph=True)
    assert_close(compiled(input_ids=tokens(), use_cache=False).logits, logits(model), atol=1e-4, rtol=1e-4)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@families
def test_bfloat16(family: str) -> None:
    before = logits(tiny(family, torch.bfloat16)).float()
    model = npt.convert(tiny(family, torch.bfloat16), npt.PlasticityConfig(preset="dual"))
    out = logits(model).float()
    assert (out - before).abs().max() < 0.1 * before.abs().max()
    assert logits(plastic(family, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert {p.dtype for p in plastic(family, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


@families
def test_hidden_states_and_attentions_are_still_recorded(family: str) -> None:
    model = plastic(family)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(input_ids=tokens(), output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == 3
    assert len(out.attentions) == 2


@families
def test_a_deep_copy_is_independent(family: str) -> None:
    model = plastic(family)
    out = logits(model)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), out)
    npt.set_mode(twin, "standard")
    assert torch.equal(logits(model), out)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    npt.revert(twin)
    assert torch.equal(logits(model), out)


@families
def test_revert_gives_back_the_original(family: str) -> None:
    original = tiny(family)
    model = npt.revert(plastic(family))
    assert [type(m) for m in model.modules()] == [type(m) for m in original.modules()]
    assert [vars(m).keys() for m in model.modules()] == [vars(m).keys() for m in original.modules()]
    before, after = original.state_dict(), model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[n], before[n]) for n in before)


def test_parameter_names_stay_and_nothing_outlives_a_forward_pass() -> None:
    model = plastic("llama")
    assert list(base_state(model)) == list(tiny("llama").state_dict())
    logits(model)
    assert all(p.state.h is None and p.state.a is None for p in npt.plastic_layers(model).values())


def test_every_combination_of_axes_runs() -> None:
    ran = 0
    for modulation in ("additive", "multiplicative", "both", "gate", "gate+up", "gate+up+down"):
        for mlp_input in ("pre_attention", "post_attention"):
            for residual in ("keep", "drop"):
                for generator in ("analytic", "low_rank"):
                    for source in ("attention", "effect"):
                        config = npt.PlasticityConfig(
                            modulation=modulation,
                            mlp_input=mlp_input,
                            attention_residual=residual,
                            generator=generator,
                            input=source,
                            np_rank=8,
                        )
                        assert logits(npt.convert(tiny("llama"), config)).isfinite().all()
                        ran += 1
    assert ran == 96


@families
def test_a_second_conversion_is_refused(family: str) -> None:
    model = npt.convert(tiny(family))
    with pytest.raises(npt.NPTError, match="converted already; revert it first"):
        npt.convert(model)
    npt.convert(npt.revert(model))


@pytest.mark.parametrize("family", REFUSED)
def test_unsupported_structure_is_refused_by_name(family: str) -> None:
    model = tiny(family)
    classes = [type(m) for m in model.modules()]
    with pytest.raises(npt.NPTError, match=REFUSED[family][1]):
        npt.convert(model)
    assert [type(m) for m in model.modules()] == classes


@pytest.mark.parametrize("where", ["mlp", "self_attn", "mlp.gate_proj", "post_attention_layernorm", ""])
def test_a_patched_forward_is_refused(where: str) -> None:
    model = tiny("llama")
    layer = decoder_layers(model)[1]
    patched = layer.get_submodule(where)
    patched.forward = patched.forward
    with pytest.raises(npt.NPTError, match=r"layer 1.* has a forward of its own"):
        npt.convert(model)


def test_a_different_mlp_is_refused() -> None:
    model = tiny("llama")
    mlp = type(decoder_layers(model)[0].mlp)

    class Doubled(mlp):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    decoder_layers(model)[0].mlp.__class__ = Doubled
    with pytest.raises(npt.NPTError, match=r"layer 0: Doubled computes something other than down\(act\(gate\) \* up\)"):
        npt.convert(model)


def test_other_models_are_refused() -> None:
    with pytest.raises(npt.NPTError, match="Linear is not supported"):
        npt.convert(nn.Linear(2, 2))
    with torch.device("meta"), pytest.raises(npt.NPTError, match="meta device"):
        npt.convert(tiny("llama"))


def test_modes_are_checked() -> None:
    model = tiny("llama")
    with pytest.raises(npt.NPTError, match="not converted"):
        npt.set_mode(model, "standard")
    npt.convert(model, npt.PlasticityConfig(layers="1"))
    with pytest.raises(npt.NPTError, match="mode must be dynamic or standard"):
        npt.set_mode(model, "off")  # type: ignore[arg-type]
    with pytest.raises(npt.NPTError, match="layer 0 is not plastic; converted are 1"):
        npt.set_mode(model, "standard", layers="0")
    with pytest.raises(npt.NPTError, match="layer 2 is out of range"):
        npt.set_mode(model, "standard", layers="2")


def test_training_flags_and_random_state_survive_conversion() -> None:
    model = tiny("llama").train()
    decoder_layers(model)[0].eval()
    flags = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    npt.convert(model, LOW_RANK)
    npt.revert(model)
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)
