"""Where records come from, and what is wrong with those that are left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from neuroplastic import NPTError
from neuroplastic.evaluation import counterfact, zsre
from neuroplastic.evaluation.records import Record, choose, read_records

HOP = {"New Question": "What is spoken there?", "New Answer": " Spanish", "Recalled Relation": "(x)"}
FULL: dict[str, Any] = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "{} is in",
        "subject": "The Bridge",
        "target_new": {"str": "Madrid"},
        "target_true": {"str": "Oslo"},
    },
    "paraphrase_prompts": ["One finds it in", "It stands in"],
    "neighborhood_prompts": ["The Tower is in", "The Gate is in", "The Wall is in"],
    "generation_prompts": ["The Bridge's neighbours are", "The Bridge's neighbours are", "Under the Bridge"],
    "portability": HOP,
}
FLAT: dict[str, Any] = {
    "prompt": "The Bridge is in",
    "subject": "The Bridge",
    "target_new": "Madrid",
    "ground_truth": "Oslo",
    "rephrase_prompt": "One finds the Bridge in",
    "locality_prompt": "The Tower is in",
    "locality_ground_truth": "Rome",
}
ZSRE: dict[str, Any] = {
    "subject": "The Bridge",
    "src": "Where is The Bridge?",
    "rephrase": "In which city is The Bridge?",
    "alt": "Madrid",
    "answers": ["Oslo", "Christiania"],
    "loc": "nq question: where is the tower",
    "loc_ans": "Rome",
    "portability": HOP,
}


def written(path: Path, entries: Any) -> Path:
    path.write_text(json.dumps(entries))
    return path


def test_full_and_flat_records_of_counterfact(tmp_path: Path) -> None:
    flat = {k: v for k, v in FLAT.items() if k != "subject"}
    records, malformed = read_records(written(tmp_path / "r.json", [FULL, FLAT, flat]), counterfact.parse)
    assert not malformed
    near = tuple((f"The {x} is in", "Oslo") for x in ("Tower", "Gate", "Wall"))
    hop, texts = ((HOP["New Question"], "Spanish"),), ("The Bridge's neighbours are", "Under the Bridge")
    wordings = ("One finds it in", "It stands in")
    assert records[0] == Record("7", "The Bridge is in", "Madrid", "Oslo", wordings, near, "The Bridge", hop, texts)
    assert records[0].statement == "The Bridge is in Madrid."
    other = (("One finds the Bridge in",), (("The Tower is in", "Rome"),))
    assert records[1] == Record("1", "The Bridge is in", "Madrid", "Oslo", *other, "The Bridge")
    assert records[2] == Record("2", "The Bridge is in", "Madrid", "Oslo", *other)


def test_records_of_zsre(tmp_path: Path) -> None:
    (record,), malformed = read_records(written(tmp_path / "r.json", [ZSRE]), zsre.parse)
    assert not malformed
    assert record == Record(
        "0",
        "Where is The Bridge?",
        "Madrid",
        "Oslo",
        ("In which city is The Bridge?",),
        (("nq question: where is the tower", "Rome"),),
        "The Bridge",
        ((HOP["New Question"], "Spanish"),),
    )


@pytest.mark.parametrize("parse", [counterfact.parse, zsre.parse], ids=["counterfact", "zsre"])
def test_malformed_records_are_named_with_the_reason(tmp_path: Path, parse: Any) -> None:
    good = FULL if parse is counterfact.parse else ZSRE
    flat, question = FLAT | {"case_id": "f"}, "rephrase_prompt" if parse is counterfact.parse else "rephrase"
    flat = flat if parse is counterfact.parse else ZSRE | {"case_id": "f"}
    entries = [
        good,
        "no",
        good,
        {k: v for k, v in flat.items() if k != question},
        flat | {"case_id": "e", question: " "},
        flat | {"case_id": "n", question: 7},
        flat | {"case_id": "s", "subject": 7},
        flat | {"case_id": "p", "portability": {"New Question": "?"}},
        flat | {"case_id": "g"},
    ]
    records, malformed = read_records(written(tmp_path / "r.json", entries), parse)
    name = records[0].id
    # without ids of their own, entries are named by their number
    twice = {"7 (entry 2)": "its id is that of an earlier one"} if name == "7" else {}
    assert [r.id for r in records] == ([name, "g"] if twice else [name, "2", "g"])
    reasons = {
        "1": "not an object",
        "f": f"no '{question}'",
        "e": "a prompt or an answer is missing, empty or no text",
        "n": "a prompt or an answer is missing, empty or no text",
        "s": "the subject is no text",
        "p": "no 'New Answer'",
    }
    assert malformed == {**twice, **reasons}


def test_files_that_are_none(tmp_path: Path) -> None:
    for content, cause in (("{}", "is not a list"), ("[", "cannot read")):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(NPTError, match=cause):
            read_records(tmp_path / "bad.json", zsre.parse)
    with pytest.raises(NPTError, match="there is no file"):
        read_records(tmp_path / "none.json", zsre.parse)


def test_datasets_are_read_by_their_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="the extra `eval` is not installed")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "owned"
    folder.mkdir()
    (folder / "train.jsonl").write_text(json.dumps(ZSRE) + "\n" + json.dumps(ZSRE | {"src": None}) + "\n")
    records, malformed = read_records(str(folder), zsre.parse)
    assert (len(records), list(malformed)) == (1, ["1"])
    assert records[0].portability == ((HOP["New Question"], "Spanish"),)
    (folder / "test.jsonl").write_text(json.dumps(ZSRE) + "\n")
    assert len(read_records(f"{folder}:test", zsre.parse)[0]) == 1
    for source, cause in ((str(folder), "has several splits; name one"), (f"{folder}:dev", "has no split 'dev'")):
        with pytest.raises(NPTError, match=cause):
            read_records(source, zsre.parse)
    with pytest.raises(NPTError, match="cannot be loaded as a dataset"):
        read_records(str(tmp_path / "nothing"), zsre.parse)


def test_everything_is_asked_behind_what_is_told() -> None:
    record = Record("0", "A is", "x", "y", ("B is",), (("C is", "z"),), "A", (("D is", "w"),), ("E",))
    told = record.after("Fact. ")
    assert told == Record(
        "0", "Fact. A is", "x", "y", ("Fact. B is",), (("Fact. C is", "z"),), "A", (("Fact. D is", "w"),), ("Fact. E",)
    )
    assert record.after("") is record


def test_choosing_is_seeded() -> None:
    records = [Record(str(i), "A is", "x", "y", ("B is",), (("C is", "z"),)) for i in range(5)]
    assert choose(records, 2, 1) == choose(records, 3, 1)[:2]
    assert {r.id for r in choose(records, None, 0)} == {"0", "1", "2", "3", "4"}
    for given, limit, cause in ((records, 0, "limit must be at least 1"), ([], 1, "there is no record")):
        with pytest.raises(NPTError, match=cause):
            choose(given, limit, 0)


KNOW_EDIT: dict[str, Any] = {
    "subject": "The Bridge",
    "prompt": "Where is The Bridge?",
    "target_new": "Madrid",
    "ground_truth": ["Oslo", "Christiania"],
    "rephrase_prompt": "In which city is The Bridge?",
    "locality": {"Relation_Specificity": [{"prompt": "The Tower is in", "ground_truth": [["Rome", "Roma"]]}]},
    "portability": {
        "Reasoning": [{"prompt": "What is spoken there?", "ground_truth": ["Spanish"]}],
        "Subject_Aliasing": [{"prompt": "Where is the crossing?", "ground_truth": [["Madrid"]]}],
        "Logical_Generalization": [{"prompt": "Which bridge is in Madrid?", "ground_truth": [""]}],
    },
}
WIKI_BIO = {"concept": "Anna", "text": "Anna is", "labels": "a painter.", "locality": KNOW_EDIT["locality"]}


@pytest.mark.parametrize("parse", [counterfact.parse, zsre.parse], ids=["counterfact", "zsre"])
def test_records_of_know_edit(tmp_path: Path, parse: Any) -> None:
    without = {k: v for k, v in KNOW_EDIT.items() if k != "rephrase_prompt"}
    entries = [KNOW_EDIT, KNOW_EDIT | {"portability": None}, without, WIKI_BIO, KNOW_EDIT | {"ground_truth": []}]
    records, malformed = read_records(written(tmp_path / "r.json", entries), parse)
    hops = (("What is spoken there?", "Spanish"), ("Where is the crossing?", "Madrid"))
    expected = Record(
        "0",
        "Where is The Bridge?",
        "Madrid",
        "Oslo",
        ("In which city is The Bridge?",),
        (("The Tower is in", "Rome"),),
        "The Bridge",
        hops,
    )
    assert records == [expected, replace(expected, id="1", portability=())]
    assert {n: why.split(" (")[0] for n, why in malformed.items()} == {
        "2": "it has no rephrase_prompt to measure paraphrases with",
        "3": "it is one of WikiBio: a whole passage to be written, which this suite has no question for",
        "4": "an answer is an empty list, or no text",
    }
    with pytest.raises(NPTError, match="holds no record that this suite can use; record 0: it is one of WikiBio"):
        read_records(written(tmp_path / "w.json", [WIKI_BIO]), parse)


def test_answers_may_be_lists(tmp_path: Path) -> None:
    flat = FLAT | {"ground_truth": ["Oslo", "Christiania"], "target_new": ["Madrid"], "locality_ground_truth": ["Rome"]}
    (tmp_path / "b.json").write_bytes(b"\xef\xbb\xbf" + json.dumps([flat]).encode())  # and a byte order mark
    (plain,), _ = read_records(written(tmp_path / "a.json", [FLAT]), counterfact.parse)
    assert read_records(tmp_path / "b.json", counterfact.parse)[0] == [plain]


def test_a_statement_is_written_as_its_script_is() -> None:
    record = Record("0", "埃菲尔铁塔位于", "巴黎", "罗马", ("它在",), (("它在", "罗马"),))
    assert record.statement == "埃菲尔铁塔位于巴黎."
    assert replace(record, prompt="The Bridge is in ", new="Madrid").statement == "The Bridge is in Madrid."
