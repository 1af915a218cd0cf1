"""The engine of a model: one for each, edits known by what they are, changes whole or not at all, facts that meet."""

from __future__ import annotations

import copy
import errno
import gc
import os
import pickle
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import neuroplastic as npt
from families import tiny, tokens
from neuroplastic.editing.edit import name_from
from neuroplastic.editing.ledger import Ledger
from neuroplastic.editing.methods.rank_one import token_factors
from neuroplastic.files import content_hash, write_json
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


# --- edits of a plain model in memory --------------------------------------------------------------------------------


@pytest.mark.parametrize("converted", [False, True])
def test_inject_and_undo_in_any_order(plain: tuple[Any, Any], converted: bool) -> None:
    model, tokenizer = plain
    if converted:
        npt.convert(model, npt.PlasticityConfig(generator="low_rank", np_rank=4))
    before = weights(model)
    first = npt.inject(model, tokenizer, FACT)
    alone = weights(model)
    second = npt.inject(model, tokenizer, OTHER, method="token", layers="1")
    assert {layer for layer, _ in second.factors} == {1}
    both = weights(model)
    assert len({before, alone, both}) == 3
    assert first.active
    assert first.report["statement_logprob_after"] != first.report["statement_logprob_before"]
    first.undo()
    second.undo()
    assert weights(model) == before
    assert not first.active
    with pytest.raises(npt.NPTError, match="was undone already"):
        first.undo()


def test_bad_input_changes_nothing(plain: tuple[Any, Any]) -> None:
    model, tokenizer = plain
    before = weights(model)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"statement": ""}, "the statement is empty"),
        ({"statement": FACT, "method": "magic"}, "method must be one of"),
        ({"statement": FACT, "alpha": float("inf")}, "alpha must be a finite number"),
        ({"statement": FACT, "layers": "7"}, "layer 7 is out of range"),
    ]
    for arguments, cause in cases:
        with pytest.raises(npt.NPTError, match=cause):
            npt.inject(model, tokenizer, arguments.pop("statement"), **arguments)
    assert weights(model) == before


def test_the_call_of_the_first_design() -> None:
    """consolidate_weights adds alpha times the token's update, and undo takes it away."""
    model = tiny("llama", torch.float64)
    original = {n: t.clone() for n, t in model.state_dict().items()}
    factors = token_factors(model, tokens()[:1], (0, 1), position=3)
    edit = npt.consolidate_weights(model, tokens()[0], token_idx=3, alpha=0.1)
    for (layer, site), (A, B) in factors.items():
        name = f"model.layers.{layer}.mlp.{site}_proj.weight"
        assert_close(model.state_dict()[name], original[name] + 0.1 * B @ A)
    again = npt.consolidate_weights(model, tokens()[:1])
    edit.undo()
    again.undo()
    assert all(torch.equal(t, original[n]) for n, t in model.state_dict().items())
    with pytest.raises(npt.NPTError, match="token_idx 12 is out of range: the context has 12 tokens"):
        npt.consolidate_weights(model, tokens()[0], token_idx=12)
    with pytest.raises(npt.NPTError, match="alpha must be"):
        npt.consolidate_weights(model, tokens()[0], alpha=0)


# --- identity and order ---------------------------------------------------------------------------------------------


def test_an_edit_is_known_by_what_it_is_not_by_its_name_or_number(plain: tuple[Any, Any]) -> None:
    model, tokenizer = plain
    a = npt.inject(model, tokenizer, FACT, "token", "tower")
    a.undo()
    b = npt.inject(model, tokenizer, OTHER, "token", "tower")
    with_b = weights(model)
    with pytest.raises(npt.NPTError, match="the edit 'tower' was undone already"):
        a.undo()
    assert (a.active, b.active, weights(model)) == (False, True, with_b)
    with pytest.raises(npt.NPTError, match="no undone edit 'tower'"):
        a.redo()
    with pytest.raises(npt.NPTError, match="'tower' is active already"):
        b.redo()
    b.undo()
    b.redo()
    assert weights(model) == with_b


def test_edits_are_equal_if_they_are_the_same_edit(plain: tuple[Any, Any]) -> None:
    model, tokenizer = plain
    a, b = npt.inject(model, tokenizer, FACT, "token"), npt.inject(model, tokenizer, OTHER, "token")
    assert a != b
    assert a != a.name
    assert {a, b, replace(a, report={})} == {b, a}
    assert list(npt.editable(model, tokenizer).edits).index(b) == 1


def test_an_edit_knows_itself_again_in_a_workspace(workspace: npt.Workspace) -> None:
    first = workspace.inject(FACT, "token", "bridge")
    workspace.undo(first)
    workspace.drop("bridge")
    second = workspace.inject(OTHER, "token", "bridge")
    workspace.undo("bridge")
    with pytest.raises(npt.NPTError, match="'bridge' was dropped; another one has its name"):
        first.redo()
    second.redo()
    opened = npt.Workspace.open(workspace.path)
    assert [e.id for e in opened.edits] == [second.id]
    with pytest.raises(npt.NPTError, match="belongs to no model in memory"):
        replace(second, home=None).undo()


