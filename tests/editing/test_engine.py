"""The engine of a model: one for each, edits known by what they are, changes whole or not at all, facts that meet."""

from __future__ import annotations

import copy
import errno
import gc
import os
import pickle
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch.testing import assert_close

import neuroplastic as npt
from families import tiny, tokens
from neuroplastic.editing.edit import name_from
from neuroplastic.editing.token_update import token_factors
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


def test_the_call_of_the_first_design_makes_no_edit_of_nothing() -> None:
    model = npt.convert(tiny("llama"), npt.PlasticityConfig(generator="low_rank", np_rank=4))
    for p in npt.plastic_layers(model).values():
        for parameter in p.generator.parameters():
            torch.nn.init.zeros_(parameter)
    with pytest.raises(npt.NPTError, match="the token at -1 has no modulation"):
        npt.consolidate_weights(model, tokens()[0])
    assert npt.EditableModel.of(model).edits == ()


def test_a_token_without_a_modulation_is_named(plain: tuple[Any, Any]) -> None:
    model, tokenizer = plain
    npt.convert(model, npt.PlasticityConfig(generator="low_rank", np_rank=4))
    for p in npt.plastic_layers(model).values():
        for parameter in p.generator.parameters():
            torch.nn.init.zeros_(parameter)
    with pytest.raises(npt.NPTError, match=r"the last token of .* has no modulation in the layers"):
        npt.inject(model, tokenizer, FACT, "token")


def test_names_are_as_many_as_facts(plain: tuple[Any, Any]) -> None:
    engine = npt.editable(*plain)
    for names in ([], ["a", "b"]):
        with pytest.raises(npt.NPTError, match=f"there are 1 facts and {len(names)} names"):
            engine.inject_all([FACT], names=names)


METHODS: list[dict[str, Any]] = [
    {"method": "consolidate"},
    {"method": "token"},
    {"method": "refine"},
    {"method": "refine", "start": "token"},
]


@pytest.mark.parametrize("options", METHODS)
def test_a_statement_that_is_too_long_is_refused_before_anything_is_measured(
    plain: tuple[Any, Any], options: dict[str, Any]
) -> None:
    engine = npt.editable(*plain)
    with pytest.raises(npt.NPTError, match="the statement is too long"):
        engine.inject("The fox and " * 80 + "the dog are in Rome.", **options)
    assert "_text" not in vars(engine)


@pytest.mark.parametrize("options", [{"method": "learned"}, {"method": "refine", "start": "learned"}])
def test_a_missing_injector_is_found_before_anything_is_measured(
    plain: tuple[Any, Any], options: dict[str, Any]
) -> None:
    engine = npt.editable(*plain)
    with pytest.raises(npt.NPTError, match="there is no injector for this model"):
        engine.inject(FACT, **options)
    assert "_text" not in vars(engine)


@pytest.mark.parametrize("statement", ["The Eiffel Tower is in\nRome.", "The Eiffel Tower is in  Rome."])
def test_an_edit_is_asked_as_its_fact_was(plain: tuple[Any, Any], statement: str) -> None:
    fact = npt.fact_of(statement)
    assert npt.inject(*plain, fact, "token").asked == (fact.question, fact.answer)


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


@pytest.mark.usefixtures("no_grad")
def test_the_engine_belongs_to_no_state_dict() -> None:
    model = tiny("llama")
    names = set(model.state_dict())
    npt.consolidate_weights(model, tokens()[:1])
    assert set(model.state_dict()) == names
