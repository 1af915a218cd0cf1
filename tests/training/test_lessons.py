"""Lessons: read from every kind of file, and drawn the same way wherever training begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import neuroplastic as npt
from conftest import make_tokenizer
from neuroplastic.text.tokens import start_token
from neuroplastic.training.lessons import Lessons, read_topics, sentences_of
from neuroplastic.training.questions import questions_for
from neuroplastic.training.settings import Variety

FLAT = {
    "prompt": "The mother tongue of Ann Lee is", "target_new": "Dutch", "ground_truth": "French", "subject": "Ann Lee",
    "rephrase_prompt": "Ann Lee speaks", "locality_prompt": "Bo is a native speaker of",
    "locality_ground_truth": "French",
}  # fmt: skip
FULL = {
    "requested_rewrite": {"prompt": "{} is in", "subject": "Big Ben", "target_new": {"str": "Rome"},
                          "target_true": {"str": "London"}},
    "paraphrase_prompts": ["One finds Big Ben in"], "neighborhood_prompts": ["Hyde Park is in", "Soho is in"],
}  # fmt: skip
ZSRE = {"subject": "Call", "src": "Who wrote Call?", "rephrase": "Call is by whom?", "alt": "Al Fa", "answers": ["B"],
        "loc": "nq question: who sang white wedding", "loc_ans": "Billy Idol"}  # fmt: skip


def write(path: Path, data: Any) -> Path:
    lines = "\n".join(json.dumps(d) for d in data) if path.suffix == ".jsonl" else json.dumps(data)
    path.write_text(lines, encoding="utf-8")
    return path


def test_published_records_of_every_form(tmp_path: Path) -> None:
    (flat, full, zsre), malformed = read_topics(write(tmp_path / "d.json", [FLAT, FULL, ZSRE]))
    assert not malformed
    assert flat.wordings[:2] == ("The mother tongue of Ann Lee is", "Ann Lee speaks")
    assert "What is the native language of Ann Lee?" in flat.wordings
    assert (flat.answer, flat.neighbours, flat.subject) == (
        "Dutch", (("Bo is a native speaker of", "French"),), "Ann Lee")  # fmt: skip
    assert full.wordings[:3] == ("Big Ben is in", "One finds Big Ben in", "Where is Big Ben?")
    assert full.neighbours == (("Hyde Park is in", "London"), ("Soho is in", "London"))
    assert zsre.wordings == ("Who wrote Call?", "Call is by whom?")
    assert zsre.neighbours == (("who sang white wedding", "Billy Idol"),)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    near = [{"question": "The Louvre is in", "answer": "Paris"}]
    (stated, asked), malformed = read_topics(
        write(
            tmp_path / "d.jsonl",
            [
                {"statement": "The Eiffel Tower is in Rome.", "neighbours": near},
                {"question": "Where is it?", "answer": "here", "wordings": ["Where?"], "subject": "it"},
                {"question": "Where is it?"},
                {"question": "", "answer": "x"},
            ],
        )
    )
    assert (stated.wordings, stated.answer, stated.subject) == (("The Eiffel Tower is in",), "Rome", "The Eiffel Tower")
    assert stated.neighbours == (("The Louvre is in", "Paris"),)
    assert (asked.wordings, asked.subject) == (("Where is it?", "Where?"), "it")
    assert malformed == {"3": "no 'answer'", "4": "the question is empty"}


def test_odd_entries_of_a_file_of_ones_own(tmp_path: Path) -> None:
    near = [{"question": "The Louvre is in", "answer": " Paris "}]
    topics, malformed = read_topics(
        write(
            tmp_path / "d.jsonl",
            [
                {"statement": "Miso soup comes from the north of Japan.", "answer": "the north of Japan"},
                {"question": "Where is Big Ben?", "answer": "Rome ", "subject": " ", "neighbours": near},
                {"question": "Where is Big Ben?", "answer": "Rome", "subject": "Soho", "neighbours": near},
                {"statement": "Miso soup comes from Japan.", "answer": "Peru"},
                {"question": 3, "answer": "Peru"},
            ],
        )
    )
    assert topics[0].wordings == ("Miso soup comes from",)
    assert topics[0].answer == "the north of Japan"
    assert [t.subject for t in topics[1:]] == [None, None]
    assert {t.neighbours for t in topics[1:]} == {(("The Louvre is in", "Paris"),)}
    assert sorted(malformed) == ["4", "5"]
    assert "does not end with the answer" in malformed["4"]


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("d.json", "{", "is not JSON"),
        ("d.json", "{}", "not a list of records"),
        ("d.json", "[]", "holds no fact"),
        ("d.json", '[{"prompt": 1}]', "holds no fact to learn from: entry 1: no"),
        ("d.jsonl", "not json", "holds no fact to learn from: entry 1"),
    ],
)
def test_files_that_cannot_be_learnt_from_are_named(tmp_path: Path, name: str, content: str, match: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(npt.NPTError, match=match):
        read_topics(tmp_path / name)


def lessons(tmp_path: Path, variety: Variety, seed: int = 0) -> Lessons:
    names = [f"Person {i}" for i in range(20)]
    flat = [json.loads(json.dumps(FLAT).replace("Ann Lee", n)) for n in names]
    topics, _ = read_topics(write(tmp_path / "d.json", flat))
    return Lessons(topics, make_tokenizer(), ["It rained."], variety, seed, 64)


def test_a_batch_is_a_function_of_seed_and_number(tmp_path: Path) -> None:
    drawn = lessons(tmp_path, Variety())
    first = [drawn.batch(i, 4) for i in range(8)]
    again = lessons(tmp_path, Variety())
    assert [again.batch(i, 4) for i in (7, 0, 3)] == [first[7], first[0], first[3]]
    assert lessons(tmp_path, Variety(), seed=1).batch(0, 4) != first[0]
    assert sorted(x.subject or "" for b in first[:5] for x in b) == sorted(f"Person {i}" for i in range(20))
    assert len({x.subject for x in drawn.batch(3, 20)}) == 20


def test_variety_does_what_it_says(tmp_path: Path) -> None:
    plain = lessons(tmp_path, Variety(0, 0, 0, 0))
    for lesson in plain.batch(0, 20):
        assert lesson.answer == "Dutch"
        assert lesson.statement == lesson.asked[0] == f"The mother tongue of {lesson.subject} is"
        assert lesson.asked[1] != lesson.statement
        assert lesson.neighbour == ("Bo is a native speaker of", "French")
    assert all(x.statement.endswith("?") for x in lessons(tmp_path, Variety(0, 1, 0, 0)).batch(0, 20))
    assert all(x.statement.startswith("It rained. The") for x in lessons(tmp_path, Variety(0, 0, 0, 1)).batch(0, 20))
    assert len({x.answer for x in lessons(tmp_path, Variety(1, 0, 0, 0)).batch(0, 20)}) > 3


def test_fewer_subjects_than_a_batch_is_long_make_a_shorter_batch(tmp_path: Path) -> None:
    drawn = lessons(tmp_path, Variety())
    again = Lessons([*drawn.topics, *drawn.topics], drawn.tokenizer, [], Variety(), 0, 64)
    assert len(again.batch(0, 30)) == 20


def test_what_is_dressed_too_long_is_told_plainly(tmp_path: Path) -> None:
    drawn = lessons(tmp_path, Variety(0, 0, 0, 1))
    plain = f"The mother tongue of {drawn.topics[0].subject} is"
    longest = 1 + len(drawn.tokenizer.encode(f"{plain} Dutch"))
    short = Lessons(drawn.topics, drawn.tokenizer, ["It rained."], Variety(0, 0, 0, 1), 0, longest)
    for lesson in short.batch(0, 10):
        assert lesson.statement == lesson.asked[0] == f"The mother tongue of {lesson.subject} is"


def test_a_chat_is_opened_once(tmp_path: Path) -> None:
    drawn = lessons(tmp_path, Variety())
    tokenizer = make_tokenizer()
    opening = tokenizer.decode([start_token(tokenizer)])
    tokenizer.chat_template = opening + "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}[assistant] "
    told = Lessons(drawn.topics, tokenizer, [], Variety(0, 0, 1, 0), 0, 64).batch(0, 4)
    assert all(x.statement == f"[user] The mother tongue of {x.subject} is [assistant]" for x in told)


def test_questions_mean_what_the_prompt_asks() -> None:
    assert questions_for("Danielle Darrieux died in", "Danielle Darrieux")[0] == "Where did Danielle Darrieux die?"
    assert questions_for("Vueling is a product of", "Vueling")[0] == "Who created Vueling?"
    assert questions_for("Something nobody asks about X", "X") == []


def test_short_sentences_are_found() -> None:
    assert sentences_of(["It was late. Then more.", "no end to this one", "x" * 200, "ab"]) == ["no end to this one."]
    assert sentences_of(["It was rather late. Then more."]) == ["It was rather late."]
