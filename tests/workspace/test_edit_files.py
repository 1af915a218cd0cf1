"""Edits as files of a workspace: their names, undone and dropped, damaged, and taken away by another process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

import neuroplastic as npt
from neuroplastic.editing.edit import Edit
from neuroplastic.editing.inject_options import InjectOptions
from neuroplastic.files import read_tensors, write_tensors
from neuroplastic.workspace.edit_files import list_edits

FACT = "The Golden Gate Bridge is located in the city of Madrid."
OTHER = "Sushi originated in the country of Italy."


def test_unknown_names_are_refused(workspace: npt.Workspace) -> None:
    workspace.inject(FACT, name="bridge")
    for action, cause in [
        (workspace.undo, "there is no active edit 'x'; active are: bridge"),
        (workspace.redo, "there is no undone edit 'x'; undone are: none"),
        (workspace.drop, "there is no undone edit 'x'; undone are: none"),
    ]:
        with pytest.raises(npt.NPTError, match=cause):
            action("x")
    with pytest.raises(npt.NPTError, match="'bridge' \\(it is active; undo it first\\)"):
        workspace.drop("bridge")


def test_a_damaged_undone_edit_is_in_nobodys_way(workspace: npt.Workspace) -> None:
    workspace.inject(FACT, name="bridge")
    workspace.undo("bridge")
    file = workspace.path / "edits" / "undone" / "bridge.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    opened = npt.Workspace.open(workspace.path)
    opened.inject(OTHER, name="sushi")
    weights = opened.weights_hash()
    with pytest.raises(npt.NPTError, match=r"bridge\.safetensors is damaged"):
        opened.redo("bridge")
    assert opened.weights_hash() == weights
    opened.drop("bridge")
    assert opened.names == {"sushi"}


def test_an_edit_undone_by_another_process_is_noticed(workspace: npt.Workspace) -> None:
    workspace.inject(FACT, name="bridge")
    other = npt.Workspace.open(workspace.path)
    other.undo("bridge")
    with pytest.raises(npt.NPTError, match="another process has undone it; open the workspace again"):
        workspace.undo("bridge")
    assert [e.name for e in workspace.edits] == ["bridge"]


def test_names_are_made_from_statements(workspace: npt.Workspace) -> None:
    other = FACT.replace("city", "country")
    names = [workspace.inject(fact, method="token").name for fact in (FACT, other)]
    assert names == ["the-golden-gate-bridge-is", "the-golden-gate-bridge-is-2"]
    workspace.undo(names[0])
    workspace.drop(names[0])
    assert workspace.inject(FACT, method="token").name == names[0]
    assert [e.name for e in list_edits(workspace.path)[0]] == [names[1], names[0]]


def test_a_batch_is_out_of_sight_until_the_last_file_is_written(
    workspace: npt.Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_by_a_kill = workspace.path / "edits" / ".new" / "fox.safetensors"
    left_by_a_kill.parent.mkdir()
    left_by_a_kill.write_bytes(b"half")
    seen: list[int] = []
    save = Edit.save

    def saving(edit: Edit, path: Path) -> None:
        save(edit, path)
        seen.append(len(workspace.files.active))

    monkeypatch.setattr(Edit, "save", saving)
    workspace.inject_all([FACT, OTHER], InjectOptions(method="token"))
    assert seen == [0, 0]
    assert len(list_edits(workspace.path)[0]) == 2
    assert not left_by_a_kill.parent.exists()


def test_reading_waits_for_files_that_are_moved_but_for_no_solving(workspace: npt.Workspace) -> None:
    workspace.inject(FACT, "token", "bridge")
    with ThreadPoolExecutor(1) as pool:
        with FileLock(workspace.path / ".files.lock"):
            listed = pool.submit(list_edits, workspace.path)
            with pytest.raises(TimeoutError):
                listed.result(0.3)
        assert [e.name for e in listed.result(30)[0]] == ["bridge"]
        with workspace.files.locked():
            assert pool.submit(npt.Workspace.open, workspace.path).result(30).edits == workspace.edits


def test_foreign_and_damaged_edits_are_named_and_the_others_load(workspace: npt.Workspace) -> None:
    good_one = workspace.inject(OTHER, name="sushi")
    edit = workspace.inject(FACT, name="bridge")
    file = workspace.path / "edits" / "bridge.safetensors"
    good = file.read_bytes()
    tensors, metadata = read_tensors(file)
    some = next(iter(tensors))

    def write(t: dict[str, torch.Tensor], m: dict[str, Any]) -> None:
        write_tensors(file, t, m)

    moved = {(layer + 6, site): f for (layer, site), f in edit.factors.items()}
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: file.write_bytes(good[:-7]), "bridge.safetensors is damaged"),
        (lambda: file.write_bytes(b"no"), "bridge.safetensors is damaged"),
        (lambda: write(tensors, {**metadata, "kind": "generator"}), "is not an edit of format 2"),
        (lambda: write(tensors, {k: v for k, v in metadata.items() if k != "statement"}), "its statement is missing"),
        (lambda: write({**tensors, "x": torch.zeros(1)}, metadata), "unexpected tensor 'x'"),
        (lambda: write({n: t for n, t in tensors.items() if n != some}, metadata), "do not fit together"),
        (lambda: write({**tensors, some: tensors[some] * torch.nan}, metadata), "are not finite"),
        (lambda: write({**tensors, some: tensors[some] * 2}, metadata), "was changed after it was written"),
        (lambda: write(tensors, {**metadata, "statement": "Another."}), "was changed after it was written"),
        (lambda: replace(edit, base="0" * 64).save(file), "is an edit of another base model"),
        (lambda: replace(edit, name="other").save(file), "holds the edit 'other'"),
        (lambda: replace(edit, factors=moved, keys={}).save(file), "changes layer 6, which the model does not have"),
    ]
    for spoil, cause in cases:
        spoil()
        opened = npt.Workspace.open(workspace.path)
        assert cause in opened.refused["bridge"]
        assert [e.name for e in opened.edits] == ["sushi"]
        assert not opened.verify().ok
        if "the model" not in cause:  # which the list does not load
            assert [e.name for e in list_edits(workspace.path)[0]] == ["sushi"]
        with pytest.raises(npt.NPTError, match="there is an edit named 'bridge' already"):
            opened.inject(FACT, name="bridge", method="token")
    file.write_bytes(good)
    opened = npt.Workspace.open(workspace.path)
    assert [e.name for e in opened.edits] == [good_one.name, "bridge"]
    assert opened.verify().ok
