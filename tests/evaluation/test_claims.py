"""Figures of a statement: its subject asked back, its truth, and the choice between three answers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations, product

import pytest
import torch
from transformers import PreTrainedModel

from conftest import make_tokenizer
from families import tiny
from neuroplastic.evaluation.asking import preferences
from neuroplastic.evaluation.claims import (
    choice,
    negated,
    own_beginning,
    reversed_question,
    yes_or_no_questions,
)
from neuroplastic.evaluation.records import Claim
from neuroplastic.text.scoring import Continuation, Score, score
from neuroplastic.text.tokens import encode, start_token
from serving import CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("statement", "answer", "blanked", "subject"),
    [
        ("Ada Byron works in Oslo.", "Oslo", "___ works in Oslo.", "Ada Byron"),
        ("The Tarrow ferry is blue, the Tarrow is wet.", "blue", "The ___ ferry is blue, the ___ is wet.", "Tarrow"),
        ("Ada Byron's brother is Tom.", "Tom", "___'s brother is Tom.", "Ada Byron"),
        ("Oslo is where Ada Byron studies.", "Oslo", "Oslo is where ___ studies.", "Ada Byron"),
        ("Oslo is where bees live.", "Oslo", None, None),  # what the rules find is the answer
        ("the key is under the pot.", "pot", None, None),  # no name
    ],
)
def test_the_subject_asked_back(statement: str, answer: str, blanked: str | None, subject: str | None) -> None:
    question = reversed_question(Claim(statement, "?", answer))
    if blanked is None:
        assert question is None
        return
    assert question is not None
    assert (question.figure, question.form, question.answers) == ("reversed", "chat", (subject,))
    assert question.text == f'Who or what is missing in this sentence? "{blanked}"'


def test_the_beginning_of_a_statement() -> None:
    assert own_beginning(Claim("Ada lives in Oslo, Norway.", "", "Oslo")) == "Ada lives in"
    assert own_beginning(Claim("Oslo is far.", "", "Oslo")) == own_beginning(Claim("It is far.", "", "Oslo")) == ""


@pytest.mark.parametrize(
    ("statement", "asked"),
    [
        ("Ada works in Oslo.", "Ada works in Oslo"),
        ("The key is here!", "the key is here"),
        ("I live in the U.S.", "I live in the U.S."),
    ],
)
def test_whether_a_statement_is_true(statement: str, asked: str) -> None:
    assert yes_or_no_questions(statement) == (f"Is it true that {asked}?", f"Is it false that {asked}?")


def test_both_questions_must_be_answered_rightly() -> None:
    yes, no, even = (-1.0, -2.0), (-2.0, -1.0), (-1.0, -1.0)
    assert {pair for pair in product((yes, no, even), repeat=2) if negated(*pair)} == {(yes, no)}


def test_the_likeliest_of_three_replies() -> None:
    assert choice(-1, -2, -3) == {"choice_new": 1, "choice_old": 0, "choice_unknown": 0}
    assert choice(-2, -1, -3) == {"choice_new": 0, "choice_old": 1, "choice_unknown": 0}
    assert choice(-2, None, -1) == {"choice_new": 0, "choice_unknown": 1}
    assert choice(-1, -1, -1)["choice_new"] == 0


def test_preferences_are_those_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the probabilities of whole texts, read one by one."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    model = tiny("llama", vocab_size=len(tokenizer), eos_token_id=0, pad_token_id=1, max_position_embeddings=512)
    places = ("Paris", "Japan", "Italy", "Madrid")
    claims = [Claim(f"The Tower is in {p}.", f"Is it {p}?", p, old) for p, old in permutations(places, 2)]
    claims.append(Claim("The fox is lazy.", "How is the fox?", "lazy"))
    # words that are one token each for this tokenizer, which was not trained on Yes and No
    monkeypatch.setattr("neuroplastic.evaluation.asking.YES", "dog")
    monkeypatch.setattr("neuroplastic.evaluation.asking.NO", "the")
    assert [len(encode(tokenizer, f" {word}")) for word in ("dog", "the")] == [1, 1]
    context = "Fact: a fox.\n"

    def logprob(text: str, answer: str, tokens: int | None = None, opening: tuple[int, ...] = ()) -> float:
        """The mean over the answer's first tokens."""
        read = [*opening, *encode(tokenizer, text)]
        ids = [*opening, *encode(tokenizer, text + answer)]
        assert ids[: len(read)] == read
        with torch.no_grad():
            every = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        wanted = range(len(read), len(ids))[:tokens]
        return sum(every[at - 1, ids[at]].item() for at in wanted) / len(wanted)

    found = preferences(model, tokenizer, claims, context)
    for claim, figures in zip(claims, found, strict=True):
        start = (start_token(tokenizer),)
        true, false = (
            [logprob(f"{context}Question: {q}\nAnswer:", a, 1, start) for a in (" dog", " the")]
            for q in yes_or_no_questions(claim.statement)
        )
        chat = f"user: {context}{claim.question}\nassistant:"
        new, old, unknown = (logprob(chat, f" {a}") if a else None for a in (claim.answer, claim.old, "I don't know"))
        assert new is not None
        assert unknown is not None
        assert figures == {"negated": negated(true, false), **choice(new, old, unknown)}
    assert {f["negated"] for f in found} == {0, 1}
    assert {f["choice_new"] for f in found} == {0, 1}
    tokenizer.chat_template = None
    assert [set(f) for f in preferences(model, tokenizer, claims)] == [{"negated"}] * len(claims)
    assert preferences(model, tokenizer, []) == []


def test_an_answer_in_chat_is_written_as_the_template_begins_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a line break or a special token without a space, after other text with one."""
    seen: list[str] = []
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer), eos_token_id=0, pad_token_id=1, max_position_embeddings=512)

    def read(given: PreTrainedModel, continuations: Sequence[Continuation]) -> list[Score]:
        read, wanted = continuations[4]  # after those of the two questions for yes or no
        seen.append(str(tokenizer.decode([*read, *wanted])).partition("<end>")[2])
        return score(given, continuations)

    monkeypatch.setattr("neuroplastic.evaluation.asking.scores_of", read)
    for ending in ("\n", "<|endoftext|>", ":", "]"):
        tokenizer.chat_template = f"user: {{{{ messages[0]['content'] + '<end>' + {ending!r} }}}}"
        preferences(model, tokenizer, [Claim("The Tower is in Madrid.", "Where?", "Madrid")])
    assert seen == ["\nMadrid", "<|endoftext|>Madrid", ": Madrid", "] Madrid"]
