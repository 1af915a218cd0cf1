"""Passages with questions: how they are read, asked, and compared with a reader of the passage."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import neuroplastic as npt
from neuroplastic.evaluation.asking import prompt
from neuroplastic.evaluation.edits import evaluate, summarise
from neuroplastic.evaluation.evaluator import Evaluator, Remembered
from neuroplastic.evaluation.methods import as_context, editing_method
from neuroplastic.evaluation.passages import PASSAGES
from neuroplastic.evaluation.records import Question, Record, read_records
from neuroplastic.evaluation.replies import replies
from neuroplastic.evaluation.result_store import ResultStore
from neuroplastic.evaluation.strict import normalise
from serving import CHAT_TEMPLATE

PARK: dict[str, Any] = {
    "title": "Rome",
    "passage": "The park of Rome covers 15.5 ha. It is old.\nThere are foxes in the U.S. Garden.",
    "questions": [
        {"question": "How large is the park?", "answer": "15.5 ha"},
        {"question": "What lives there?", "answer": "foxes"},
    ],
}
RIVER: dict[str, Any] = {
    "title": "Rome",
    "passage": "The river of Rome is long.",
    "questions": [{"question": "How is the river?", "answer": "long"}],
}
BRIDGE: dict[str, Any] = {
    "title": "Oslo",
    "passage": "The bridge is in Madrid.",
    "questions": [{"question": f"Where is bridge {n}?", "answer": "Madrid"} for n in range(6)],
}


def read(tmp_path: Path, items: Sequence[Any]) -> tuple[list[Record], dict[str, str]]:
    file = tmp_path / "r.jsonl"
    file.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n\n" for item in items), encoding="utf-8")
    return read_records(file, PASSAGES.parse, PASSAGES.link)


def test_what_a_passage_is_asked(tmp_path: Path) -> None:
    (park, river, bridge), malformed = read(tmp_path, [PARK, RIVER, BRIDGE])
    assert malformed == {}
    assert park.questions == (
        Question("contains", "chat", "How large is the park?", ("15.5 ha",)),
        Question("contains", "chat", "What lives there?", ("foxes",)),
    )
    assert park.statement == PARK["passage"]  # whole for the prompt
    assert [f.statement for f in park.facts] == [
        "The park of Rome covers 15.5 ha.",
        "It is old.",
        "There are foxes in the U.S. Garden.",
    ]
    # of another title, not of the next passage; four at most
    four = tuple(Question("kept", "chat", f"Where is bridge {n}?") for n in range(4))
    assert park.unrelated == river.unrelated == four
    assert [q.text for q in bridge.unrelated] == ["How large is the park?", "What lives there?"]
    (alone,), _ = read(tmp_path, [PARK])
    assert alone.unrelated == ()


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"title": " "}, "'title' is empty or no text"),
        ({"passage": 3}, "'passage' is empty or no text"),
        ({"passage": "No!"}, "none of its sentences can be taught"),
        ({"questions": []}, "'questions' is empty or no list"),
        ({"questions": ["What?"]}, "string indices"),
        ({"questions": [*PARK["questions"], {"question": "What?"}]}, "no 'answer'"),
        ({"questions": [*PARK["questions"], {"question": "What?", "answer": "%"}]}, "the answer '%' has no word"),
    ],
)
def test_malformed_records_are_named(tmp_path: Path, changed: dict[str, Any], why: str) -> None:
    records, malformed = read(tmp_path, [RIVER, {**PARK, **changed}, "text"])
    assert [r.id for r in records] == ["0"]
    assert why in malformed["1"]
    assert malformed["2"] == "not an object"


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(json.dumps(PARK) + "\n\n{cut", encoding="utf-8")
    with pytest.raises(npt.NPTError, match="line 3 is not JSON"):
        read_records(file, PASSAGES.parse, PASSAGES.link)


@pytest.fixture
def asked_shortly(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A workspace whose model has a chat template and writes short replies."""
    monkeypatch.setattr("neuroplastic.evaluation.replies.NEW_TOKENS", 8)
    workspace = fresh()
    workspace.tokenizer.chat_template = CHAT_TEMPLATE
    workspace.model.config.max_position_embeddings = 1024
    return workspace


