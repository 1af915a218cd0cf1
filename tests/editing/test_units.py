"""Gated units: the formula, the module in the model, the ledger that adds and removes them, and their files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import neuroplastic as npt
from families import tiny, tokens
from neuroplastic.editing.edit import Edit, read_units
from neuroplastic.editing.engine import EditableModel
from neuroplastic.editing.ledger import Ledger
from neuroplastic.editing.units import Units, install
from neuroplastic.modulation import gate_response, gated_effect
from neuroplastic.structure import decoder_layers, mlp_of
from neuroplastic.surgery import GATED_UNITS, base_state, edited_state

D = 64


def units(d: int, n: int = 1, seed: int = 0, threshold: float = -5.0) -> Units:
    """Units that are open for nearly every input, as `threshold` is far below all matches."""
    g = torch.Generator().manual_seed(seed)
    A, V, K = (torch.randn(n, d, generator=g) for _ in range(3))
    up = torch.randn(d, generator=g)
    return Units(A - threshold * up, V, torch.full((n,), 0.5), up, K)


def edit(d: int, name: str, sequence: int, layers: tuple[int, ...] = (0, 1), up: torch.Tensor | None = None) -> Edit:
    own = {i: units(d, seed=100 * sequence + i) for i in layers}
    if up is not None:
        own = {i: u._replace(up=up) for i, u in own.items()}
    return Edit(name, "a statement", "learned", 1.0, "base", sequence, "now", {}, units=own)


def width(model: nn.Module) -> int:
    return int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]


@pytest.fixture
def model() -> nn.Module:
    return tiny("llama", num_hidden_layers=3).eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=tokens()).logits
    return found


def test_the_effect_is_the_explicit_sum_over_units() -> None:
    torch.manual_seed(0)
    n, d = 5, 7
    x, A, V = (torch.randn(*s, dtype=torch.float64) for s in ((4, d), (n, d), (n, d)))
    up, w = torch.randn(d, dtype=torch.float64), torch.rand(n, dtype=torch.float64) + 0.1
    expected = torch.zeros(4, d, dtype=torch.float64)
    for t in range(4):
        u = float(up @ x[t])
        for i in range(n):
            p = float(A[i] @ x[t])
            expected[t] += V[i] * u * min(max(p, 0.0), max(float(w[i]) * u, 0.0)) / float(w[i])
    assert torch.allclose(gated_effect(x, A, up, w, V), expected, atol=1e-12)


def test_the_response_is_nothing_below_the_threshold_a_ramp_above_it_and_one_from_its_width_on() -> None:
    p = torch.tensor([-1.0, 0.0, 0.1, 0.2, 0.5])
    found = gate_response(p, torch.ones(5), torch.tensor(0.2))
    assert torch.allclose(found, torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))


def test_closed_units_leave_every_bit_as_it_was(model: nn.Module) -> None:
    before = logits(model)
    own = {i: u._replace(A=0 * u.A) for i, u in edit(width(model), "shut", 1).units.items()}  # p = 0: at the threshold
    Ledger(model).set_active([replace(edit(width(model), "shut", 1), units=own)])
    assert hasattr(mlp_of(decoder_layers(model)[0]), GATED_UNITS)
    assert torch.equal(logits(model), before)


def test_open_units_change_the_logits_and_undo_brings_every_bit_back(model: nn.Module) -> None:
    before, ledger = logits(model), Ledger(model)
    ledger.set_active([edit(width(model), "a", 1)])
    assert not torch.equal(logits(model), before)
    assert ledger.is_exact()
    with ledger.unedited():
        assert torch.equal(logits(model), before)
        assert not hasattr(mlp_of(decoder_layers(model)[0]), GATED_UNITS)
    ledger.set_active([])
    assert torch.equal(logits(model), before)
    assert edited_state(model).keys() == base_state(model).keys()
    assert not mlp_of(decoder_layers(model)[0])._forward_hooks


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), unique=True, max_size=6), min_size=1, max_size=6))
def test_the_same_edits_give_the_same_bits_whatever_came_before(sets: list[list[int]]) -> None:
    model = tiny("llama", num_hidden_layers=3).eval()
    up = units(width(model)).up
    edits = [edit(width(model), f"e{i}", i + 1, ((0,), (1,), (0, 1), (2,), (0, 2), (1, 2))[i], up) for i in range(6)]
    ledger = Ledger(model)
    for chosen in sets:
        ledger.set_active([edits[i] for i in chosen])
        assert ledger.is_exact()
    found = logits(model)
    fresh = tiny("llama", num_hidden_layers=3).eval()
    fresh.load_state_dict(base_state(model))
    Ledger(fresh).set_active([edits[i] for i in sets[-1]])
    assert torch.equal(logits(fresh), found)


def test_a_copied_model_has_units_of_its_own(model: nn.Module) -> None:
    engine = EditableModel.of(model)
    engine.ledger.set_active([edit(width(model), "a", 1)])
    found, copied = logits(model), copy.deepcopy(model)
    engine.ledger.set_active([])
    assert torch.equal(logits(copied), found)
    EditableModel.of(copied).ledger.set_active([])
    assert torch.equal(logits(copied), logits(model))


def test_units_follow_the_model_to_another_dtype(model: nn.Module) -> None:
    ledger = Ledger(model)
    ledger.set_active([edit(width(model), "a", 1)])
    model.to(torch.bfloat16)
    assert logits(model).isfinite().all()
    assert ledger.is_exact()


def test_gradients_pass_through_units_as_through_any_module(model: nn.Module) -> None:
    Ledger(model).set_active([edit(width(model), "a", 1)])
    model.train()
    enable = "activation_checkpointing_enable"  # called gradient_checkpointing_enable by older transformers
    getattr(model, enable if hasattr(model, enable) else "gradient_checkpointing_enable")()
    model(input_ids=tokens()).logits.sum().backward()
    weight = mlp_of(decoder_layers(model)[0]).gate_proj.weight  # type: ignore[union-attr]
    assert weight.grad is not None
    assert bool(weight.grad.isfinite().all())  # type: ignore[operator]


@pytest.mark.parametrize(
    ("own", "cause"),
    [
        ({7: units(D)}, "changes layer 7, which the model does not have"),
        ({0: units(5)}, "has units of width 5 at layer 0"),
    ],
)
def test_units_that_do_not_fit_are_refused_and_nothing_changes(
    model: nn.Module, own: dict[int, Units], cause: str
) -> None:
    before = logits(model)
    with pytest.raises(npt.NPTError, match=cause):
        Ledger(model).set_active([replace(edit(width(model), "a", 1), units=own)])
    assert torch.equal(logits(model), before)


def test_units_made_with_other_statistics_are_refused(model: nn.Module) -> None:
    a, b = (edit(width(model), name, i, (0,)) for i, name in enumerate("ab", 1))
    with pytest.raises(npt.NPTError, match="different statistics"):
        Ledger(model).set_active([a, b])


def test_a_file_gives_the_units_back_bit_for_bit(tmp_path: Path) -> None:
    made = edit(8, "a", 1)
    made.save(tmp_path / "a.safetensors")
    read = Edit.load(tmp_path / "a.safetensors")
    assert read.units.keys() == made.units.keys()
    assert all(torch.equal(s, t) for i in made.units for s, t in zip(read.units[i], made.units[i], strict=True))
    assert read.ungated.units == {}


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda ts: {n: t for n, t in ts.items() if not n.endswith("up")}, "are not whole"),
        (lambda ts: {**ts, "layers.0.units.V": ts["layers.0.units.V"][:, :3]}, "do not fit together"),
        (lambda ts: {**ts, "layers.0.units.width": torch.zeros(1)}, "do not fit together"),
        (lambda ts: {**ts, "layers.0.units.A": ts["layers.0.units.A"] * torch.nan}, "are not finite"),
        (lambda ts: {**ts, "layers.0.units.other": torch.zeros(1)}, "unexpected tensor"),
    ],
)
def test_damaged_units_are_refused(
    spoil: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], cause: str
) -> None:
    tensors = {f"layers.0.units.{n}": t for n, t in units(8)._asdict().items()}
    with pytest.raises(npt.NPTError, match=cause):
        read_units(Path("a.safetensors"), spoil(tensors))


def test_installing_twice_adds_once(model: nn.Module) -> None:
    from neuroplastic.editing.units import GatedUnits

    mlp, u = mlp_of(decoder_layers(model)[0]), units(width(model))
    x = torch.randn(2, width(model))
    plain = mlp(x)
    for _ in range(2):
        install(mlp, GatedUnits(u.A, u.V, u.width, u.up))
    assert torch.allclose(mlp(x), plain + gated_effect(x, u.A, u.up, u.width, u.V), atol=1e-6)
    install(mlp, None)
    assert torch.equal(mlp(x), plain)
