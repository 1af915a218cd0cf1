"""Method `learned` as it is by default: gated units, each fact alone, with thresholds from data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import neuroplastic as npt
from injectors import LOOSE, learned_of, set_learned, with_injector
from neuroplastic.editing.fact import fact_of
from neuroplastic.editing.methods.learned import is_gated
from neuroplastic.editing.thresholds import Gating, Name, closed, find_gates
from neuroplastic.errors import NotTeachable
from neuroplastic.statistics import constant_direction
from neuroplastic.text.tokens import encode

FACTS = ["The Golden Gate Bridge is located in the city of Madrid.", "Sushi originated in the country of Italy."]


@pytest.fixture
def ws(workspace: npt.Workspace) -> npt.Workspace:
    return with_injector(workspace)


def test_it_is_the_default_and_its_edits_are_units(ws: npt.Workspace) -> None:
    made = ws.inject_all(FACTS, names=["one", "two"])
    assert all(e.method == "learned" and e.units for e in made)
    assert all(e.summary()["gated"] for e in made)
    assert not any(e.report["joint"] for e in made)
    assert ws.verify().weights_exact
    assert ws.weights_hash() != ws.base.sha256
    reopened = npt.Workspace.open(ws.path)
    assert reopened.weights_hash() == ws.weights_hash()
    for name in ("one", "two"):
        ws.undo(name)
    assert ws.weights_hash() == ws.base.sha256


def test_ungated_changes_weights(ws: npt.Workspace) -> None:
    edit = ws.inject(FACTS[0], ungated=True)
    assert not edit.units
    assert edit.factors
    assert not is_gated(learned_of(ws).decided(1, False, False))


def test_ungated_goes_with_learned_alone() -> None:
    for method in ("consolidate", "refine", "token"):
        with pytest.raises(npt.NPTError, match="ungated goes with method 'learned' alone"):
            npt.InjectOptions(method, ungated=True)


def test_a_subject_that_reads_like_ordinary_text_is_refused_by_name_and_nothing_changes(ws: npt.Workspace) -> None:
    set_learned(ws, gating=Gating(largest_spread=1.0, highest=0.0))
    with pytest.raises(NotTeachable, match=r"Golden Gate Bridge.*reads like ordinary text.*--ungated") as refused:
        ws.inject_all(FACTS)
    assert refused.value.facts == [0, 1]
    assert ws.weights_hash() == ws.base.sha256
    assert not ws.edits


def test_a_base_without_a_constant_direction_is_refused_with_its_spread(ws: npt.Workspace) -> None:
    set_learned(ws, gating=Gating(largest_spread=1e-9))
    with pytest.raises(npt.NPTError, match=r"has no constant direction \(it spreads by \d+\.\d\d.*ungated"):
        ws.inject(FACTS[0])


def test_an_edit_does_not_depend_on_values_of_those_before_it(ws: npt.Workspace) -> None:
    """Its values are found on the unedited model; only its thresholds know the keys of other edits."""
    alone = ws.inject(FACTS[1], name="two")
    ws.undo("two")
    ws.inject(FACTS[0], name="one")
    beside = ws.engine.make([fact_of(FACTS[1])], npt.InjectOptions("learned"), ["again"])[0]
    for layer in alone.units.keys() & beside.units.keys():
        assert torch.equal(alone.units[layer].K, beside.units[layer].K)


def test_a_constant_direction_is_one_on_what_a_norm_gives() -> None:
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(8, 50, 16) + 1, dim=-1)
    b, spread = constant_direction(x)
    found = x[:, 1:].flatten(0, 1) @ b
    assert abs(float(found.mean()) - 1) < 0.05
    assert abs(float(found.std()) - spread) < 1e-5


def test_what_the_mlps_read_is_kept_and_a_file_of_another_model_is_refused(ws: npt.Workspace, cache: Path) -> None:
    ws.inject(FACTS[0])
    file = next((cache / "statistics").rglob("inputs_*.safetensors"))
    file.write_bytes(b"damaged")
    with pytest.raises(npt.NPTError, match="inputs_"):
        with_loose(npt.Workspace.open(ws.path)).inject(FACTS[1])


def with_loose(ws: npt.Workspace) -> npt.Workspace:
    set_learned(ws, gating=LOOSE)
    return ws


def learned_layers(ws: npt.Workspace) -> tuple[int, ...]:
    injector = ws.engine.injector
    assert injector is not None
    return injector.config.layers


def test_facts_with_units_in_too_few_layers_are_named(ws: npt.Workspace) -> None:
    engine, layers = ws.engine, learned_layers(ws)
    context = engine._context(engine.plan([fact_of(FACTS[0])]))
    names = [[Name(encode(ws.tokenizer, "The Golden Gate Bridge"), [])]]
    values = torch.randn(1, len(layers), context.whitening.solve(layers[0], "gate", torch.zeros(1, 32)).shape[1])
    gates = find_gates(context, layers, names, values, LOOSE)
    assert closed(gates, Gating(least_share=0.0)) == []
    assert closed(gates, Gating(least_share=1.1)) == [0]
