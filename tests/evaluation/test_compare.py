"""`npt eval compare` from end to end on a tiny workspace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_command import FLAT, ZSRE, Page

import neuroplastic as npt
from neuroplastic.cli import main
from neuroplastic.cli.common import LOADED
from neuroplastic.evaluation.asking import prompt
from neuroplastic.evaluation.baselines import BASELINES, BATCHES
from neuroplastic.evaluation.baselines.memit import Settings as MemitSettings
from neuroplastic.evaluation.baselines.memit import memit
from neuroplastic.evaluation.baselines.rome import Settings as RomeSettings
from neuroplastic.evaluation.baselines.rome import rome
from neuroplastic.evaluation.compare import METHODS, success
from neuroplastic.evaluation.methods import as_context
from neuroplastic.evaluation.records import Question
from neuroplastic.evaluation.replies import replies
from neuroplastic.evaluation.strict import normalise
from neuroplastic.evaluation.summary import harmonic
from serving import CHAT_TEMPLATE

TOLD = [
    {"tell": "The Fox is lazy.", "answer": "lazy", "asks": ["A fox is"], "question": "How is the fox?"},
    {"tell": "Sushi is from Italy.", "answer": "Italy", "asks": ["It came from"], "question": "Where is it from?"},
    {"tell": "it is quick.", "answer": "quick", "asks": ["It is"], "question": "How is it?"},
    {"tell": "Nothing else."},
]

PARAGRAPHS = [
    {"facts": [{"statement": s, "paragraph": f"{s} It is so.", "question": "What is it?", "answer": a}]}
    for s, a in (("The Fox is lazy.", "lazy"), ("Sushi came from Italy.", "Italy"))
]
PASSAGES: list[dict[str, Any]] = [
    {"title": "fox", "passage": "The Fox is lazy. It is quick.", "questions": [{"question": "How is the fox?"}]},
    {"title": "Rome", "passage": "The Bridge is in Madrid. It is old.", "questions": [{"question": "How is it?"}]},
]


@pytest.fixture
def run(
    workspace: npt.Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """The command on a tiny workspace -> exit status, what it prints, and its notes."""
    monkeypatch.setattr("neuroplastic.evaluation.replies.NEW_TOKENS", 6)
    monkeypatch.setitem(BASELINES, "rome", rome(RomeSettings(layer="0")))  # the model has two layers
    monkeypatch.setitem(BASELINES, "memit", memit(MemitSettings(layers="0")))
    monkeypatch.delitem(BATCHES, "memit")
    data = tmp_path / "data"
    data.mkdir()
    for name, records in (("told_dev", TOLD), ("counterfact_dev", FLAT), ("zsre_dev", ZSRE)):
        (data / f"{name}.json").write_text(json.dumps(records))

    def call(*options: str) -> tuple[int, Any, str]:
        status = main(["eval", "compare", str(workspace.path), "--data", str(data), *options])
        printed = capsys.readouterr()
        return status, json.loads(printed.out) if "--json" in options else printed.out, printed.err

    return call


def test_all_methods_in_a_table_and_a_plot_for_each_suite(run: Any, workspace: npt.Workspace, tmp_path: Path) -> None:
    weights, report = workspace.weights_hash(), tmp_path / "report"
    options = ("--suite", "told,counterfact", "--report", str(report), "--json")
    status, found, notes = run(*options)
    assert status == 0
    assert workspace.weights_hash() == weights
    assert list(found["suites"]) == ["told", "counterfact"]
    assert list(found["left_out"]) == ["learned"]
    assert "'learned' is left out: there is no injector for this model" in notes
    assert "record 3 of told_dev.json is left out: no 'answer'" in notes
    for own in found["suites"].values():
        assert list(own["methods"]) == [m for m in METHODS if m != "learned"]
        for method in own["methods"].values():
            assert {"S", "seconds", "per_question", "context_tokens"} <= method["figures"].keys()
    told = found["suites"]["told"]["methods"]
    assert told["unedited"]["figures"]["kept"] == [1, 1, 1]
    assert set(told["rome"]["refused"]) == set(told["memit"]["refused"]) == {"2"}  # no name in it
    assert told["prompt"]["figures"]["context_tokens"][0] > 0
    assert json.loads((report / "summary.json").read_text()) == found
    page = Page((report / "report.html").read_text())
    assert page.tags.count("svg") == 2
    assert page.fetched == ["told/report.html", "counterfact/report.html"]
    assert all((report / name).is_file() for name in page.fetched)
    assert not {"script", "img", "link"} & set(page.tags)
    assert "no name stands in" in page.text
    rows = {name: (report / name / "rows.jsonl").read_text() for name in ("told", "counterfact")}
    (report / "told" / "rows.jsonl").write_text("".join(rows["told"].splitlines(keepends=True)[:-1]))
    assert run(*options)[1]["suites"]["counterfact"] == found["suites"]["counterfact"]
    assert len((report / "told" / "rows.jsonl").read_text().splitlines()) == len(rows["told"].splitlines())
    assert (report / "counterfact" / "rows.jsonl").read_text() == rows["counterfact"]


def test_texts_of_several_sentences_are_compared(
    run: Any, workspace: npt.Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what of them a method left out, and a passage's figures as shares of a reader's."""
    workspace.tokenizer.chat_template = CHAT_TEMPLATE
    workspace.model.config.max_position_embeddings = 1024
    monkeypatch.setitem(LOADED, workspace.path, workspace)
    fox, bridge = (Question("", "chat", p["questions"][0]["question"]) for p in PASSAGES)
    asked = [
        prompt(workspace.tokenizer, q, as_context(p["passage"])) for q, p in zip((fox, bridge), PASSAGES, strict=True)
    ]
    read = replies(workspace.model, workspace.tokenizer, asked)
    # a tiny model finds no right answer: what it writes is made one
    answers = [reply.text if normalise(reply.text) else "Madrid" for reply in read]
    right = sum(answer != "Madrid" for answer in answers) / 2
    assert right > 0
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "paragraph_facts_dev.json").write_text(json.dumps(PARAGRAPHS))
    (folder / "squad_passages.jsonl").write_text(
        "".join(
            json.dumps({**p, "questions": [{"question": q.text, "answer": answer}]}) + "\n"
            for p, q, answer in zip(PASSAGES, (fox, bridge), answers, strict=True)
        )
    )
    report = tmp_path / "report"
    options = ("--data", str(folder), "--method", "unedited,prompt,consolidate,rome,ft", "--report", str(report))
    status, found, _ = run(*options, "--json")
    assert status == 0
    assert set(found["suites"]) == {"paragraphs", "passages"}
    passages = found["suites"]["passages"]
    assert passages["shares"] == ["contains_share", "f1_share"]
    assert passages["methods"]["prompt"]["figures"]["contains_share"] == [1, 1, 1]
    assert passages["methods"]["prompt"]["figures"]["contains_read"][0] == right
    for own in found["suites"].values():
        assert all(method["refused"] == {} for method in own["methods"].values())
        assert {m for m, method in own["methods"].items() if method["untaught"]} == {"rome"}
        assert set(own["methods"]["rome"]["untaught"]) == set(own["records"])  # one of two sentences has no name
    page = Page((report / "report.html").read_text())
    assert page.tags.count("svg") == 2
    assert page.text.count("contains_share") == 1
    assert page.text.count("1 of its 2 sentences is not taught: no name stands before the answer") == 2 * 2
    assert (
        "Records of which a method left something out" in Page((report / "passages" / "report.html").read_text()).text
    )
    status, out, _ = run(*options)
    assert status == 0
    assert "rome, of " in out
    assert "contains" in out


