"""The edit suite on a tiny workspace: alone, in a row, resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import neuroplastic as npt
from neuroplastic.cli import main
from neuroplastic.evaluation.contenders import contender
from neuroplastic.evaluation.counterfact import Score
from neuroplastic.evaluation.edits import Report, Row, as_csv, choose, evaluate, in_a_row, summarise
from neuroplastic.evaluation.records import Record

RECORDS = [
    Record("a", "The Bridge is in", "Madrid", "Paris", ("One finds it in",), (("The Tower is in", "Paris"),)),
    Record("b", "The fox is", "lazy", "quick", ("A fox is",), (("The dog is", "quick"), ("A dog is", "brown"))),
    Record("c", "Sushi is from", "Italy", "Japan", ("It came from",), (("Pizza is from", "Italy"),)),
]
FLAT = [
    {
        "case_id": r.id,
        "prompt": r.prompt,
        "target_new": r.new,
        "ground_truth": r.true,
        "rephrase_prompt": r.paraphrases[0],
        "locality_prompt": r.neighbours[0][0],
        "locality_ground_truth": r.neighbours[0][1],
    }
    for r in RECORDS
]
METHODS = ["unedited", "prompt", "token", "consolidate"]


def test_each_alone_and_nothing_left_behind(workspace: npt.Workspace) -> None:
    workspace.inject("Pizza is from Oslo.", name="own")
    weights = workspace.weights_hash()
    rows = evaluate(workspace.editor, RECORDS, {m: contender(m) for m in METHODS})
    assert [(r.method, r.record) for r in rows] == [(m, r.id) for m in METHODS for r in RECORDS]
    assert workspace.weights_hash() == weights
    assert [e.name for e in workspace.edits] == ["own"]
    assert all((r.seconds > 0) == (r.method in ("token", "consolidate")) for r in rows)
    edited, plain = ([r.score.em for r in rows if r.method == m] for m in ("consolidate", "unedited"))
    assert all(e > p for e, p in zip(edited, plain, strict=True))  # each alone makes its own answer likelier
    found = summarise(rows)
    assert found["records"] == ["a", "b", "c"]
    assert found["methods"]["token"]["records"] == 3
    assert 0 <= found["ceiling"] <= 1
    assert len(as_csv(found).splitlines()) == 1 + len(METHODS) * (10 + 2)


def test_in_a_row_they_stay(workspace: npt.Workspace) -> None:
    weights = workspace.weights_hash()
    steps = list(in_a_row(workspace.editor, RECORDS, "consolidate", contender("consolidate")))
    assert [s.edits for s in steps] == [1, 3]
    assert workspace.weights_hash() == weights
    alone = summarise(evaluate(workspace.editor, RECORDS[:1], {"consolidate": contender("consolidate")}))
    assert steps[0].figures == alone["methods"]["consolidate"]["figures"]
    assert steps[0].drift == pytest.approx(alone["methods"]["consolidate"]["drift"])
    with pytest.raises(npt.NPTError, match="'prompt' makes no edits to keep"):
        list(in_a_row(workspace.editor, RECORDS, "prompt", contender("prompt")))


def test_records_behind_the_statement(workspace: npt.Workspace) -> None:
    with contender("prompt")(workspace.editor, RECORDS[0]) as taught:
        told = RECORDS[0].behind(taught.told)
    assert told.prompt == "Fact: The Bridge is in Madrid.\nThe Bridge is in"
    assert told.neighbours == (("Fact: The Bridge is in Madrid.\nThe Tower is in", "Paris"),)


def test_choosing_is_seeded() -> None:
    assert choose(RECORDS, 2, 1) == choose(RECORDS, 3, 1)[:2]
    assert {r.id for r in choose(RECORDS, None, 0)} == {"a", "b", "c"}
    for records, limit, cause in ((RECORDS, 0, "limit must be at least 1"), ([], 1, "there is no record")):
        with pytest.raises(npt.NPTError, match=cause):
            choose(records, limit, 0)


def test_a_report_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    row = Row("token", "a", Score(*range(9)), 0.5, 0.25)
    report = Report(folder, {"seed": 0})
    report.keep(row)
    report.keep(row)
    cut = report.rows.read_bytes()[:-5]
    report.rows.write_bytes(cut)
    again = Report(folder, {"seed": 0})
    assert again.done == [row]
    again.keep(row)
    assert Report(folder, {"seed": 0}).done == [row, row]
    with pytest.raises(npt.NPTError, match="holds the report of another run"):
        Report(folder, {"seed": 1})
    with report.rows.open("a") as f:
        f.write("{}\n")
    with pytest.raises(npt.NPTError, match="is damaged"):
        Report(folder, {"seed": 0})


def test_the_command(workspace: npt.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, report = tmp_path / "r.json", tmp_path / "report"
    data.write_text(json.dumps([*FLAT, {"case_id": "broken"}]))
    command = ["eval", "edits", str(workspace.path), "--data", str(data), "--method", "unedited,token", "--json"]

    def run(*options: str) -> tuple[int, Any, str]:
        status = main([*command, *options])
        said = capsys.readouterr()
        return status, json.loads(said.out), said.err

    status, found, err = run("--report", str(report))
    assert status == 0
    assert "record broken is left out" in err
    assert set(found["malformed"]) == {"broken"}
    assert set(found["methods"]) == {"unedited", "token"}
    rows = (report / "rows.jsonl").read_text()
    assert len(rows.splitlines()) == 1 + 2 * 3
    (report / "rows.jsonl").write_text("".join(rows.splitlines(keepends=True)[:-2]))
    assert run("--report", str(report))[1]["methods"]["token"]["figures"] == found["methods"]["token"]["figures"]
    assert json.loads((report / "summary.json").read_text())["records"] == found["records"]
    assert (report / "summary.csv").read_text().startswith("method,figure,mean,low,high")
    status, kept, _ = run("--sequential", "2", "--method", "token")
    assert (status, [s["edits"] for s in kept["steps"]]) == (0, [1, 2])
    assert main([a for a in command if a != "--json"]) == 0
    assert "ceiling of S" in capsys.readouterr().out
    for options, cause in (
        (["--method", "magic"], "method must be one of unedited, prompt, consolidate, refine, token"),
        (["--sequential", "2", "--report", str(report)], "--report has no meaning with --sequential"),
        (["--limit", "0"], "limit must be at least 1"),
        (["--seed", "1", "--report", str(report)], "holds the report of another run"),
    ):
        status, said, _ = run(*options)
        assert status == 2
        assert cause in said["error"]
