"""Records that are taught in groups, and are all in place while each of them is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from test_edits import RECORDS

import neuroplastic as npt
from neuroplastic.editing.engine import EditableModel
from neuroplastic.evaluation.counterfact import COUNTERFACT
from neuroplastic.evaluation.edits import Row, evaluate, summarise
from neuroplastic.evaluation.evaluator import Evaluator
from neuroplastic.evaluation.methods import Taught, batch_method, editing_method
from neuroplastic.evaluation.records import Record
from neuroplastic.evaluation.result_store import ResultStore
from neuroplastic.evaluation.teaching import one_after_another, teach_group
from neuroplastic.text.tokens import encode

CONSOLIDATE = batch_method("consolidate")


@contextmanager
def quarrelsome(engine: EditableModel, records: Sequence[Record]) -> Iterator[Taught]:
    """A batch form that teaches no two records together, and c not at all."""
    if any(r.id == "c" for r in records):
        raise npt.NPTError("c is too long")
    if len(records) > 1:
        raise npt.NPTError("they contradict each other")
    yield Taught(1.0)


def test_all_of_a_group_are_in_place_while_each_is_asked(workspace: npt.Workspace, tmp_path: Path) -> None:
    assert CONSOLIDATE is not None
    weights, engine = workspace.weights_hash(), workspace.engine
    methods = {m: editing_method(m) for m in ("unedited", "prompt", "consolidate", "ft")}
    batches = {m: b for m in methods if (b := batch_method(m)) is not None}
    assert set(batches) == {"prompt", "consolidate"}  # the others teach one after another

    def run() -> list[Row]:
        store = ResultStore(tmp_path, {}, Row)
        return evaluate(Evaluator(engine, COUNTERFACT), RECORDS, methods, store, together=2, batches=batches)

    rows = run()
    assert workspace.weights_hash() == weights
    found = {(r.method, r.record): r.figures for r in rows}
    assert len(found) == len(methods) * 3
    with CONSOLIDATE(engine, RECORDS[:2]):  # by hand
        evaluator = Evaluator(engine, COUNTERFACT)
        evaluator.remember(RECORDS[:2])
        for record in RECORDS[:2]:
            asked = evaluator.ask(record)
            own = found["consolidate", record.id]
            assert own["EM"] == pytest.approx(asked["EM"])
            assert own["kl"] == found["consolidate", "a"]["kl"] > 0
    alone = evaluate(Evaluator(engine, COUNTERFACT), RECORDS, methods)
    assert alone[3 * 2].figures["EM"] != found["consolidate", "a"]["EM"]
    assert alone[3 * 2 + 2].figures["EM"] == pytest.approx(found["consolidate", "c"]["EM"])  # the last group is one
    context = "Fact: The Bridge is in Madrid.\nFact: The fox is lazy.\n"
    tokens = len(encode(engine.tokenizer, context))
    assert [found["prompt", r]["context_tokens"] for r in ("a", "b")] == [tokens, tokens]
    assert found["ft", "a"]["seconds"] == found["ft", "b"]["seconds"] > 0
    lines = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(lines[:-2]))  # the second of a group and the last group are missing
    again = run()
    assert again[: len(rows) - 2] == rows[:-2]
    assert [r.figures["EM"] for r in again] == pytest.approx([r.figures["EM"] for r in rows])


def test_one_record_hinders_no_other_of_its_group(workspace: npt.Workspace) -> None:
    engine = workspace.engine
    with ExitStack() as stack:
        taught, refused = teach_group(stack, engine, [RECORDS[0], RECORDS[2]], quarrelsome)
        assert taught == Taught(1.0)
        assert refused == {"c": "c is too long"}
    with ExitStack() as stack:
        taught, refused = teach_group(stack, engine, RECORDS, quarrelsome)
        assert taught is None
        assert refused == {**dict.fromkeys("ab", "they contradict each other"), "c": "c is too long"}
    with ExitStack() as stack:
        assert teach_group(stack, engine, RECORDS[2:], quarrelsome) == (None, {"c": "c is too long"})
    methods, batches = {"quarrelsome": editing_method("unedited")}, {"quarrelsome": quarrelsome}
    order = [RECORDS[2], *RECORDS[:2]]
    rows = evaluate(Evaluator(engine, COUNTERFACT), order, methods, together=2, batches=batches)
    assert [r.refused for r in rows] == ["c is too long", "", ""]
    assert summarise(rows, COUNTERFACT)["methods"]["quarrelsome"]["refused"] == {"c": "c is too long"}


def test_statements_stand_in_the_prompt_as_far_as_they_fit(workspace: npt.Workspace) -> None:
    batch, engine = batch_method("prompt"), workspace.engine
    assert batch is not None
    many = [replace(r, id=str(i)) for i, r in enumerate(RECORDS * 40)]
    with batch(engine, many) as taught:
        assert isinstance(taught.context, str)
        assert taught.context.startswith("Fact: The Bridge is in Madrid.\nFact: The fox is lazy.\n")
        longest = len(encode(engine.tokenizer, "The Bridge is in Madrid. The Tower is in Paris"))
        assert len(encode(engine.tokenizer, taught.context)) + longest <= 128
        assert len(encode(engine.tokenizer, taught.context)) > 60
        stands = taught.context.count("Fact: ")
        assert list(taught.untaught) == [r.id for r in many[stands:]]
        assert f"beside {stands} statements there is no room" in taught.untaught["119"]
    long = replace(RECORDS[0], sentence="A fox is lazy. " * 60)
    with pytest.raises(npt.NPTError, match="beside the questions there is room for"), batch(engine, [long]):
        pass


def test_a_method_without_a_batch_form_teaches_one_after_another(workspace: npt.Workspace) -> None:
    engine = workspace.engine
    with one_after_another(editing_method("prompt"))(engine, RECORDS[:2]) as taught:
        assert taught.context == "Fact: The Bridge is in Madrid.\nFact: The fox is lazy.\n"
        assert not taught.weights
    look_up = editing_method("retrieval", [r.statement for r in RECORDS])
    with one_after_another(look_up)(engine, RECORDS[:2]) as taught:
        assert callable(taught.context)
        assert taught.context("What about the fox") == "Fact: The fox is lazy.\n"
        assert taught.seconds > 0
