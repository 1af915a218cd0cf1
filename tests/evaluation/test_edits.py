"""The edit suites on a tiny workspace, one edit at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

import neuroplastic as npt
from neuroplastic.evaluation.counterfact import COUNTERFACT
from neuroplastic.evaluation.edits import Row, evaluate, summarise
from neuroplastic.evaluation.evaluator import Evaluator
from neuroplastic.evaluation.methods import editing_method
from neuroplastic.evaluation.records import Record
from neuroplastic.evaluation.report import as_csv
from neuroplastic.evaluation.result_store import ResultStore
from neuroplastic.evaluation.summary import harmonic
from neuroplastic.evaluation.zsre import ZSRE

RECORDS = [
    Record("a", "The Bridge is in", "Madrid", "Paris", ("One finds it in",), (("The Tower is in", "Paris"),)),
    Record("b", "The fox is", "lazy", "quick", ("A fox is",), (("The dog is", "quick"), ("A dog is", "brown"))),
    Record("c", "Sushi is from", "Italy", "Japan", ("It came from",), (("Pizza is from", "Italy"),)),
]
METHODS = ["unedited", "prompt", "token", "consolidate"]
CONTENDERS = {m: editing_method(m) for m in METHODS}
COSTS = {"seconds", "perplexity", "kl"}


def test_each_alone_and_nothing_left_behind(workspace: npt.Workspace) -> None:
    workspace.inject("Pizza is from Oslo.", name="own")
    weights = workspace.weights_hash()
    examination = Evaluator(workspace.engine, COUNTERFACT)
    rows = evaluate(examination, RECORDS, CONTENDERS)
    assert [(r.method, r.record) for r in rows] == [(m, r.id) for m in METHODS for r in RECORDS]
    assert workspace.weights_hash() == weights
    assert [e.name for e in workspace.edits] == ["own"]
    for row in rows:
        assert (COSTS & row.figures.keys()) == (COSTS if row.method in ("token", "consolidate") else set())
        assert row.figures["asking"] > 0
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
    rows = evaluate(Evaluator(workspace.engine, ZSRE), RECORDS[:2], CONTENDERS)
    by_method = {m: [r.figures for r in rows if r.method == m] for m in METHODS}
    assert all(f["locality"] == 1 for f in by_method["unedited"])
    engine = workspace.engine
    for method in ("prompt", "consolidate"):  # taught and asked by hand
        examination = Evaluator(engine, ZSRE)
        examination.remember(RECORDS[:1])
        with CONTENDERS[method](engine, RECORDS[0]) as taught:
            assert taught.context == ("Fact: The Bridge is in Madrid.\n" if method == "prompt" else "")
            asked = examination.ask(RECORDS[0], taught.context)
        del asked["asking"]
        assert asked == pytest.approx({k: by_method[method][0][k] for k in asked})
    edited, plain = (sum(f["edit"] for f in by_method[m]) for m in ("consolidate", "unedited"))
    assert edited > plain


def test_free_writing_is_asked_for(workspace: npt.Workspace) -> None:
    examination = Evaluator(workspace.engine, COUNTERFACT, generate=True)
    (row,) = evaluate(examination, RECORDS[:1], {"unedited": CONTENDERS["unedited"]})
    assert {"es_gen", "ps_gen", "entropy"} <= row.figures.keys()


def test_a_run_goes_on_where_it_was_cut_off(workspace: npt.Workspace, tmp_path: Path) -> None:
    folder, settings = tmp_path / "report", {"seed": 0}
    contenders = {m: CONTENDERS[m] for m in ("unedited", "token")}
    examination = Evaluator(workspace.engine, COUNTERFACT)
    rows = evaluate(examination, RECORDS, contenders, ResultStore(folder, settings, Row))
    kept = ResultStore(folder, settings, Row)
    assert kept.done == rows
    kept.file.write_bytes(kept.file.read_bytes()[:-5])  # killed while it wrote the last of six
    again = evaluate(examination, RECORDS, contenders, ResultStore(folder, settings, Row))
    assert again[:5] == rows[:5]  # seconds and all: read, not made
    assert again[5].figures["ES"] == rows[5].figures["ES"]
    assert ResultStore(folder, settings, Row).done == again
    with pytest.raises(npt.NPTError, match="holds the report of another run"):
        ResultStore(folder, {"seed": 1}, Row)
    with kept.file.open("a") as f:
        f.write("{}\n")
    with pytest.raises(npt.NPTError, match="is damaged"):
        ResultStore(folder, settings, Row)
