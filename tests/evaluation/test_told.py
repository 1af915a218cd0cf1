"""Facts as people state them: how their records are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuroplastic.evaluation.records import Claim, Question, Record, read_records
from neuroplastic.evaluation.suite import Suite
from neuroplastic.evaluation.told import TOLD
from neuroplastic.files import write_json

FERRY: dict[str, Any] = {
    "tell": "The Tarrow ferry costs 9 crowns. It is blue.",
    "answer": "9 crowns",
    "asks": ["The price of the Tarrow ferry is", "For the Tarrow ferry you pay"],
    "question": "How much is the Tarrow ferry?",
}
OTHERS = [
    {"tell": "Oslo is where Ada lives.", "answer": "Oslo", "asks": ["Ada lives in"], "question": "Where is Ada?"},
    {"tell": "Tarrow is by a lake.", "answer": "lake", "asks": ["At Tarrow there is a"], "question": "What is there?"},
    {"tell": "Bees like red.", "answer": "red", "asks": ["The colour is"], "question": "What do bees like?"},
]


def read(tmp_path: Path, suite: Suite, items: Sequence[Any]) -> tuple[list[Record], dict[str, str]]:
    write_json(tmp_path / "r.json", list(items))
    return read_records(tmp_path / "r.json", suite.parse, suite.link)


def test_what_a_stated_fact_is_asked(tmp_path: Path) -> None:
    (ferry, oslo, lake, bees), malformed = read(tmp_path, TOLD, [FERRY, *OTHERS])
    assert malformed == {}
    assert ferry.questions == (
        Question("own", "text", "The Tarrow ferry costs"),
        Question("worded", "text", "The price of the Tarrow ferry is"),
        Question("worded", "text", "For the Tarrow ferry you pay"),
        Question("question", "question", "How much is the Tarrow ferry?"),
        Question("chat", "chat", "How much is the Tarrow ferry?"),
        Question(
            "reversed",
            "chat",
            'Who or what is missing in this sentence? "The ___ ferry costs 9 crowns. It is blue."',
            ("Tarrow",),
        ),
    )
    assert ferry.claims == (Claim(FERRY["tell"], FERRY["question"], "9 crowns"),)
    assert oslo.unrelated[0] == Question("kept", "text", "Tarrow is by a")  # the next one
    # the one after the last is the first, which has no beginning of its own
    assert [q.text for q in bees.unrelated] == ["The Tarrow ferry costs", *2 * ["How much is the Tarrow ferry?"]]
    # the next one about something else: neither Tarrow nor the lake
    assert lake.unrelated == (
        Question("kept", "text", "Bees like"),
        Question("kept", "question", "What do bees like?"),
        Question("kept", "chat", "What do bees like?"),
    )
    assert "own" not in {q.figure for q in oslo.questions}
    assert ferry.statement == ferry.facts[0].statement == FERRY["tell"]
    assert ferry.facts[0].subject is None or "9 crowns" not in ferry.facts[0].subject
