"""A method is given all facts of a passage in one call."""

from __future__ import annotations

import pytest

import neuroplastic as npt
from injectors import with_injector
from neuroplastic.evaluation.methods import editing_method
from neuroplastic.evaluation.records import Record

SENTENCES = ("The Bridge is in Madrid.", "The Tower is in Paris.", "The fox is lazy.")
PASSAGE = Record("p", "", "Madrid", "", (), (), sentence=" ".join(SENTENCES), sentences=SENTENCES)
TOO_LONG = f"The fox {'is quick and ' * 20}lazy."


def test_one_edit_for_each_sentence_in_one_call(workspace: npt.Workspace) -> None:
    workspace.inject("Sushi is from Oslo.", name="own")
    weights = workspace.weights_hash()
    with editing_method("consolidate")(workspace.engine, PASSAGE) as taught:
        own, *edits = workspace.engine.ledger.active
        assert [e.statement for e in edits] == list(SENTENCES)
        assert [e.name for e in edits] == ["eval-2", "eval-3", "eval-4"]
        assert [e.sequence for e in edits] == [own.sequence + n for n in (1, 2, 3)]
        assert [e.report["told_together"] for e in edits] == [3, 3, 3]
        assert taught.seconds == pytest.approx(sum(e.report["seconds"] for e in edits))
        with editing_method("consolidate")(workspace.engine, PASSAGE):  # sequential edits
            active = workspace.engine.ledger.active
            assert len({e.name for e in active}) == len({e.sequence for e in active}) == 7
    assert workspace.weights_hash() == weights


def test_sentences_that_the_injector_cannot_read_are_left_out_and_noted(
    workspace: npt.Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = with_injector(workspace)
    longer = Record("p", "", "Madrid", "", (), (), sentence="-", sentences=(SENTENCES[0], TOO_LONG))
    with editing_method("learned")(workspace.engine, longer):
        assert [e.statement for e in workspace.engine.ledger.active] == [SENTENCES[0]]
    noted = capsys.readouterr().err
    assert "record p: 1 of its 2 sentences are longer than the 40 tokens that the injector reads" in noted
    with editing_method("consolidate")(workspace.engine, longer):  # asks no injector
        assert len(workspace.engine.ledger.active) == 2
    assert "record p" not in capsys.readouterr().err
    only_long = Record("p", "", "Madrid", "", (), (), sentence="-", sentences=(TOO_LONG, f"{TOO_LONG} Yes, lazy."))
    with (
        pytest.raises(npt.NPTError, match="the injector was trained for at most 40"),
        editing_method("learned")(workspace.engine, only_long),
    ):
        pass
