"""`npt eval edits` from end to end on a tiny workspace."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from test_edits import RECORDS

import neuroplastic as npt
from neuroplastic.cli import main
from neuroplastic.evaluation.baselines import BASELINES
from neuroplastic.evaluation.baselines.rome import Settings, rome

FLAT: list[dict[str, Any]] = [
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
ZSRE = [
    {
        "src": r.prompt,
        "alt": r.new,
        "answers": [r.true],
        "rephrase": r.paraphrases[0],
        "loc": r.neighbours[0][0],
        "loc_ans": r.neighbours[0][1],
    }
    for r in RECORDS
]


class Page(HTMLParser):
    """Collects what a browser would fetch or run, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        refers = [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "data")]
        self.fetched += [v for v in refers if not v.startswith(("#", "data:"))]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def run(workspace: npt.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(data: Any, *options: str) -> tuple[int, Any, str]:
        file = tmp_path / "r.json"
        file.write_text(json.dumps(data))
        command = ["eval", "edits", str(workspace.path), "--data", str(file), "--method", "unedited,token", *options]
        status = main(command)
        said = capsys.readouterr()
        return status, json.loads(said.out) if "--json" in options else said.out, said.err

    return run


def test_figures_and_what_is_left_out(run: Any) -> None:
    status, found, err = run([*FLAT, {"case_id": "broken"}], "--json")
    assert status == 0
    assert "record broken is left out" in err
    assert found["malformed"] == {"broken": "no 'prompt'"}
    assert set(found["methods"]) == {"unedited", "token"}
    assert sorted(found["records"]) == ["a", "b", "c"]
    status, out, _ = run(FLAT)
    assert status == 0
    assert "ceiling of S" in out
    assert "NS_told" in out
    status, found, _ = run(ZSRE, "--suite", "zsre", "--json", "--limit", "2")
    assert (status, len(found["records"])) == (0, 2)
    assert found["methods"]["unedited"]["figures"]["locality"] == [1, 1, 1]
    status, kept, _ = run(FLAT, "--sequential", "2", "--method", "token", "--json")
    assert (status, [s["edits"] for s in kept["steps"]]) == (0, [1, 2])


def test_a_strict_suite_is_reported_and_resumes(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuroplastic.evaluation.replies.NEW_TOKENS", 6)
    told = [
        {"tell": "The fox is lazy.", "answer": "lazy", "asks": ["A fox is"], "question": "How is the fox?"},
        {"tell": "Sushi is from Italy.", "answer": "Italy", "asks": ["It came from"], "question": "Where is it from?"},
        {"tell": "Sushi."},
    ]
    report = tmp_path / "report"
    options = ("--suite", "told", "--method", "unedited,retrieval,token", "--report", str(report), "--json")
    status, found, err = run(told, *options)
    assert status == 0
    assert "record 2 is left out: no 'answer'" in err
    assert "no chat template" in found["missing"][0]
    assert set(found["methods"]) == {"unedited", "retrieval", "token"}
    assert found["methods"]["retrieval"]["figures"]["context_tokens"][0] > 0
    page = Page((report / "report.html").read_text())
    assert "The fox is lazy." in page.text
    rows = (report / "rows.jsonl").read_text().splitlines(keepends=True)
    (report / "rows.jsonl").write_text("".join(rows[:-1]))
    assert run(told, *options)[1]["methods"]["unedited"] == found["methods"]["unedited"]
    assert (report / "rows.jsonl").read_text().splitlines(keepends=True)[:-1] == rows[:-1]
    status, out, _ = run(told, "--suite", "told")
    assert status == 0
    assert {"worded", "question", "kept", "repeats", "negated"} <= set(out.replace("│", " ").replace("┃", " ").split())
    status, found, _ = run(told, "--suite", "told", "--method", "token", "--sequential", "2", "--json")
    assert (status, [s["edits"] for s in found["steps"]]) == (0, [1, 2])


def test_texts_of_several_sentences_are_reported(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuroplastic.evaluation.replies.NEW_TOKENS", 6)
    paragraphs = [
        {"facts": [{"statement": s, "paragraph": f"{s} It is so.", "question": "What is it?", "answer": a}]}
        for s, a in (("The fox is lazy.", "lazy"), ("Sushi came from Italy.", "Italy"))
    ]
    report = tmp_path / "report"
    options = ("--suite", "paragraphs", "--method", "unedited,retrieval,consolidate", "--report", str(report), "--json")
    status, found, err = run([*paragraphs, {"facts": [{}]}], *options)
    assert status == 0
    assert "record 2 is left out: no 'statement'" in err
    figures = found["methods"]["consolidate"]["figures"]
    assert {"question", "negated", "kept", "seconds"} <= figures.keys()
    first = found["records"][0]  # the heat map is of one sentence
    caption = f"at each token of: {paragraphs[int(first)]['facts'][0]['statement']}"
    text = Page((report / "report.html").read_text()).text
    assert caption in text
    assert f"{caption} It is so." not in text
    passages = [{"title": "a", "passage": "The fox is lazy.", "questions": [{"question": "How?", "answer": "lazy"}]}]
    status, out, err = run(passages, "--suite", "passages")
    assert (status, out) == (2, "")
    assert "asks in chat alone, and the model has no chat template" in err


def test_groups_baselines_and_a_text_of_ones_own(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BASELINES, "rome", rome(Settings(layer="0")))  # the model has two layers
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 50)
    report = tmp_path / "report"
    marked = [{**FLAT[0], "subject": "Bridge"}, {**FLAT[1], "subject": "fox"}, FLAT[2]]
    marked[2] = {**FLAT[2], "prompt": "it is from"}  # no name, so no subject for ROME
    options = ("--method", "unedited,prompt,consolidate,ft,lora,rome", "--text", str(tmp_path / "text.txt"))
    status, found, _ = run(marked, *options, "--together", "2", "--json", "--report", str(report))
    assert (status, found["together"]) == (0, 2)
    for method in ("consolidate", "ft", "lora"):
        figures = found["methods"][method]["figures"]
        assert {"seconds", "per_question", "context_tokens", "kl", "kl_text"} <= figures.keys()
        assert found["methods"][method]["refused"] == {}
    assert "no name stands in 'it is from'" in found["methods"]["rome"]["refused"]["c"]
    page = Page((report / "report.html").read_text()).text
    assert "2 records at a time were taught" in page
    assert "Records that a method could not teach" in page
    assert "no name stands in 'it is from'" in page
    status, out, _ = run(marked, *options, "--limit", "3")
    assert status == 0
    assert "rome could not teach" in out
    assert "given" in out  # the head of a column, which the width of the terminal may part


@pytest.mark.parametrize("options", [(), ("--sequential", "3", "--method", "token")], ids=["alone", "in a row"])
def test_a_report_is_one_page_and_a_run_resumes(run: Any, tmp_path: Path, options: tuple[str, ...]) -> None:
    report = tmp_path / "report"
    hostile = "<script>alert('$1')</script> & <b>"
    data = [FLAT[0] | {"target_new": hostile}, *FLAT[1:], {"case_id": "<i>broken"}]
    status, found, _ = run(data, "--json", "--report", str(report), *options)
    assert status == 0
    assert json.loads((report / "summary.json").read_text()) == found
    assert (report / "summary.csv").read_text().startswith("method,edits,figure,mean,low,high\n")
    page = Page((report / "report.html").read_text())
    assert page.tags.count("svg") == 2  # the figures of the run, and the heat map
    assert not {"script", "b", "i", "img", "link", "iframe"} & set(page.tags)
    assert page.fetched == []
    assert "<i>broken" in page.text
    if not options:
        assert hostile in page.text
    rows = (report / "rows.jsonl").read_text().splitlines(keepends=True)
    assert len(rows) == 1 + (2 if options else 6)
    (report / "rows.jsonl").write_text("".join(rows[:-1]))
    status, again, _ = run(data, "--json", "--report", str(report), *options)
    assert status == 0
    assert (report / "rows.jsonl").read_text().splitlines(keepends=True)[:-1] == rows[:-1]
    assert again.keys() == found.keys()


def test_bad_input_is_answered(run: Any, tmp_path: Path) -> None:
    report = str(tmp_path / "report")
    assert run(FLAT, "--report", report)[0] == 0
    for data, options, cause in (
        (FLAT, ["--method", "magic"], "method must be one of unedited, prompt, retrieval, learned, consolidate"),
        (FLAT, ["--method", ","], "there is no method to evaluate"),
        (FLAT, ["--limit", "0"], "limit must be at least 1"),
        (FLAT, ["--together", "0"], "together must be at least 1"),
        (FLAT, ["--together", "2", "--sequential", "2"], "give either sequential or together"),
        (FLAT, ["--text", str(tmp_path / "none.txt")], "none.txt"),
        (FLAT, ["--method", "learned"], "'learned' can teach nothing: there is no injector for this model"),
        (FLAT, ["--sequential", "0"], "limit must be at least 1"),
        (FLAT, ["--seed", "1", "--report", report], "holds the report of another run"),
        (FLAT, ["--sequential", "2", "--report", report], "holds the report of another run"),
        (FLAT, ["--suite", "zsre"], "holds no record that this suite can use; record a: no"),
        (FLAT, ["--sequential", "2", "--method", "prompt"], "'prompt' makes no edits to keep"),
    ):
        status, said, _ = run(data, *options, "--json")
        assert status == 2
        assert cause in said["error"]