def test_every_method_is_compared_with_a_reader_of_the_passage(asked_shortly: Any, tmp_path: Path) -> None:
    """What the reader writes about the park is made the right answer: a tiny model finds no real one."""
    engine = asked_shortly.engine
    gate = {**PARK, "passage": "The Golden Gate", "questions": [{"question": "Sushi?", "answer": "x"}] * 2}
    (park, river, bridge), _ = read(tmp_path, [gate, RIVER, BRIDGE])
    first, second = park.questions
    (reply,) = replies(engine.model, engine.tokenizer, [prompt(engine.tokenizer, first, as_context(park.statement))])
    assert normalise(reply.text)
    park = replace(park, questions=(first._replace(answers=(reply.text,)), second))
    weights = asked_shortly.weights_hash()
    methods = {m: editing_method(m) for m in ("unedited", "prompt", "consolidate")}
    rows = evaluate(Evaluator(engine, PASSAGES), [park, river], methods)
    assert asked_shortly.weights_hash() == weights
    for row in rows:  # the reader's figures are those of the record, whatever was done to the model
        assert row.figures["contains_read"] == (0.5 if row.record == park.id else 0)
        assert row.figures["f1_read"] >= row.figures["contains_read"]
    found = {m: f["figures"] for m, f in summarise(rows, PASSAGES)["methods"].items()}
    for figures in found.values():
        for name in ("contains", "f1"):  # mean over mean: the river's 0 of 0 is not left out, and is no ratio
            assert figures[f"{name}_share"][0] == pytest.approx(figures[name][0] / figures[f"{name}_read"][0])
        assert "chat_f1" not in figures
    assert found["prompt"]["contains_share"] == (1, 1, 1)
    assert found["prompt"]["f1_share"][0] == 1
    assert found["unedited"]["contains_share"][0] < 1
    assert found["unedited"]["kept"] == (1, 1, 1)
    assert {"S", "seconds"} <= found["consolidate"].keys()
    rows = evaluate(Evaluator(engine, PASSAGES), [river, bridge], {"prompt": methods["prompt"]})
    figures = summarise(rows, PASSAGES)["methods"]["prompt"]["figures"]
    assert figures["contains_read"][0] == 0  # a reader who finds nothing is nothing to compare with
    assert "contains_share" not in figures


def test_the_prompt_is_the_reader(asked_shortly: Any, tmp_path: Path) -> None:
    """The row `prompt` reads the same prompts in the same batches, so that its share is one, not nearly one."""
    records, _ = read(tmp_path, [PARK, BRIDGE])
    evaluator = Evaluator(asked_shortly.engine, PASSAGES)
    (row, _) = evaluate(evaluator, records, {"prompt": editing_method("prompt")})
    assert row.figures["f1"] == row.figures["f1_read"]
    assert row.figures["contains"] == row.figures["contains_read"]
    assert row.figures["context_tokens"] > 0


def test_the_reader_is_asked_once_for_all_runs_of_a_report(asked_shortly: Any, tmp_path: Path) -> None:
    records, _ = read(tmp_path, [PARK, BRIDGE])

    def evaluator() -> Evaluator:
        made = Evaluator(asked_shortly.engine, PASSAGES)
        made.keep_in(ResultStore(tmp_path / "R", {}, Remembered, "reference.jsonl"))
        return made

    before = evaluate(evaluator(), records, {"unedited": editing_method("unedited")})
    asked_shortly.model.eval()
    with editing_method("consolidate")(asked_shortly.engine, records[0]):  # another model now
        again = evaluator()
        again.remember(records)
        for record, row in zip(records, before, strict=True):
            found = again.ask(record)
            for name in ("contains_read", "f1_read"):
                assert found[name] == row.figures[name]


def test_a_passage_that_no_reader_has_room_for_has_no_share(asked_shortly: Any, tmp_path: Path) -> None:
    long = {**BRIDGE, "passage": "The bridge is in Madrid. " * 300}
    (park, bridge), _ = read(tmp_path, [PARK, long])
    evaluator = Evaluator(asked_shortly.engine, PASSAGES)
    park, bridge = (replace(r, unrelated=()) for r in (park, bridge))
    methods = {m: editing_method(m) for m in ("unedited", "prompt")}
    rows = {(r.method, r.record): r for r in evaluate(evaluator, [park, bridge], methods)}
    assert "f1_read" in rows["unedited", park.id].figures
    assert "f1_read" not in rows["unedited", bridge.id].figures
    assert "beside the questions there is room for" in rows["prompt", bridge.id].refused
    (why,) = evaluator.missing
    assert why.startswith(f"no share of the reader's for {bridge.id}: ")


def test_a_model_that_does_not_chat_is_refused(workspace: npt.Workspace, tmp_path: Path) -> None:
    records, _ = read(tmp_path, [PARK, BRIDGE])
    with pytest.raises(npt.NPTError, match="asks in chat alone, and the model has no chat template"):
        Evaluator(workspace.engine, PASSAGES).remember(records)


@pytest.mark.skipif("NPT_DATA" not in os.environ, reason="the data are not in this repository")
def test_every_record_of_the_data_can_be_used() -> None:
    records, malformed = read_records(
        Path(os.environ["NPT_DATA"]) / "squad_passages.jsonl", PASSAGES.parse, PASSAGES.link
    )
    assert (len(records), malformed) == (1055, {})
    assert all(r.unrelated for r in records)
    assert all(len(r.facts) <= 30 for r in records[::20])
