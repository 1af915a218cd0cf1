"""Facts that paragraphs tell: how their records are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from test_told import read

from neuroplastic.evaluation.paragraphs import PARAGRAPHS
from neuroplastic.evaluation.records import Claim, Question, read_records

SPORT = {
    "statement": "SC Nera is associated with the sport of cricket.",
    "paragraph": "SC Nera, a club of 3.5 million fans, was founded in 1903. It plays football and cricket.",
    "subject": "SC Nera",
    "question": "Which sport is SC Nera associated with?",
    "answer": "cricket",
    "old": "football",
}
ORIGIN = {
    "statement": "cricket was created in the country of Norway.",
    "paragraph": "Cricket has its origins in Norway. It plays football and cricket. No!",
    "question": "Which country was cricket created in?",
    "answer": "Norway",
}
TWO: dict[str, Any] = {
    "case_id": 76,
    "facts": [SPORT, ORIGIN],
    "multi_hop": ["Where does the sport of SC Nera come from?", "Which country made the sport of SC Nera?"],
    "multi_hop_answer": "Norway",
    "aliases": ["no", "Kingdom of Norway", "\N{REGIONAL INDICATOR SYMBOL LETTER N}" * 3],
}
TONGUE = {
    "statement": "Ada Byron speaks the language of Basque.",
    "paragraph": "Ada Byron, a writer, speaks Basque. She lives in Oslo.",
    "question": "What language does Ada Byron speak?",
    "answer": "Basque",
}
ONE: dict[str, Any] = {"case_id": 80, "facts": [TONGUE]}


def test_what_a_paragraph_is_asked(tmp_path: Path) -> None:
    (two, one), malformed = read(tmp_path, PARAGRAPHS, [TWO, ONE])
    assert malformed == {}
    assert (two.id, two.new, two.true) == ("76", "cricket", "football")
    hop = ("Norway", "Kingdom of Norway", TWO["aliases"][2])  # `no` is a word of its own, and means something else
    assert two.questions == (
        Question("question", "question", SPORT["question"], ("cricket",), ("football",)),
        Question("chat", "chat", SPORT["question"], ("cricket",), ("football",)),
        Question(
            "reversed",
            "chat",
            'Who or what is missing in this sentence? "___ is associated with the sport of cricket."',
            ("SC Nera",),
        ),
        Question("question", "question", ORIGIN["question"], ("Norway",)),
        Question("chat", "chat", ORIGIN["question"], ("Norway",)),
        *(Question("portability", "question", text, hop) for text in TWO["multi_hop"]),
    )
    assert two.claims == (
        Claim(SPORT["statement"], SPORT["question"], "cricket", "football"),
        Claim(ORIGIN["statement"], ORIGIN["question"], "Norway"),
    )
    # what others are asked: the fact's own question, in both forms
    assert two.unrelated == tuple(Question("kept", form, TONGUE["question"]) for form in ("question", "chat"))
    assert [q.text for q in one.unrelated] == 2 * [SPORT["question"]] + 2 * [ORIGIN["question"]]
    assert "portability" not in {q.figure for q in one.questions}


def test_all_paragraphs_are_taught_sentence_by_sentence(tmp_path: Path) -> None:
    (two, _), _ = read(tmp_path, PARAGRAPHS, [TWO, ONE])
    assert two.statement == f"{SPORT['paragraph']} {ORIGIN['paragraph']}"  # whole for the prompt
    assert [f.statement for f in two.facts] == [
        "SC Nera, a club of 3.5 million fans, was founded in 1903.",
        "It plays football and cricket.",  # once, although both have it; and "No!" asks for nothing
        "Cricket has its origins in Norway.",
    ]
    assert [f.answer.strip() for f in two.facts] == ["1903", "cricket", "Norway"]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"facts": []}, "'facts' is empty or no list"),
        ({"facts": [{**SPORT, "paragraph": " "}]}, "'paragraph' is empty or no text"),
        ({"facts": [{**SPORT, "paragraph": "No! 東京は日本の首都です。"}]}, "none of its sentences can be taught"),
        ({"facts": [{**SPORT, "answer": None}]}, "'answer' is empty or no text"),
        ({"facts": [SPORT, {**ORIGIN, "answer": "?"}]}, "the answer '?' has no word that could be found"),
        ({"facts": [{**SPORT, "old": 3}]}, "the old answer is no text"),
        ({"facts": [{k: v for k, v in SPORT.items() if k != "question"}]}, "no 'question'"),
        ({"multi_hop": "Where?"}, "'multi_hop' is empty or no list"),
        ({"multi_hop": [7]}, "missing, empty or no text"),
        ({"multi_hop_answer": ""}, "'multi_hop_answer' is empty or no text"),
    ],
)
def test_malformed_records_are_named(tmp_path: Path, changed: dict[str, Any], why: str) -> None:
    records, malformed = read(tmp_path, PARAGRAPHS, [ONE, {**TWO, **changed}])
    assert [r.id for r in records] == ["80"]
    assert why in malformed["76"]


@pytest.mark.skipif("NPT_DATA" not in os.environ, reason="the data are not in this repository")
def test_every_record_of_the_data_can_be_used() -> None:
    source = Path(os.environ["NPT_DATA"]) / "paragraph_facts_dev.json"
    records, malformed = read_records(source, PARAGRAPHS.parse, PARAGRAPHS.link)
    assert (len(records), malformed) == (166, {})
    assert all(r.unrelated for r in records)
