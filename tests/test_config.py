from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroplastic import NPTError, PlasticityConfig
from neuroplastic.config import PRESETS, parse_layers


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("all", (0, 1, 2, 3, 4)),
        ("upper_half", (2, 3, 4)),
        ("top2", (3, 4)),
        ("top5", (0, 1, 2, 3, 4)),
        ("1,3", (1, 3)),
        ("3,1,1", (1, 3)),
        ("1-3", (1, 2, 3)),
        ("-1", (4,)),
        ("-2--1", (3, 4)),
        ("0, top1", (0, 4)),
    ],
)
def test_layers_are_parsed(spec: str, expected: tuple[int, ...]) -> None:
    assert parse_layers(spec, 5) == expected


@pytest.mark.parametrize(
    ("spec", "cause"),
    [
        ("5", "out of range"),
        ("-6", "out of range"),
        ("0-9", "out of range"),
        ("3-1", "ends before"),
        ("top0", "has 5 layers"),
        ("top6", "has 5 layers"),
        ("", "not understood"),
        ("most", "not understood"),
        ("1,,2", "not understood"),
        ("0-" + "9" * 5000, "not understood"),
        ("top" + "9" * 5000, "not understood"),
    ],
)
def test_bad_layers_are_named(spec: str, cause: str) -> None:
    with pytest.raises(NPTError, match=cause):
        parse_layers(spec, 5)


@given(st.sets(st.integers(0, 29), min_size=1))
def test_a_list_of_layers_survives_as_text(layers: set[int]) -> None:
    config = PlasticityConfig(layers=list(layers))  # type: ignore[arg-type]
    assert parse_layers(config.layers, 30) == tuple(sorted(layers))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_sets_three_axes_and_survives_a_round_trip(preset: Any) -> None:
    config = PlasticityConfig(preset=preset)
    assert config.axes == PRESETS[preset]
    assert dataclasses.replace(PlasticityConfig(preset="v2"), preset=preset).axes == PRESETS[preset]
    assert PlasticityConfig.from_dict(config.to_dict()) == config


def test_an_axis_can_be_overridden() -> None:
    config = PlasticityConfig(preset="dual", modulation="gate+up+down", attention_residual="drop")
    assert config.axes == ("gate+up+down", "pre_attention", "drop")
    assert config.axes.sites == ("gate", "up", "down")


LOW: dict[str, Any] = {"generator": "low_rank"}


def test_layers_may_have_settings_of_their_own() -> None:
    given = {14: {"rank": 128, "preset": "single"}, "2-3": {"k": 2, "key": "learned"}}
    config = PlasticityConfig(preset="triple", generator="low_rank", np_rank=8, layer_overrides=given)  # type: ignore
    assert config.layer_overrides == ("14:np_rank=128,preset=single", "2-3:num_ranks=2,key=learned")
    assert config.overridden == (2, 3, 14)
    assert (config.at(14).np_rank, config.at(14).axes) == (128, PRESETS["single"])
    assert (config.at(3).num_ranks, config.at(3).key, config.at(3).axes) == (2, "learned", PRESETS["triple"])
    assert config.at(4) == dataclasses.replace(config, layer_overrides=())
    assert PlasticityConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    later = dataclasses.replace(config, layer_overrides=(*config.layer_overrides, "14:rank=4"))
    assert (later.at(14).np_rank, later.at(14).preset) == (4, "single")
    assert later.with_rank(7).at(14).np_rank == later.with_rank(7).at(0).np_rank == 7
    assert later.with_rank(7).at(14).preset == "single"


def test_a_layers_own_preset_goes_before_the_models_axes() -> None:
    config = PlasticityConfig(modulation="gate+up+down", layer_overrides=("1:preset=single",))
    assert config.at(1).axes == PRESETS["single"]
    assert config.at(0).axes.modulation == "gate+up+down"


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"preset": "quad"}, "preset must be one of v1, v2"),
        ({"modulation": "up"}, "modulation must be one of"),
        ({"mlp_input": "x"}, "mlp_input must be one of"),
        ({"attention_residual": "half"}, "attention_residual must be one of"),
        ({"generator": "magic"}, "generator must be one of"),
        ({"key": "public"}, "key must be one of"),
        ({"np_rank": 0}, "np_rank must be a whole number"),
        ({"num_ranks": 1.5}, "num_ranks must be a whole number"),
        ({"seed": -1}, "seed must be"),
        ({"layers": []}, "layers must be text"),
        ({"num_ranks": 2}, "num_ranks=2 with generator='analytic'"),
        ({"key": "learned"}, "key='learned' with generator='analytic'"),
        ({"preset": "v1", "generator": "low_rank", "num_ranks": 2}, "activations have no rank-1"),
        ({"preset": "v2", "generator": "low_rank", "key": "learned"}, "only weight updates have a key"),
        ({"gate": "learned"}, "gate='learned' with generator='analytic'"),
        ({"heads": "projected"}, "heads='projected' with generator='analytic'"),
        ({"coarse_rank": 2}, "coarse_rank=2 with generator='analytic'"),
        ({**LOW, "rank_weights": "attention"}, "rank_weights='attention' has no meaning with num_ranks=1"),
        ({**LOW, "num_ranks": 4, "top_ranks": 2}, "top_ranks=2 has no meaning with rank_weights='fixed'"),
        ({**LOW, "num_ranks": 2, "rank_weights": "attention", "top_ranks": 3}, "top_ranks=3 is more than there are"),
        ({**LOW, "gate_threshold": 0.5}, "gate_threshold=0.5 has no meaning with gate='none'"),
        ({**LOW, "gate": "learned", "gate_threshold": 2}, "gate_threshold must be from 0 to 1"),
        ({**LOW, "coarse_group": 2}, "coarse_group=2 has no meaning with coarse_rank=0"),
        ({**LOW, "preset": "v2", "heads": "projected"}, "heads='projected' with modulation='both'"),
        ({**LOW, "preset": "v2", "heads": "both"}, "heads must be one of own, projected"),
        ({"layer_overrides": "3:k=2"}, "layer_overrides must be a mapping"),
        ({"layer_overrides": ["3"]}, "layer override '3' not understood"),
        ({"layer_overrides": ["5-3:k=2"]}, "layer override '5-3:k=2' not understood"),
        ({"layer_overrides": ["3:colour=red"]}, "'colour=red' is not a setting of one layer"),
        ({"layer_overrides": ["3:seed=1"]}, "'seed=1' is not a setting of one layer"),
        ({"layer_overrides": ["3:rank=many"]}, "np_rank must be a number, not 'many'"),
        ({"layer_overrides": {3: {"preset": "quad"}}}, "layer '3:preset=quad': preset must be one of"),
        ({"layer_overrides": {3: {"k": 2}}}, "layer '3:num_ranks=2': num_ranks=2 with generator='analytic'"),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, Any], cause: str) -> None:
    with pytest.raises(NPTError, match=cause):
        PlasticityConfig(**settings)


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(NPTError, match="'rank_of_honour'"):
        PlasticityConfig.from_dict({"rank_of_honour": 1})
