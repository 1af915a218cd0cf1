"""`benchmarks/edits.py` and the search for settings, on a tiny workspace."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

import edits
import neuroplastic as npt
from baselines import search
from neuroplastic.editing.inject_options import Method
from neuroplastic.evaluation.baselines.memit import Settings, memit, teach_all
from neuroplastic.evaluation.baselines.rome import Settings as RomeSettings
from neuroplastic.evaluation.baselines.rome import rome
from neuroplastic.evaluation.baselines.values import ValueSearch
from neuroplastic.evaluation.edits import Row
from neuroplastic.evaluation.evaluator import Evaluator
from neuroplastic.evaluation.records import Record
from neuroplastic.evaluation.result_store import ResultStore
from neuroplastic.evaluation.suites import SUITES

RECORDS = [
    Record("a", "The Bridge is in", "Madrid", "Paris", ("One finds it in",), (("The Tower is in", "Paris"),), "Bridge"),
    Record("b", "The fox is", "lazy", "quick", ("A fox is",), (("The dog is", "quick"),), "fox"),
    Record("c", "Sushi is from", "Italy", "Japan", ("It came from",), (("Pizza is from", "Italy"),), "Sushi"),
]
FLAT = [
    {
        "case_id": r.id,
        "prompt": r.prompt,
        "target_new": r.new,
        "ground_truth": r.true,
        "subject": r.subject,
        "rephrase_prompt": r.paraphrases[0],
        "locality_prompt": r.neighbours[0][0],
        "locality_ground_truth": r.neighbours[0][1],
    }
    for r in RECORDS
]
QUICK = ValueSearch(steps=2, prefixes=1)
TINY = Settings(layers="0", search=QUICK)


@pytest.fixture
def run(
    workspace: npt.Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """The script on the tiny workspace, with baselines that fit it -> what it prints."""
    (tmp_path / "counterfact_dev.json").write_text(json.dumps(FLAT))
    monkeypatch.setenv("NPT_DATA", str(tmp_path))
    monkeypatch.setattr(edits, "BASELINES", {"rome": rome(RomeSettings(layer="0", search=QUICK)), "memit": memit(TINY)})
    monkeypatch.setattr(edits, "BATCHES", {"memit": lambda engine, records: teach_all(engine, records, TINY)})

    def call(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["edits.py", "--workspace", str(workspace.path), *options])
        edits.main()
        return capsys.readouterr().out

    return call


def test_one_table_of_ours_and_theirs(run: Any, workspace: npt.Workspace, tmp_path: Path) -> None:
    weights, report = workspace.weights_hash(), tmp_path / "report"
    found = json.loads(run("--report", str(report), "--json"))
    listed = {"unedited", "prompt", *get_args(Method), "rome", "memit"}
    assert set(found["methods"]) | set(found["left_out"]) == listed
    assert {"rome", "memit", "consolidate", "token"} <= set(found["methods"])
    assert len(found["records"]) == 3
    costs = {m: own["context_tokens"] for m, own in found["methods"].items()}
    assert costs.pop("prompt") > 5
    assert not any(costs.values())
    assert workspace.weights_hash() == weights
    rows = (report / "rows.jsonl").read_text()
    assert len(rows.splitlines()) == 1 + 3 * len(found["methods"])
    assert run("--report", str(report), "--method", "rome").count("rome") == 1
    assert (report / "rows.jsonl").read_text() == rows  # all of it was there already
    assert "report.html" in {p.name for p in report.iterdir()}
    shown = run("--method", "unedited,memit", "--limit", "2")
    assert "ceiling of S" in shown
    assert "memit" in shown


def test_many_kept(run: Any, workspace: npt.Workspace, tmp_path: Path) -> None:
    weights, report = workspace.weights_hash(), tmp_path / "report"
    named = ("--together", "2", "--method", "unedited,consolidate,rome,memit", "--report", str(report))
    found = json.loads(run(*named, "--json"))
    assert [(s["method"], s["edits"]) for s in found["steps"]] == [
        ("consolidate", 1),
        ("consolidate", 2),
        ("consolidate, one batch", 2),
        ("rome", 1),
        ("rome", 2),
        ("memit", 1),
        ("memit", 2),
        ("memit, one batch", 2),
    ]
    assert workspace.weights_hash() == weights
    assert json.loads(run(*named, "--json"))["steps"] == found["steps"]  # kept
    assert "one batch" in run(*named)


def test_bad_input_is_refused(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, cause in (
        (("--method", "magic"), "there is no method 'magic'"),
        (("--limit", "0"), "limit must be at least 1"),
        (("--together", "0"), "limit must be at least 1"),
        (("--data", str(tmp_path / "none.json")), "there is no file"),
    ):
        with pytest.raises(npt.NPTError, match=cause):
            run(*options)
    monkeypatch.delenv("NPT_DATA")
    with pytest.raises(npt.NPTError, match="give a CounterFact file with --data, or NPT_DATA"):
        run()


def test_a_method_that_a_workspace_cannot_do_is_named(
    workspace: npt.Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edits, "BASELINES", {"rome": rome(RomeSettings(layer="7"))})
    found, left_out = edits.chosen(workspace.engine, RECORDS[0], "")
    assert set(left_out) == {"learned", "rome"}
    assert "layer 7 is out of range" in left_out["rome"]
    assert "consolidate" in found
    assert set(edits.chosen(workspace.engine, RECORDS[0], "rome, token")[0]) == {"rome", "token"}


def test_the_search_goes_grid_by_grid_and_takes_the_best(workspace: npt.Workspace, tmp_path: Path) -> None:
    suite = SUITES["counterfact"]
    kept = ResultStore(tmp_path / "s", {}, Row)
    grids = ({"layer": ("0",)}, {"search.steps": (1, 4), "search.rate": (0.5, 1e-6)})
    start = RomeSettings(layer="1", search=QUICK)
    found = search.search(Evaluator(workspace.engine, suite), RECORDS, rome, start, grids, kept)
    chosen, table = found
    assert len(table) == 1 * 1 + 2 * 2
    assert chosen.layer == "0"
    assert chosen.search.prefixes == QUICK.prefixes
    best = search.described(chosen, ("layer", "search.steps", "search.rate"))
    assert table[best]["figures"]["S"][0] == max(own["figures"]["S"][0] for own in table.values())
    assert len(kept.file.read_text().splitlines()) == 1 + 3 * len(table)
    again = ResultStore(tmp_path / "s", {}, Row)
    assert search.search(Evaluator(workspace.engine, suite), RECORDS, rome, start, grids, again) == found


def test_axes_reach_into_settings() -> None:
    settings = search.changed(Settings(), {"search.clamp": 0.5, "layers": "1"})
    assert (settings.search.clamp, settings.layers) == (0.5, "1")
    assert settings.search.steps == Settings().search.steps
    assert search.described(settings, ["layers", "search.clamp"]) == "layers 1, search.clamp 0.5"


def test_the_search_needs_records_that_are_not_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    (tmp_path / "few.json").write_text(json.dumps(FLAT))
    monkeypatch.setattr(sys, "argv", ["search.py", "rome", "--data", str(tmp_path / "few.json")])
    with pytest.raises(npt.NPTError, match="some beside the first 100"):
        search.main()
