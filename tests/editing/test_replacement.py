"""Facts that meet: the same one again, a new answer to the same question, and what undo and redo make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import neuroplastic as npt
from neuroplastic.editing.ledger import Ledger
from neuroplastic.files import content_hash
from neuroplastic.surgery import base_state

FACT = "The Golden Gate Bridge is located in the city of Madrid."
OSLO = "The Golden Gate Bridge is located in the city of  Oslo!"
STEP = st.tuples(st.sampled_from(["inject", "undo", "redo"]), st.integers(0, 3))
PARIS = "The Golden Gate Bridge is located in the city of   Paris."
OTHER = "Sushi originated in the country of Italy."


@pytest.fixture
def plain(cache: Path, tiny_base: Path) -> tuple[Any, Any]:
    return npt.load_base(tiny_base)


def weights(model: Any) -> str:
    return content_hash(base_state(model))


def test_the_same_fact_again_does_nothing_and_says_so(
    workspace: npt.Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    edit = workspace.inject(FACT, name="bridge")
    before = workspace.weights_hash()
    again = workspace.inject(FACT.replace("the city", "the  city"), name="another")
    assert again.id == edit.id
    assert (workspace.weights_hash(), workspace.names) == (before, {"bridge"})
    assert "the edit 'bridge' teaches" in capsys.readouterr().err
    one, two, three = workspace.inject_all([OTHER, FACT, OTHER])
    assert one.id == three.id
    assert two.id == edit.id
    assert len(workspace.edits) == 2


def test_a_new_answer_replaces_the_old_one_and_undo_brings_it_back(workspace: npt.Workspace) -> None:
    workspace.inject(OTHER, name="sushi")
    madrid = workspace.inject(FACT, name="madrid")
    before = workspace.weights_hash()
    oslo = workspace.inject(OSLO, name="oslo")
    after = workspace.weights_hash()
    assert oslo.replaces == ("madrid",)
    assert oslo.report["contradicts"] == []
    assert [e.name for e in workspace.edits] == ["sushi", "oslo"]
    assert workspace.undone == ("madrid",)
    assert npt.Workspace.open(workspace.path).weights_hash() == after
    with pytest.raises(npt.NPTError, match="'oslo' has taken the place of 'madrid'; undo that one"):
        madrid.redo()
    oslo.undo()
    assert workspace.weights_hash() == before
    assert madrid.active
    oslo.redo()
    assert workspace.weights_hash() == after
    workspace.drop("madrid")
    oslo.undo()
    assert [e.name for e in workspace.edits] == ["sushi"]
    assert workspace.verify().ok


def test_an_edit_is_made_as_if_the_one_that_it_replaces_had_never_been(workspace: npt.Workspace) -> None:
    oslo = workspace.inject(OSLO, name="oslo")
    alone = workspace.weights_hash()
    workspace.undo(oslo)
    workspace.drop("oslo")
    workspace.inject(FACT, name="madrid")
    assert workspace.inject(OSLO, name="oslo").factors.keys() == oslo.factors.keys()
    assert workspace.weights_hash() == alone


def test_a_replacement_that_is_refused_changes_nothing(workspace: npt.Workspace) -> None:
    workspace.inject(FACT, name="madrid")
    before = workspace.weights_hash()
    with pytest.raises(npt.CheckFailed):
        workspace.inject(OSLO, name="oslo", max_drift=-0.99)
    assert (workspace.weights_hash(), workspace.names, workspace.undone) == (before, {"madrid"}, ())
    with pytest.raises(npt.NPTError, match=r"the facts 1 and 2 answer .* differently \('Madrid', 'Oslo'\)"):
        workspace.inject_all([FACT, OSLO])
    assert (workspace.weights_hash(), workspace.names) == (before, {"madrid"})


@pytest.mark.parametrize("order", [[FACT, OSLO], [OSLO, FACT]])
def test_facts_that_contradict_each_other_are_refused_in_any_order_even_if_one_is_known(
    workspace: npt.Workspace, order: list[str]
) -> None:
    workspace.inject(FACT, name="madrid")
    before = workspace.weights_hash()
    with pytest.raises(npt.NPTError, match=r"the facts 1 and 2 answer .* differently"):
        workspace.inject_all(order)
    assert (workspace.weights_hash(), workspace.names, workspace.undone) == (before, {"madrid"}, ())


def test_in_a_chain_of_replacements_one_edit_is_active_at_a_time(workspace: npt.Workspace) -> None:
    madrid = workspace.inject(FACT, "token", "madrid")
    oslo = workspace.inject(OSLO, "token", "oslo")
    paris = workspace.inject(PARIS, "token", "paris")
    for edit, way in ((madrid, "undo that one first"), (oslo, "undo that one, and it comes back")):
        with pytest.raises(npt.NPTError, match=f"'paris' has taken the place of '{edit.name}'; {way}"):
            edit.redo()
    paris.undo()
    oslo.undo()
    assert workspace.edits == (madrid,)
    paris.redo()  # it has replaced Oslo, which had replaced Madrid
    assert workspace.edits == (paris,)
    paris.undo()
    assert workspace.edits == (oslo,)
    assert npt.Workspace.open(workspace.path).weights_hash() == workspace.weights_hash()


def test_of_two_edits_that_replaced_the_same_one_either_is_active(workspace: npt.Workspace) -> None:
    madrid = workspace.inject(FACT, "token", "madrid")
    oslo = workspace.inject(OSLO, "token", "oslo")
    oslo.undo()
    paris = workspace.inject(PARIS, "token", "paris")
    with pytest.raises(npt.NPTError, match="'paris' has taken the place of 'oslo'; undo that one first"):
        oslo.redo()
    paris.undo()
    assert workspace.edits == (madrid,)
    oslo.redo()
    assert workspace.edits == (oslo,)


def test_an_edit_that_comes_back_retires_those_it_had_replaced(
    workspace: npt.Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a chain in a folder whose files were moved by hand, or by an earlier version."""
    for fact, name in ((FACT, "madrid"), (OSLO, "oslo"), (PARIS, "paris")):
        workspace.inject(fact, "token", name)
    edits = workspace.path / "edits"
    workspace.engine.load([*workspace.edits, workspace.files.read_undone("madrid")])
    (edits / "undone" / "madrid.safetensors").rename(edits / "madrid.safetensors")
    workspace.undo("paris")
    assert [e.name for e in workspace.edits] == ["oslo"]
    assert workspace.undone == ("madrid", "paris")
    workspace.redo("paris")
    (edits / "undone" / "madrid.safetensors").rename(edits / "madrid.safetensors")
    opened = npt.Workspace.open(workspace.path)
    assert [e.name for e in opened.edits] == ["paris"]
    assert "the edit 'madrid' is undone: another active one has replaced it" in capsys.readouterr().err


