"""The suites in which the model writes by itself: how their records are read, asked and scored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_paragraphs import ONE, TWO
from test_told import FERRY, OTHERS, read

from conftest import make_tokenizer
from families import tiny
from neuroplastic.evaluation.asking import prompt, reference, score
from neuroplastic.evaluation.claims import OF_CLAIMS
from neuroplastic.evaluation.edits import evaluate, summarise
from neuroplastic.evaluation.evaluator import Evaluator
from neuroplastic.evaluation.methods import editing_method
from neuroplastic.evaluation.paragraphs import PARAGRAPHS
from neuroplastic.evaluation.qaedit import QAEDIT
from neuroplastic.evaluation.records import Question, Record
from neuroplastic.evaluation.replies import replies
from neuroplastic.evaluation.strict import judge
from neuroplastic.evaluation.suite import Suite
from neuroplastic.evaluation.told import TOLD
from neuroplastic.text.tokens import encode, start_token
from serving import CHAT_TEMPLATE

REAL = {
    "prompt": "who has the most points?",
    "target": "Wilt Chamberlain *",
    "rephrase": "Which player has the most points?",
    "locality": [{"loc": "who wrote it", "loc_ans": "Bob"}, {"loc": "where is it", "loc_ans": "Rome"}],
}


def test_what_a_real_question_is_asked(tmp_path: Path) -> None:
    (record, other), malformed = read(tmp_path, QAEDIT, [{"id": 7, **REAL}, {"id": 7, **REAL}])
    assert (record.id, other.id, malformed) == ("0", "1", {})  # ids of two sources of questions may be the same
    assert record.new == "Wilt Chamberlain"
    assert [(q.figure, q.form) for q in record.questions] == [
        ("own", "text"),
        ("question", "question"),
        ("worded", "question"),
        ("chat", "chat"),
    ]
    assert [q.text for q in record.unrelated] == ["who wrote it", "where is it"]
    assert (record.facts[0].question, record.facts[0].answer) == (REAL["prompt"], " Wilt Chamberlain")


@pytest.mark.parametrize(
    ("suite", "good", "changed", "why"),
    [
        (TOLD, FERRY, {"tell": " "}, "'tell' is empty or no text"),
        (TOLD, FERRY, {"answer": 9}, "'answer' is empty or no text"),
        (TOLD, FERRY, {"answer": "!?"}, "no word that could be found"),
        (TOLD, FERRY, {"asks": "The price is"}, "'asks' is empty or no list"),
        (TOLD, FERRY, {"asks": [None]}, "missing, empty or no text"),
        (TOLD, FERRY, {"question": ""}, "'question' is empty or no text"),
        (TOLD, FERRY, {"old": 8}, "the old answer is no text"),
        (TOLD, FERRY, {"tell": "東京は日本の首都です。"}, "has no spaces between its words"),
        (QAEDIT, REAL, {"target": []}, "an answer is an empty list"),
        (QAEDIT, REAL, {"target": "*"}, "missing, empty or no text"),
        (QAEDIT, REAL, {"locality": []}, "'locality' is empty"),
        (QAEDIT, REAL, {"locality": [{"loc": ""}]}, "missing, empty or no text"),
        (QAEDIT, REAL, {"rephrase": None}, "missing, empty or no text"),
    ],
)
def test_malformed_records_are_named(
    tmp_path: Path, suite: Suite, good: dict[str, Any], changed: dict[str, Any], why: str
) -> None:
    without = {k: v for k, v in good.items() if k not in changed}
    records, malformed = read(tmp_path, suite, [good, {**good, **changed}, without, "text"])
    needed = not changed.keys() <= {"old"}
    assert [r.id for r in records] == (["0"] if needed else ["0", "2"])
    assert why in malformed["1"]
    assert malformed.keys() == ({"1", "2", "3"} if needed else {"1", "3"})


def test_the_forms_of_a_question() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    start = start_token(tokenizer)
    context = "Fact: a fox.\n"

    def text(ids: list[int]) -> str:
        return str(tokenizer.decode(ids))

    assert prompt(tokenizer, Question("own", "text", "The fox ")) == [start, *encode(tokenizer, "The fox")]
    opened = "<|endoftext|>"
    assert text(prompt(tokenizer, Question("", "text", "The fox"), context)) == f"{opened}{context}The fox"
    asked = f"{opened}{context}Question: Who?\nAnswer:"
    assert text(prompt(tokenizer, Question("", "question", "Who?"), context)) == asked
    assert text(prompt(tokenizer, Question("", "chat", "Who?"), context)) == f"user: {context}Who?\nassistant:"
    # a context that depends on the question
    assert text(prompt(tokenizer, Question("", "text", "The fox"), lambda q: f"{q}! ")) == f"{opened}The fox! The fox"


def test_the_score_of_a_record(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    model = tiny("llama", vocab_size=len(tokenizer), eos_token_id=0, pad_token_id=1, max_position_embeddings=512)
    (record, *_), _ = read(tmp_path, TOLD, [FERRY, *OTHERS])
    (before,) = reference(model, tokenizer, [record])
    assert len(before) == 2
    plain = score(model, tokenizer, record, "", before)
    assert plain["kept"] == 1
    assert plain["context_tokens"] == 0
    assert {plain[f] for f in ("own", "worded", "question", "chat", "exact", "f1")} == {0}
    (reply,) = replies(model, tokenizer, [prompt(tokenizer, record.questions[3])])
    word = max(reply.text.split(), key=len)
    lucky = replace(record, new=reply.text, aliases=(word,))  # what it writes to the question is right by chance
    found = score(model, tokenizer, lucky, "", before)
    assert (found["exact"], found["f1"]) == (1, 1)
    assert found["repeats"] > 0 or found["question"] == 1
    wrong = score(model, tokenizer, record, "", [[], *before[1:]])
    assert wrong["kept"] == 0.5
    prefixed = score(model, tokenizer, record, "Fact: a fox.\n", before)
    assert prefixed["context_tokens"] == len(encode(tokenizer, "Fact: a fox.\n"))
    tokenizer.chat_template = None
    without = score(model, tokenizer, record, "", *reference(model, tokenizer, [record]))
    assert plain.keys() - without.keys() == {"chat", "chat_f1", "reversed", "choice_new", "choice_unknown"}


def test_a_question_may_have_answers_of_its_own() -> None:
    """Those of the multi-hop questions and of the subject count for their own figure alone."""
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer), eos_token_id=0, pad_token_id=1, max_position_embeddings=512)
    asked = Question("question", "question", "How is the fox?")
    (reply,) = replies(model, tokenizer, [prompt(tokenizer, asked)])
    text = reply.text
    assert judge(text, [text]).found
    hop, back = (asked._replace(figure=f, answers=("Oslo", text)) for f in ("portability", "reversed"))
    record = Record("0", "", "Oslo", "", (), (), sentence="-", questions=(asked, hop, back))
    found = score(model, tokenizer, record, "", [])
    assert (found["question"], found["portability"], found["reversed"]) == (0, 1, 1)
    assert found["exact"] == found["f1"] == 0
    # an answer of the question's own that contradicts the right one; the record's old one is not asked about
    against = replace(record, true=text, questions=(hop, back._replace(answers=("Oslo",), against=(text,)), asked))
    found = score(model, tokenizer, against, "", [])
    assert (found["portability"], found["reversed"]) == (1, 0)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, None], ids=["chat", "no chat"])
@pytest.mark.parametrize("suite", [TOLD, PARAGRAPHS, QAEDIT], ids=lambda s: s.name)
def test_every_method_in_every_suite(
    fresh: Any, tmp_path: Path, suite: Suite, template: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuroplastic.evaluation.replies.NEW_TOKENS", 8)
    workspace = fresh()
    workspace.tokenizer.chat_template = template
    workspace.model.config.max_position_embeddings = 1024
    items = {"told": [FERRY, *OTHERS], "paragraphs": [ONE, TWO], "qaedit": [REAL, {**REAL, "id": "b"}]}
    records, _ = read(tmp_path, suite, items[suite.name])
    weights = workspace.weights_hash()
    evaluator = Evaluator(workspace.engine, suite)
    methods = {m: editing_method(m) for m in ("unedited", "prompt", "consolidate")}
    rows = evaluate(evaluator, records[:2], methods)
    assert workspace.weights_hash() == weights
    assert ("no chat template" in " ".join(evaluator.missing)) == (template is None)
    found = summarise(rows, suite)
    assert found["ceiling"] == 1
    for method in methods:
        figures = found["methods"][method]["figures"]
        assert ("chat" in figures) == (template is not None)
        assert {"S", "question", "kept", "repeats", "asking"} <= figures.keys()
        assert ("worded" in figures) == ("portability" not in figures) == (suite is not PARAGRAPHS)
        of_claims = {f for f in OF_CLAIMS if f != "choice_old" or suite is PARAGRAPHS} if template else {"negated"}
        assert figures.keys() & set(OF_CLAIMS) == (set() if suite is QAEDIT else of_claims)
    assert found["methods"]["unedited"]["figures"]["kept"] == (1, 1, 1)
    assert found["methods"]["prompt"]["figures"]["context_tokens"][0] > 0
    assert "seconds" in found["methods"]["consolidate"]["figures"]