def test_a_file_of_the_first_release_has_its_seal_as_identity(workspace: npt.Workspace) -> None:
    from neuroplastic.editing.edit import _seal
    from neuroplastic.files import read_tensors, write_tensors

    workspace.inject(FACT, "token", "bridge")
    file = workspace.path / "edits" / "bridge.safetensors"
    tensors, metadata = read_tensors(file)
    old = {k: v for k, v in metadata.items() if k not in ("id", "seal")}
    write_tensors(file, tensors, {**old, "seal": _seal(tensors, old)})
    one, two = (npt.Workspace.open(workspace.path).edits[0] for _ in range(2))
    assert one.id == two.id == _seal(tensors, old)


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError])
@pytest.mark.parametrize("where", ["edited", "weight_at"])
def test_an_edit_is_in_the_weights_whole_or_not_at_all(
    workspace: npt.Workspace, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], where: str
) -> None:
    """Whatever call it is that fails, of those that compute new weights and of those that swap them in."""
    from neuroplastic.editing import ledger

    workspace.inject(FACT, "token", "bridge", layers="all")
    before, real = workspace.weights_hash(), getattr(ledger, where)
    failed = 0
    for at in range(1, 200):
        calls = 0

        def failing(*args: Any, at: int = at) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise error
            return real(*args)

        with monkeypatch.context() as m:
            m.setattr(ledger, where, failing)
            try:
                workspace.inject(OTHER, "token", "sushi", layers="all")
                break
            except error:
                failed += 1
        assert workspace.weights_hash() == before
        assert [e.name for e in workspace.edits] == ["bridge"]
        assert workspace.names == {"bridge"}
    assert failed >= 2
    workspace.undo("sushi")
    assert workspace.weights_hash() == before
    assert workspace.verify().ok


def test_an_edited_model_that_nobody_holds_is_freed(cache: Path, tiny_base: Path) -> None:
    model, tokenizer = npt.load_base(tiny_base)
    edit = npt.inject(model, tokenizer, FACT)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert not edit.active
    with pytest.raises(npt.NPTError, match="belongs to no model in memory"):
        edit.undo()


def test_the_first_designs_call_and_inject_share_one_ledger(plain: tuple[Any, Any]) -> None:
    model, tokenizer = plain
    before = weights(model)
    by_tokens = npt.consolidate_weights(model, tokens()[:1] % 100)
    taught = npt.inject(model, tokenizer, FACT)
    by_tokens.undo()
    again = npt.inject(model, tokenizer, OTHER)
    assert taught.base == again.base == before
    for edit in (taught, again):
        edit.undo()
    assert weights(model) == before


def test_a_model_has_one_engine_with_and_without_a_workspace(workspace: npt.Workspace) -> None:
    engine = npt.editable(workspace.model, workspace.tokenizer)
    assert engine is workspace.engine
    first = workspace.inject(FACT, "token", "bridge")
    second = npt.inject(workspace.model, workspace.tokenizer, OTHER, "token", "sushi")
    assert workspace.edits == (first, second)
    workspace.undo("bridge")
    assert second.active
    assert npt.Workspace.open(workspace.path).weights_hash() == workspace.weights_hash()
    second.undo()
    assert workspace.undone == ("bridge", "sushi")
    assert workspace.weights_hash() == workspace.base.sha256


def test_a_copied_model_has_an_engine_of_its_own(plain: tuple[Any, Any]) -> None:
    model, tokenizer = plain
    before = weights(model)
    edit = npt.inject(model, tokenizer, FACT, "token")
    copied = copy.deepcopy(model)
    engine = npt.editable(copied, tokenizer)
    assert engine is not npt.editable(model, tokenizer)
    assert [e.id for e in engine.edits] == [edit.id]
    assert [e.engine for e in engine.edits] == [engine]
    engine.edits[0].undo()
    assert weights(copied) == before
    assert edit.active
    edit.undo()
    assert weights(model) == before
    unpickled = pickle.loads(pickle.dumps(model))
    assert npt.editable(unpickled, tokenizer).edits == ()


def test_the_ledger_follows_a_model_that_is_moved(plain: tuple[Any, Any]) -> None:
    model, tokenizer = plain
    wanted = {n: t.to(torch.bfloat16) for n, t in model.state_dict().items()}
    edit = npt.inject(model, tokenizer, FACT, "token")
    model.to(torch.bfloat16)
    edit.undo()
    assert all(torch.equal(t, wanted[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("CON", "some systems reserve that name"),
        ("nul.txt", "some systems reserve that name"),
        ("lpt1", "some systems reserve that name"),
        ("tower.", "with no dot at the end"),
    ],
)
def test_names_that_are_no_file_everywhere_are_refused(workspace: npt.Workspace, name: str, cause: str) -> None:
    with pytest.raises(npt.NPTError, match=cause):
        workspace.inject(FACT, "token", name)
    assert workspace.names == set()


def test_names_that_differ_only_in_case_are_one_name(workspace: npt.Workspace) -> None:
    edit = workspace.inject(FACT, "token", "Tower")
    with pytest.raises(npt.NPTError, match="there is an edit named 'tower' already"):
        workspace.inject(OTHER, "token", "tower")
    with pytest.raises(npt.NPTError, match="there is an edit named 'TOWER' already"):
        workspace.add([replace(edit, name="TOWER")])
    assert name_from("The Tower", {"THE-TOWER"}) == "the-tower-2"
    assert name_from("Con", set()) == "con-edit"


def test_a_folder_that_cannot_be_synced_fails_no_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(descriptor: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fails)
    write_json(tmp_path / "a.json", {"a": 1})
    assert (tmp_path / "a.json").exists()
    real = os.open

    def no_folders(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", no_folders)
    write_json(tmp_path / "b.json", {"a": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="Input/output"):
        write_json(tmp_path / "c.json", {"a": 1})
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.json", "b.json"]


# --- facts that meet ------------------------------------------------------------------------------------------------


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


@pytest.mark.usefixtures("no_grad")
def test_the_engine_belongs_to_no_state_dict() -> None:
    model = tiny("llama")
    names = set(model.state_dict())
    npt.consolidate_weights(model, tokens()[:1])
    assert set(model.state_dict()) == names