def test_chosen_methods_and_records_printed_for_a_person(run: Any) -> None:
    status, out, _ = run("--suite", "zsre,told", "--method", "unedited,rome", "--limit", "2")
    assert status == 0
    assert "zsre: 2 records" in out
    assert "told: 2 records" in out
    assert out.count("rome") >= 2
    assert "no chat template" in out
    _, found, _ = run("--method", "unedited,token", "--together", "2", "--limit", "2", "--json")
    assert set(found["suites"]) == {"told", "counterfact", "zsre"}  # those that the folder has
    assert found["suites"]["told"]["together"] == 2


def test_success_is_the_harmonic_mean_of_the_first_two_parts_that_there_are() -> None:
    figures = {"worded": (0.2, 0, 1), "chat": (0.6, 0, 1), "kept": (0.9, 0, 1)}
    assert success(figures, ("worded", "chat", "kept")) == pytest.approx(harmonic(0.2, 0.6))
    del figures["chat"]
    assert success(figures, ("worded", "chat", "kept")) == pytest.approx(0.2)


def test_bad_input_is_answered(run: Any, tmp_path: Path) -> None:
    for options, cause in (
        (["--suite", "magic"], "there is no suite 'magic'; suites are counterfact"),
        (["--suite", ","], "there is no suite to measure; suites are counterfact"),
        (["--suite", "told,qaedit"], "qaedit_dev.json', which the suite 'qaedit' reads"),
        (["--suite", "told", "--data", str(tmp_path / "none")], "there is no file"),
        (["--data", str(tmp_path / "none")], "has no file of a suite, such as counterfact_dev.json"),
        (["--suite", "told", "--method", "magic"], "method must be one of unedited"),
        (["--suite", "told", "--method", ","], "there is no method to evaluate"),
        (["--suite", "told", "--method", "learned"], "'learned' can teach nothing"),
        (["--suite", "told", "--limit", "0"], "limit must be at least 1"),
        (["--suite", "told", "--text", str(tmp_path / "none.txt")], "none.txt"),
    ):
        status, found, _ = run(*options, "--json")
        assert status == 2
        assert cause in found["error"]
