"""How many questions a record is asked, and how long they are."""

from __future__ import annotations

from dataclasses import replace

import pytest

import neuroplastic as npt
from neuroplastic.evaluation.evaluator import Evaluator
from neuroplastic.evaluation.methods import as_context, in_prompt
from neuroplastic.evaluation.questions import longest_question, questions
from neuroplastic.evaluation.records import Claim, Question, Record
from neuroplastic.evaluation.told import TOLD
from neuroplastic.text.tokens import context_length, encode
from serving import CHAT_TEMPLATE

CLAIM = Claim("The Bridge is in Madrid.", "Where is it?", "Madrid", "Paris")
RECORD = Record("r", "", "Madrid", "", (), (), sentence="A.", questions=(Question("own", "text", "It is in"),))


def test_the_questions_about_a_statement_count(workspace: npt.Workspace) -> None:
    workspace.tokenizer.chat_template = None
    claiming = replace(RECORD, claims=(CLAIM,))
    assert questions(workspace.tokenizer, RECORD) == ["It is in"]
    asked = ["It is in", "Is it true that the Bridge is in Madrid?", "Is it false that the Bridge is in Madrid?"]
    assert questions(workspace.tokenizer, claiming) == asked
    workspace.tokenizer.chat_template = CHAT_TEMPLATE
    assert questions(workspace.tokenizer, claiming) == [*asked, "Where is it?"]


def test_a_long_statement_has_room_when_it_is_asked_about(
    workspace: npt.Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The questions whether it is true are the longest ones: a context that leaves no room for them is refused."""
    monkeypatch.setattr("neuroplastic.evaluation.replies.NEW_TOKENS", 4)
    workspace.tokenizer.chat_template = None
    workspace.model.config.max_position_embeddings = 512
    tokenizer, room = workspace.tokenizer, context_length(workspace.model)
    long = Claim("The Bridge is in Madrid, " + "or so it is, " * 12 + "they say.", "Where is it?", "Madrid")
    record = replace(RECORD, claims=(long,))
    (plain,), (longest,) = ([longest_question(tokenizer, [r])] for r in (RECORD, record))
    assert longest > plain
    question = f"Question: Is it false that the{long.statement[3:-1]}?\nAnswer:"
    assert longest == 1 + len(encode(tokenizer, question)) + 1  # the start token, and Yes or No
    fitting = (n for n in range(room, 0, -1) if len(encode(tokenizer, as_context("fox " * n))) <= room - longest)
    words = "fox " * next(fitting)
    evaluator = Evaluator(workspace.engine, TOLD)
    evaluator.remember([record])
    with in_prompt(workspace.engine, replace(record, sentence=words)) as taught:
        assert "negated" in evaluator.ask(record, taught.context)
    more = replace(record, sentence=words + "fox fox fox ")
    with pytest.raises(npt.NPTError, match="beside the questions there is room for"), in_prompt(workspace.engine, more):
        pass
