from __future__ import annotations

import dataclasses
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
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, Any], cause: str) -> None:
    with pytest.raises(NPTError, match=cause):
        PlasticityConfig(**settings)


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(NPTError, match="'rank_of_honour'"):
        PlasticityConfig.from_dict({"rank_of_honour": 1})
