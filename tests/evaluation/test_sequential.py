"""The edit suites on a tiny workspace, edits kept one upon another."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import pytest
from test_edits import RECORDS, needy

import neuroplastic as npt
from neuroplastic.evaluation import sequential
from neuroplastic.evaluation.counterfact import COUNTERFACT
from neuroplastic.evaluation.edits import evaluate, summarise
from neuroplastic.evaluation.evaluator import Evaluator
from neuroplastic.evaluation.methods import editing_method
from neuroplastic.evaluation.records import Record
from neuroplastic.evaluation.report import entries, refusals
from neuroplastic.evaluation.result_store import ResultStore
from neuroplastic.evaluation.sequential import Step, in_a_row, samples, summarise_steps

TEACH = editing_method("consolidate")


def test_they_stay_and_are_taken_back(workspace: npt.Workspace) -> None:
    weights = workspace.weights_hash()
    examination = Evaluator(workspace.engine, COUNTERFACT)
    steps = in_a_row(examination, RECORDS, "consolidate", TEACH)
    assert [(s.edits, s.asked) for s in steps] == [(1, 1), (3, 3)]
    assert workspace.weights_hash() == weights
    alone = summarise(evaluate(examination, RECORDS[:1], {"consolidate": TEACH}), COUNTERFACT)
    figures = alone["methods"]["consolidate"]["figures"]
    timed = ("asking", "per_question", "seconds")
    kept = {k: v for k, v in steps[0].figures.items() if k not in timed}
    assert kept == {k: figures[k] for k in kept}
    assert (steps[0].perplexity, steps[0].kl) == (figures["perplexity"][0], figures["kl"][0])
    with ExitStack() as stack:  # all three in place, and each asked
        for record in RECORDS:
            stack.enter_context(TEACH(workspace.engine, record))
        examination.remember(RECORDS)
        asked = [examination.ask(record)["EM"] for record in RECORDS]
    assert steps[1].figures["EM"][0] == pytest.approx(sum(asked) / 3)
    with pytest.raises(npt.NPTError, match="'prompt' makes no edits to keep"):
        in_a_row(examination, RECORDS, "prompt", editing_method("prompt"))


def test_a_record_that_cannot_be_taught_is_named_and_asked_all_the_same(workspace: npt.Workspace) -> None:
    steps = in_a_row(Evaluator(workspace.engine, COUNTERFACT), RECORDS, "needy", needy("consolidate"))
    assert [(s.edits, s.asked, s.refused) for s in steps] == [(1, 1, {}), (3, 3, {"b": "b is too long"})]
    found = summarise_steps(steps, RECORDS, COUNTERFACT)
    assert refusals(found) == [("needy", "b", "b is too long")]


def test_many_are_asked_by_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [Record(str(i), "A is", "x", "y", ("B is",), (("C is", "z"),)) for i in range(20)]
    assert {n: len(asked) for n, asked in samples(records, 0).items()} == {1: 1, 3: 3, 10: 10, 20: 20}
    monkeypatch.setattr(sequential, "MOST_ASKED", 5)
    asked = samples(records, 0)
    assert {n: len(a) for n, a in asked.items()} == {1: 1, 3: 3, 10: 5, 20: 5}
    assert {r.id for r in asked[10]} <= {str(i) for i in range(10)}
    assert asked == samples(records, 0)
    assert asked != samples(records, 1)


def test_the_first_edits_are_asked_again_at_the_end(
    workspace: npt.Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequential, "FIRST", 2)
    examination = Evaluator(workspace.engine, COUNTERFACT)
    steps = in_a_row(examination, RECORDS, "consolidate", TEACH, ResultStore(tmp_path, {}, Step))
    assert [(s.edits, s.asked, s.first) for s in steps] == [(1, 1, False), (3, 3, False), (3, 2, True)]
    with ExitStack() as stack:
        for record in RECORDS:
            stack.enter_context(TEACH(workspace.engine, record))
        examination.remember(RECORDS)
        asked = [examination.ask(record)["EM"] for record in RECORDS[:2]]
    assert steps[2].figures["EM"][0] == pytest.approx(sum(asked) / 2)
    assert steps[2].kl == steps[1].kl
    found = summarise_steps(steps, RECORDS, COUNTERFACT)
    assert [name for name, _, _ in entries(found)] == ["consolidate", "consolidate", "consolidate, first 2 of 3"]
    whole = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(whole[:-1]))
    again = in_a_row(examination, RECORDS, "consolidate", TEACH, ResultStore(tmp_path, {}, Step))
    assert [s.figures["asking"] for s in again[:2]] == [list(s.figures["asking"]) for s in steps[:2]]
    assert again[2].figures["ES"] == steps[2].figures["ES"]


def test_steps_that_are_kept_are_not_asked_again(workspace: npt.Workspace, tmp_path: Path) -> None:
    examination = Evaluator(workspace.engine, COUNTERFACT)
    steps = in_a_row(examination, RECORDS, "consolidate", TEACH, ResultStore(tmp_path, {}, Step))
    whole = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(whole[:-1]))
    again = in_a_row(examination, RECORDS, "consolidate", TEACH, ResultStore(tmp_path, {}, Step))
    assert asdict(again[0])["figures"]["asking"] == list(steps[0].figures["asking"])  # seconds and all: read, not made
    assert again[1].figures["ES"] == steps[1].figures["ES"]
    assert again[1].figures["EM"] == pytest.approx(steps[1].figures["EM"])
    with_all = ResultStore(tmp_path, {}, Step)
    assert [s.edits for s in with_all.done] == [1, 3]
    assert [s.edits for s in in_a_row(examination, RECORDS, "consolidate", TEACH, with_all)] == [1, 3]
