"""The edit suites on a tiny workspace, one edit at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import neuroplastic as npt
from neuroplastic.editing.engine import EditableModel
from neuroplastic.evaluation.counterfact import COUNTERFACT
from neuroplastic.evaluation.edits import Row, evaluate, summarise
from neuroplastic.evaluation.evaluator import Evaluator, Remembered
from neuroplastic.evaluation.methods import EditingMethod, Taught, editing_method
from neuroplastic.evaluation.records import Record
from neuroplastic.evaluation.report import as_csv, refusals
from neuroplastic.evaluation.result_store import ResultStore
from neuroplastic.evaluation.suite import no_reference
from neuroplastic.evaluation.summary import harmonic
from neuroplastic.evaluation.zsre import ZSRE

RECORDS = [
    Record("a", "The Bridge is in", "Madrid", "Paris", ("One finds it in",), (("The Tower is in", "Paris"),)),
    Record("b", "The fox is", "lazy", "quick", ("A fox is",), (("The dog is", "quick"), ("A dog is", "brown"))),
    Record("c", "Sushi is from", "Italy", "Japan", ("It came from",), (("Pizza is from", "Italy"),)),
]
METHODS = ["unedited", "prompt", "token", "consolidate"]
COMPARED = {m: editing_method(m) for m in METHODS}
COSTS = {"perplexity", "kl"}


def needy(name: str) -> EditingMethod:
    """A method that cannot teach record b."""

    @contextmanager
    def teach(engine: EditableModel, record: Record) -> Iterator[Taught]:
        if record.id == "b":
            raise npt.NPTError("b is too long")
        with COMPARED[name](engine, record) as taught:
            yield taught

    return teach


def test_each_alone_and_nothing_left_behind(workspace: npt.Workspace) -> None:
    workspace.inject("Pizza is from Oslo.", name="own")
    weights = workspace.weights_hash()
    evaluator = Evaluator(workspace.engine, COUNTERFACT)
    rows = evaluate(evaluator, RECORDS, COMPARED)
    assert [(r.method, r.record) for r in rows] == [(m, r.id) for m in METHODS for r in RECORDS]
    assert workspace.weights_hash() == weights
    assert [e.name for e in workspace.edits] == ["own"]
    for row in rows:
        assert (COSTS & row.figures.keys()) == (COSTS if row.method in ("token", "consolidate") else set())
        assert row.figures["asking"] > row.figures["per_question"] > 0
        assert (row.figures["context_tokens"] > 0) == (row.method == "prompt")
        assert (row.figures["seconds"] > 0) == (row.method in ("token", "consolidate"))
        assert row.refused == ""
    first = rows[0].figures  # a prompt, a paraphrase, and a neighbour that is asked twice
    assert first["per_question"] == pytest.approx(first["asking"] / 4)
    edited, plain = ([r.figures["EM"] for r in rows if r.method == m] for m in ("consolidate", "unedited"))
    assert all(e > p for e, p in zip(edited, plain, strict=True))  # each alone makes its own answer likelier
    found = summarise(rows, COUNTERFACT)
    assert found["records"] == ["a", "b", "c"]
    assert found["methods"]["token"]["records"] == 3
    assert found["ceiling"] == harmonic(1, 1, found["methods"]["unedited"]["figures"]["NS"][0])
    lines = as_csv(found).splitlines()
    assert lines[0] == "method,edits,figure,mean,low,high"
    assert len(lines) == 1 + sum(len(m["figures"]) for m in found["methods"].values())


def test_locality_of_zsre_is_against_the_unedited_model(workspace: npt.Workspace) -> None:
    rows = evaluate(Evaluator(workspace.engine, ZSRE), RECORDS[:2], COMPARED)
    by_method = {m: [r.figures for r in rows if r.method == m] for m in METHODS}
    assert all(f["locality"] == 1 for f in by_method["unedited"])
    engine = workspace.engine
    for method in ("prompt", "consolidate"):  # taught and asked by hand
        evaluator = Evaluator(engine, ZSRE)
        evaluator.remember(RECORDS[:1])
        with COMPARED[method](engine, RECORDS[0]) as taught:
            assert taught.context == ("Fact: The Bridge is in Madrid.\n" if method == "prompt" else "")
            asked = evaluator.ask(RECORDS[0], taught.context)
        del asked["asking"], asked["per_question"]
        assert asked == pytest.approx({k: by_method[method][0][k] for k in asked})
    edited, plain = (sum(f["edit"] for f in by_method[m]) for m in ("consolidate", "unedited"))
    assert edited > plain


def test_a_record_that_cannot_be_taught_is_named_and_counts_as_unedited(
    workspace: npt.Workspace, tmp_path: Path
) -> None:
    methods = {"unedited": COMPARED["unedited"], "needy": needy("consolidate")}
    order = [RECORDS[1], RECORDS[0], RECORDS[2]]  # the one that cannot be taught comes first
    store = ResultStore(tmp_path, {}, Row)
    rows = evaluate(Evaluator(workspace.engine, COUNTERFACT), order, methods, store)
    assert [(r.record, r.refused) for r in rows[3:]] == [("b", "b is too long"), ("a", ""), ("c", "")]
    plain, refused = rows[0].figures, rows[3].figures
    timed = {"asking", "per_question"}
    assert {k: v for k, v in refused.items() if k not in timed} == {
        k: v for k, v in plain.items() if k not in (*timed, "seconds")
    }
    assert {"kl", "seconds"} <= rows[4].figures.keys()
    found = summarise(rows, COUNTERFACT)
    assert found["methods"]["needy"]["refused"] == {"b": "b is too long"}
    assert found["methods"]["needy"]["records"] == 3
    assert found["methods"]["unedited"]["refused"] == {}
    assert refusals(found) == [("needy", "b", "b is too long")]
    assert ResultStore(tmp_path, {}, Row).done == rows


def test_the_unedited_model_is_asked_once_and_its_answers_are_kept(workspace: npt.Workspace, tmp_path: Path) -> None:
    def evaluator() -> Evaluator:
        made = Evaluator(workspace.engine, ZSRE)
        made.keep_in(ResultStore(tmp_path, {}, Remembered, "reference.jsonl"))
        return made

    rows = evaluate(evaluator(), RECORDS[:2], {"unedited": COMPARED["unedited"]})
    assert len((tmp_path / "reference.jsonl").read_text().splitlines()) == 1 + 2
    again = evaluator()
    again.suite = replace(ZSRE, reference=no_reference)  # which would match no answer
    assert [r.figures["locality"] for r in evaluate(again, RECORDS[:2], {"unedited": COMPARED["unedited"]})] == [1, 1]
    assert [r.figures["locality"] for r in rows] == [1, 1]


def test_free_writing_is_asked_for(workspace: npt.Workspace) -> None:
    evaluator = Evaluator(workspace.engine, COUNTERFACT, generate=True)
    (row,) = evaluate(evaluator, RECORDS[:1], {"unedited": COMPARED["unedited"]})
    assert {"es_gen", "ps_gen", "entropy"} <= row.figures.keys()


def test_a_run_goes_on_where_it_was_cut_off(workspace: npt.Workspace, tmp_path: Path) -> None:
    folder, settings = tmp_path / "report", {"seed": 0}
    contenders = {m: COMPARED[m] for m in ("unedited", "token")}
    evaluator = Evaluator(workspace.engine, COUNTERFACT)
    rows = evaluate(evaluator, RECORDS, contenders, ResultStore(folder, settings, Row))
    kept = ResultStore(folder, settings, Row)
    assert kept.done == rows
    kept.file.write_bytes(kept.file.read_bytes()[:-5])  # killed while it wrote the last of six
    again = evaluate(evaluator, RECORDS, contenders, ResultStore(folder, settings, Row))
    assert again[:5] == rows[:5]  # seconds and all: read, not made
    assert again[5].figures["ES"] == rows[5].figures["ES"]
    assert ResultStore(folder, settings, Row).done == again
    with pytest.raises(npt.NPTError, match="holds the report of another run"):
        ResultStore(folder, {"seed": 1}, Row)
    with kept.file.open("a") as f:
        f.write("{}\n")
    with pytest.raises(npt.NPTError, match="is damaged"):
        ResultStore(folder, settings, Row)