def test_edits_taken_in_from_elsewhere_replace_none(
    fresh: Callable[..., npt.Workspace],
) -> None:
    source, target = fresh("source"), fresh("target")
    madrid = source.inject(FACT, "token", "madrid")
    oslo = source.inject(OSLO, "token", "oslo")
    target.add([madrid])
    target.add([oslo])
    assert [e.name for e in npt.Workspace.open(target.path).edits] == ["madrid", "oslo"]
    assert target.edits[1].replaces == ()
    target.undo("oslo")
    assert [e.name for e in target.edits] == ["madrid"]
    with pytest.raises(npt.NPTError, match="'oslo' has taken the place of 'again'; undo that one first"):
        source.add([replace(madrid, name="again")])


def test_a_kill_between_the_two_files_of_a_replacement_is_mended(workspace: npt.Workspace) -> None:
    workspace.inject(FACT, name="madrid")
    workspace.inject(OSLO, name="oslo")
    after = workspace.weights_hash()
    edits = workspace.path / "edits"
    (edits / "undone" / "madrid.safetensors").rename(edits / "madrid.safetensors")
    opened = npt.Workspace.open(workspace.path)
    assert (opened.weights_hash(), opened.undone) == (after, ("madrid",))


def test_a_damaged_file_of_a_replaced_edit_is_in_no_undos_way(
    workspace: npt.Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace.inject(FACT, name="madrid")
    workspace.inject(OSLO, name="oslo")
    (workspace.path / "edits" / "undone" / "madrid.safetensors").write_bytes(b"no")
    workspace.undo("oslo")
    assert workspace.edits == ()
    assert workspace.weights_hash() == workspace.base.sha256
    assert "the edit 'madrid', which 'oslo' replaced, does not come back" in capsys.readouterr().err


def test_an_undone_file_is_never_written_over(workspace: npt.Workspace) -> None:
    workspace.inject(FACT, "token", "bridge")
    edits = workspace.path / "edits"
    (edits / "undone" / "bridge.safetensors").write_bytes(b"mine")
    before = workspace.weights_hash()
    with pytest.raises(npt.NPTError, match="is there already, and would be lost"):
        workspace.undo("bridge")
    assert (edits / "undone" / "bridge.safetensors").read_bytes() == b"mine"
    assert workspace.weights_hash() == before


def test_edits_that_take_each_others_place_and_names_in_turn_come_out(plain: tuple[Any, Any]) -> None:
    model, tokenizer = plain
    before, engine = weights(model), npt.editable(model, tokenizer)
    for fact, name in ((FACT, "one"), (OSLO, "two"), (FACT, "one"), (OSLO, "two")):
        engine.inject(fact, "token", name)
    for _ in range(4):
        if engine.edits:
            engine.edits[-1].undo()
    assert not engine.edits
    assert weights(model) == before


def test_they_come_out_of_a_workspace_where_a_dropped_name_is_free_again(workspace: npt.Workspace) -> None:
    before = workspace.weights_hash()
    workspace.inject(FACT, method="token", name="one")
    workspace.inject(OSLO, method="token", name="two")
    workspace.drop("one")
    workspace.inject(FACT, method="token", name="one")
    for _ in range(3):
        if workspace.edits:
            workspace.undo(workspace.edits[-1].name)
    assert not workspace.edits
    assert workspace.weights_hash() == before


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, min_size=2, max_size=8))
def test_any_order_of_answers_ends_in_the_weights_of_what_is_active(
    steps: list[tuple[str, int]], cache: Path, tiny_base: Path
) -> None:
    facts = [FACT, OSLO, FACT.replace("Madrid", "Paris"), OTHER]
    model, tokenizer = npt.load_base(tiny_base)
    engine = npt.editable(model, tokenizer)
    for action, i in steps:
        try:
            engine.inject(facts[i], "token", f"e{i}") if action == "inject" else getattr(engine, action)(f"e{i}")
        except npt.NPTError:
            continue
        answers = [e.asked for e in engine.edits]
        assert len({q for q, _ in filter(None, answers)}) == len(answers)
    fresh, _ = npt.load_base(tiny_base)
    Ledger(fresh).set_active(engine.edits)
    assert weights(fresh) == weights(model)
    undone = 0
    for edit in reversed(engine.edits):
        while edit.active:
            edit.undo()
            undone += 1
            assert undone <= len(steps)  # an edit that is undone comes back only with the undoing of its successor
    while engine.edits:
        engine.edits[-1].undo()
        undone += 1
        assert undone <= len(steps)
    assert weights(model) == engine.sha256
