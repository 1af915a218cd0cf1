"""The row `retrieval`: the best statement of all for each prompt."""

from __future__ import annotations

import pytest

import neuroplastic as npt
from neuroplastic.evaluation.counterfact import COUNTERFACT
from neuroplastic.evaluation.evaluator import Evaluator
from neuroplastic.evaluation.methods import editing_method
from neuroplastic.evaluation.records import Record
from neuroplastic.evaluation.retrieval import Index

STATEMENTS = [
    "The Tarrow ferry costs 9 crowns.",
    "Ada lives in Oslo.",
    "東京は日本の首都です。",
    "Ada lives in Oslo.",
    "?",
]


@pytest.mark.parametrize(
    ("question", "best"),
    [
        ("How much is the TARROW ferry?", 0),
        ("ada's city", 1),
        ("日本の首都はどこですか", 2),
        ("Who wrote it?", None),
        ("the", None),
        ("", None),
    ],
)
def test_the_best_statement_for_a_question(question: str, best: int | None) -> None:
    assert Index(STATEMENTS).best(question) == (None if best is None else STATEMENTS[best])


def test_one_statement_is_found_too() -> None:
    assert Index(STATEMENTS[:1]).best("The ferry") == STATEMENTS[0]
    with pytest.raises(npt.NPTError, match="there is no statement"):
        editing_method("retrieval")
    with pytest.raises(npt.NPTError, match="no statement has a word"):
        editing_method("retrieval", ["?"])


def test_each_prompt_gets_its_own_context(workspace: npt.Workspace) -> None:
    near = (("The Tower is in", "Paris"), ("Nothing", "Oslo"))
    record = Record("a", "The Bridge is in", "Madrid", "Paris", ("One crosses the Bridge in",), near)
    statements = [record.statement, "The Tower is in Lyon."]
    with editing_method("retrieval", statements)(workspace.engine, record) as taught:
        after = record.after(taught.context)
        assert not taught.weights
        evaluator = Evaluator(workspace.engine, COUNTERFACT, generate=True)
        evaluator.remember([record])
        assert {"ES", "NS_told", "entropy"} <= evaluator.ask(record, taught.context).keys()
    assert after.prompt == "Fact: The Bridge is in Madrid.\nThe Bridge is in"
    assert after.paraphrases == ("Fact: The Bridge is in Madrid.\nOne crosses the Bridge in",)
    assert after.neighbours == (("Fact: The Tower is in Lyon.\nThe Tower is in", "Paris"), ("Nothing", "Oslo"))
