"""The figures of zsRE on hand-made numbers, and from a model."""

from __future__ import annotations

import pytest

from conftest import make_tokenizer
from families import tiny
from neuroplastic.evaluation.answer_scores import ask
from neuroplastic.evaluation.records import Record
from neuroplastic.evaluation.zsre import reference, score, unchanged

RECORD = Record(
    "0",
    "Where is the Bridge?",
    "the city of Madrid",
    "Oslo",
    ("In which city is it?", "Its city?"),
    (("nq question: where is the tower", "the city of Paris"), ("who", "a fox")),
    portability=(("What is spoken there?", "Spanish"),),
)


def test_what_is_unchanged() -> None:
    assert unchanged([[1, 2, 3, 4], [5]], [[1, 0, 3, 0], [5]]) == 0.75
    assert unchanged([[1]], [[2]]) == 0


@pytest.mark.parametrize("told", ["", "Fact: it is. "])
def test_the_score_of_a_record(told: str) -> None:
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer))
    (before,) = reference(model, tokenizer, [RECORD])
    assert before == ask(model, tokenizer, RECORD.neighbours).likeliest
    plain = score(model, tokenizer, RECORD, "", before)
    assert plain["locality"] == 1
    found = score(model, tokenizer, RECORD, told, before)

    def accuracy(prompt: str, answer: str) -> float:
        return ask(model, tokenizer, [(told + prompt, answer)]).accuracy.item()

    def kept(words: str) -> float:
        return unchanged(ask(model, tokenizer, [(words + q, a) for q, a in RECORD.neighbours]).likeliest, before)

    assert found == pytest.approx(
        {
            "edit": accuracy(RECORD.prompt, RECORD.new),
            "paraphrase": sum(accuracy(p, RECORD.new) for p in RECORD.paraphrases) / 2,
            "locality": kept(told),
            "locality_told": kept(f"{told}{RECORD.statement} "),
            "portability": accuracy(*RECORD.portability[0]),
        }
    )
