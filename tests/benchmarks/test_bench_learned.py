"""`benchmarks/learned.py` on a tiny workspace: many edits in place, and a run that goes on from its report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from test_bench_edits import FLAT

import learned
import neuroplastic as npt
from injectors import LOOSE, with_injector
from neuroplastic.editing.engine import EditableModel
from neuroplastic.editing.methods import default_methods
from neuroplastic.editing.methods.joint_batch import JointBatch
from neuroplastic.editing.methods.learned import Learned

ZSRE = [
    {"src": "Where is the dog?", "rephrase": "The dog is where?", "alt": "Madrid", "answers": ["Paris"]}
    | {"subject": "dog", "loc": "Who is lazy?", "loc_ans": "the fox"}
]


@pytest.fixture
def run(
    workspace: npt.Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """The script, with these options -> what it prints as JSON."""
    (tmp_path / "counterfact_dev.json").write_text(json.dumps(FLAT))
    (tmp_path / "zsre_dev.json").write_text(json.dumps(ZSRE))
    (tmp_path / "general_text.jsonl").write_text(json.dumps({"text": "the quick brown fox jumps " * 40}))
    monkeypatch.setenv("NPT_DATA", str(tmp_path))
    small = {**default_methods(), "learned": Learned(joint_batch=JointBatch(min_facts=3, min_steps=3), gating=LOOSE)}
    monkeypatch.setattr("neuroplastic.editing.engine.default_methods", lambda: dict(small))
    ws = with_injector(workspace)

    def call(*options: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["learned.py", "--workspace", str(ws.path), *options, "--json"])
        learned.main()
        return json.loads(capsys.readouterr().out)

    return call


def test_many_edits_in_place(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--skip", "alone,rome,zsre,time", "--asked", "2", "--report", str(tmp_path / "report"))
    (one,) = {c["edits"] for c in run(*options, "--kept", "1")["kept"]}
    assert one == 1
    report = tmp_path / "report" / "kept" / "rows.jsonl"
    assert len(report.read_text().splitlines()) == 1 + 3
    found = run(*options, "--kept", "1,4")["kept"]
    assert [(c["edits"], c["how"]) for c in found] == [(n, how) for n in (1, 4) for how in learned.HOW]
    for c in found:
        if c["how"] != "gated":  # whose units may be open nowhere in these texts
            changed = c["how"] == "ungated"
            assert (c["kl"] > 0) == (c["read_kl"] > 0) == changed
            assert (c["perplexity"] != 0) == (c["read_perplexity"] != 0) == changed
    rows = report.read_text()
    monkeypatch.setattr(EditableModel, "make", None)  # nothing is taught again
    assert run(*options, "--kept", "4,1")["kept"] == [*found[3:], *found[:3]]
    assert report.read_text() == rows


def test_edits_in_place_that_nobody_asks_are_refused(run: Any) -> None:
    with pytest.raises(npt.NPTError, match="give some, or --skip kept"):
        run("--asked", "0")
