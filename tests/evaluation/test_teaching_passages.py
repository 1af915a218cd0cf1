"""A method is given all facts of a passage in one call."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import neuroplastic as npt
from injectors import with_injector
from neuroplastic.evaluation.baselines.answers import about_subjects
from neuroplastic.evaluation.baselines.ft import ft
from neuroplastic.evaluation.baselines.lora import lora
from neuroplastic.evaluation.baselines.memit import Settings as MemitSettings
from neuroplastic.evaluation.baselines.memit import memit
from neuroplastic.evaluation.baselines.rome import Settings as RomeSettings
from neuroplastic.evaluation.baselines.rome import rome
from neuroplastic.evaluation.edits import evaluate, summarise
from neuroplastic.evaluation.evaluator import Evaluator
from neuroplastic.evaluation.methods import EditingMethod, batch_method, editing_method
from neuroplastic.evaluation.records import Question, Record
from neuroplastic.evaluation.result_store import ResultStore
from neuroplastic.evaluation.sequential import Step, in_a_row
from neuroplastic.evaluation.told import TOLD

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


def test_sentences_that_cannot_be_taught_are_left_out_and_named(workspace: npt.Workspace) -> None:
    workspace = with_injector(workspace)
    longer = Record("p", "", "Madrid", "", (), (), sentence="-", sentences=(SENTENCES[0], TOO_LONG))
    with editing_method("learned")(workspace.engine, longer) as taught:
        assert [e.statement for e in workspace.engine.ledger.active] == [SENTENCES[0]]
    assert list(taught.untaught) == ["p"]
    assert taught.untaught["p"].startswith("1 of its 2 sentences is not taught: the statement 'The fox")
    with editing_method("consolidate")(workspace.engine, longer) as taught:  # asks no injector
        assert len(workspace.engine.ledger.active) == 2
    assert taught.untaught == {}
    beyond = replace(longer, sentences=(*SENTENCES, TOO_LONG * 6))  # the context of the model
    with editing_method("consolidate")(workspace.engine, beyond) as taught:
        assert len(workspace.engine.ledger.active) == 3
    assert "1 of its 4 sentences is not taught: the statement is too long" in taught.untaught["p"]
    only_long = Record("p", "", "Madrid", "", (), (), sentence="-", sentences=(TOO_LONG, f"{TOO_LONG} Yes, lazy."))
    with (
        pytest.raises(npt.NPTError, match="the injector was trained for at most 40"),
        editing_method("learned")(workspace.engine, only_long),
    ):
        pass


def asked_about(record: Record, **changed: Any) -> Record:
    asked = (Question("own", "text", "The Bridge is in"), Question("worded", "text", "The Tower is in"))
    return replace(record, questions=asked, unrelated=(Question("kept", "text", "The fox is"),), **changed)


def test_records_of_several_facts_are_taught_together(workspace: npt.Workspace) -> None:
    teach = batch_method("consolidate")
    assert teach is not None
    weights, engine = workspace.weights_hash(), workspace.engine
    second = Record("q", "", "lazy", "", (), (), sentence="-", sentences=("The dog is lazy.", TOO_LONG * 6))
    with teach(engine, [PASSAGE, second]) as taught:
        edits = engine.ledger.active
        assert [e.statement for e in edits] == [*SENTENCES, "The dog is lazy."]
        assert len({e.name for e in edits}) == len({e.sequence for e in edits}) == 4
        assert taught.seconds == pytest.approx(sum(e.report["seconds"] for e in edits) / 2)  # of a record
        assert list(taught.untaught) == ["q"]
    assert workspace.weights_hash() == weights


def test_what_is_left_out_of_a_record_stands_in_its_row_and_step(
    workspace: npt.Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuroplastic.evaluation.replies.NEW_TOKENS", 4)
    engine = workspace.engine
    records = [asked_about(PASSAGE), asked_about(PASSAGE, id="q", sentences=(SENTENCES[1], TOO_LONG * 6))]
    methods = {m: editing_method(m) for m in ("unedited", "consolidate")}
    store = ResultStore(tmp_path, {}, Step)
    rows = evaluate(Evaluator(engine, TOLD), records, methods)
    found = summarise(rows, TOLD)["methods"]
    assert {r.record: bool(r.untaught) for r in rows if r.method == "consolidate"} == {"p": False, "q": True}
    assert found["unedited"]["untaught"] == {}
    assert found["consolidate"]["refused"] == {}
    assert "1 of its 2 sentences is not taught" in found["consolidate"]["untaught"]["q"]
    first, last = in_a_row(Evaluator(engine, TOLD), records, "consolidate", methods["consolidate"], store)
    assert first.untaught == {}
    assert last.untaught == found["consolidate"]["untaught"]
    assert [s.untaught for s in ResultStore(tmp_path, {}, Step).done] == [{}, last.untaught]


BASELINES: dict[str, EditingMethod] = {
    "rome": rome(RomeSettings(layer="0")),
    "memit": memit(MemitSettings(layers="0")),
    "lora": lora(),
    "ft": ft(),
}


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_teaches_the_facts_of_a_passage(workspace: npt.Workspace, name: str) -> None:
    """ROME and MEMIT those that have a name in them, the others all."""
    engine, weights = workspace.engine, workspace.weights_hash()
    some = replace(PASSAGE, sentences=(*SENTENCES[:2], "it is quick."), subject="a title")
    with BASELINES[name](engine, some) as taught:
        together = workspace.weights_hash()
    assert workspace.weights_hash() == weights != together
    if name in ("rome", "memit"):
        assert taught.untaught == {"p": "1 of its 3 sentences is not taught: no name stands before the answer"}
        with BASELINES[name](engine, replace(some, sentences=SENTENCES[:1])):
            assert workspace.weights_hash() not in (together, weights)
        none = replace(some, sentences=("it is quick.", "it is lazy."))
        with pytest.raises(npt.NPTError, match="no name stands in 'it is' and the other sentences"):
            about_subjects(none)
    else:
        assert taught.untaught == {}
    long = replace(PASSAGE, sentence=TOO_LONG * 6, sentences=(TOO_LONG * 6,))
    with pytest.raises(npt.NPTError, match="the statement is too long"), BASELINES[name](engine, long):
        pass
