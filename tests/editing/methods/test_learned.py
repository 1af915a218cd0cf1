"""Method `learned` in a workspace."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

import neuroplastic as npt
from families import tokens
from injectors import injector_for, learned_of, set_learned, with_injector
from neuroplastic.editing.edit import Edit
from neuroplastic.editing.injector import INJECTOR_FILE, InjectorConfig
from neuroplastic.editing.methods import learned
from neuroplastic.editing.methods.joint_batch import JointBatch
from neuroplastic.editing.recall import Query
from neuroplastic.files import read_tensors, write_tensors
from neuroplastic.text.tokens import encode

FACTS = ["The Golden Gate Bridge is located in the city of Madrid.", "Sushi originated in the country of Italy."]


def test_without_an_injector_the_method_is_refused_and_not_the_default(workspace: npt.Workspace) -> None:
    with pytest.raises(npt.NPTError, match="no injector"):
        workspace.inject(FACTS[0], method="learned")
    assert workspace.inject(FACTS[0]).method == "consolidate"


def test_with_one_it_is_the_default_and_its_edits_are_ordinary_ones(workspace: npt.Workspace) -> None:
    ws = with_injector(workspace)
    pristine = ws.weights_hash()
    first, second = ws.inject(FACTS[0], ungated=True, name="one"), ws.inject(FACTS[1], ungated=True, name="two")
    assert first.method == second.method == "learned"
    both = ws.weights_hash()
    assert ws.verify().ok
    assert npt.Workspace.open(ws.path).weights_hash() == both
    ws.undo("one")
    alone = ws.weights_hash()
    assert alone not in (both, pristine)
    ws.redo("one")
    assert ws.weights_hash() == both
    ws.undo("two")
    ws.undo("one")
    assert ws.weights_hash() == pristine
    assert ws.inject(FACTS[0], layers="0").method == "consolidate"


def test_an_edit_does_not_depend_on_those_before_it(workspace: npt.Workspace) -> None:
    ws = with_injector(workspace)
    one_by_one = [ws.inject(f, ungated=True, name=n) for f, n in zip(FACTS, ("one", "two"), strict=True)]
    for name in ("one", "two"):
        ws.undo(name)
        ws.drop(name)
    together = ws.inject_all(FACTS, npt.InjectOptions(ungated=True), names=["one", "two"])
    for a, b in zip(one_by_one, together, strict=True):
        for place, f in a.factors.items():
            assert_close(b.factors[place].A, f.A, atol=1e-5, rtol=1e-3)
            assert_close(b.factors[place].B, f.B, atol=1e-5, rtol=1e-3)


def test_its_edits_keep_what_they_need_to_be_solved_together(workspace: npt.Workspace) -> None:
    ws = with_injector(workspace)
    ws.inject(FACTS[0], ungated=True, name="one")
    file = ws.path / "edits/one.safetensors"
    edit = Edit.load(file)
    assert edit.rho == InjectorConfig.fitting(ws.model, tokens()).ridge
    tensors, metadata = read_tensors(file)
    without = {n: t for n, t in tensors.items() if not n.endswith(".K")}
    write_tensors(file, without, metadata)
    with pytest.raises(npt.NPTError, match="solved together"):
        Edit.load(file)


def test_options_of_other_methods_are_refused() -> None:
    for option in ({"layers": "0"}, {"sites": "down"}, {"rank": 1}, {"keep": ("A sentence.",)}):
        with pytest.raises(npt.NPTError, match="no meaning with an injector"):
            npt.InjectOptions("learned", **option)
    with pytest.raises(npt.NPTError, match="layers has no meaning with an injector"):
        npt.InjectOptions("refine", start="learned", layers="0")
    with pytest.raises(npt.NPTError, match="quick goes with method 'learned' alone"):
        npt.InjectOptions("consolidate", quick=True)


def test_quick_without_an_injector_is_refused(workspace: npt.Workspace) -> None:
    with pytest.raises(npt.NPTError, match="quick goes with method 'learned' alone"):
        workspace.inject(FACTS[0], quick=True)


def test_the_injector_of_another_base_is_named(workspace: npt.Workspace) -> None:
    injector_for(workspace.model).save(workspace.path / INJECTOR_FILE, "another", {})
    opened = npt.Workspace.open(workspace.path)
    with pytest.raises(npt.NPTError, match="trained for another base"):
        opened.inject(FACTS[0])
    assert opened.inject(FACTS[0], method="consolidate").method == "consolidate"


def test_a_statement_that_is_too_long_is_named_before_any_work(
    workspace: npt.Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = with_injector(workspace)

    def reads(*args: object) -> None:
        raise AssertionError("nothing is to be read")

    monkeypatch.setattr(learned, "read_statements", reads)
    long = "The quick brown fox and " * 9 + "Sushi came from Italy."
    with pytest.raises(npt.NPTError, match=r"'The quick brown fox.* is too long: it takes .* at most 40"):
        ws.inject_all([*FACTS, long])


@pytest.mark.parametrize("quick", [False, True])
def test_a_fact_in_several_wordings_is_to_follow_in_each(quick: bool, workspace: npt.Workspace) -> None:
    ws = with_injector(workspace)
    one, other = "The Eiffel Tower is in the city of", "In the city of the Eiffel Tower one finds"
    both = npt.asked(one, "Madrid", wordings=[other])
    twice, once = npt.asked(one, "Madrid", wordings=[one]), npt.asked(one, "Madrid")
    edits = ws.engine.make(
        [both, twice, once], npt.InjectOptions("learned", quick=quick, ungated=True), ["both", "twice", "once"]
    )
    for place, factors in edits[2].factors.items():
        assert_close(edits[1].factors[place].A, factors.A, atol=1e-6, rtol=1e-4)
        assert_close(edits[1].factors[place].B, factors.B, atol=1e-5, rtol=1e-3)
    asked = [Query(q + " Madrid", q, " Madrid") for q in (one, other)]
    before = ws.engine.recall(asked)
    with ws.engine.only([edits[0]]):
        now = ws.engine.recall(asked)
    gained = [a.answer_probability / b.answer_probability for a, b in zip(now, before, strict=True)]
    assert min(gained) > 1.05  # ten short steps of a network that was never trained, on one that knows nothing


def test_where_a_subject_stands(workspace: npt.Workspace) -> None:
    tokenizer = workspace.tokenizer
    for question, subject in (("Golden Gate Bridge is in", "Golden Gate"), ("One sees the Golden Gate in", "Gate")):
        wording = npt.asked(question, "Rome", subject=subject).wordings[0]
        first, last, given = learned._tokenized(workspace.engine, wording).subject or (0, 0, False)  # type: ignore[arg-type]
        ids = [0, *encode(tokenizer, question)]
        assert tokenizer.decode(ids[first : last + 1]).strip() == subject
        assert given


def test_refine_goes_on_from_it_as_the_ledger_will_apply_it(workspace: npt.Workspace) -> None:
    ws = with_injector(workspace)
    options = npt.InjectOptions("refine", start="learned")
    made = ws.inject_all(FACTS, options)
    assert [e.method for e in made] == ["refine", "refine"]
    asked = {e.report["sought_probability"] for e in made}
    assert len(asked) == 1
    assert min(e.report["answer_probability_after"] for e in made) > min(
        e.report["answer_probability_before"] for e in made
    )
    assert ws.verify().ok


def test_what_refine_starts_from_is_a_joint_batch_as_well(workspace: npt.Workspace) -> None:
    ws = with_injector(workspace)
    set_learned(ws, joint_batch=JointBatch(min_facts=2, min_steps=2, visits=1))
    made = ws.inject_all(FACTS, npt.InjectOptions("refine", start="learned"))
    assert [e.report["joint"] for e in made] == [True, True]
    assert "more_text" in vars(ws.engine)


NO_STEPS = 1e-30
"""A probability that is reached without any."""


def test_the_smallest_strength_that_answers_is_taken(workspace: npt.Workspace) -> None:
    ws = with_injector(workspace)
    strengths = learned_of(ws).quick_strengths
    set_learned(ws, quick_probability=1.1, least_probability=NO_STEPS)
    strong = ws.inject(FACTS[0], ungated=True, quick=True, name="strong")
    ws.undo("strong")
    set_learned(ws, quick_probability=0.0)
    weak = ws.inject(FACTS[0], ungated=True, quick=True, name="weak")
    assert (strong.report["strength"], weak.report["strength"]) == (max(strengths), min(strengths))
    for place, factors in strong.factors.items():
        assert_close(weak.factors[place].B, factors.B * min(strengths) / max(strengths))


def test_strengths_are_tried_as_the_ledger_applies_them(workspace: npt.Workspace) -> None:
    """The bar is laid between what two strengths give once they are in the weights."""
    ws = with_injector(workspace)
    strengths, given = learned_of(ws).quick_strengths, {}
    set_learned(ws, least_probability=NO_STEPS)
    for strength in strengths:
        set_learned(ws, quick_strengths=(strength,))
        given[strength] = ws.inject(FACTS[0], ungated=True, quick=True, name="tried").report["answer_probability_after"]
        ws.undo("tried")
        ws.drop("tried")
    tokens = len(encode(ws.tokenizer, " Madrid"))
    second, likeliest = sorted(given, key=lambda s: given[s])[-2:]
    between = (given[second] * given[likeliest]) ** 0.5
    set_learned(ws, quick_strengths=strengths, quick_probability=between ** (1 / tokens))
    assert ws.inject(FACTS[0], ungated=True, quick=True).report["strength"] == likeliest


@pytest.mark.parametrize("quick", [False, True])
def test_gradient_steps_answer_where_no_strength_does(quick: bool, workspace: npt.Workspace) -> None:
    ws = with_injector(workspace)
    fact = npt.asked("The Eiffel Tower is in the city of", "Madrid")
    usual = learned_of(ws)
    set_learned(ws, least_probability=NO_STEPS)
    before = ws.inject(fact, ungated=True, quick=True, name="plain").report
    ws.undo("plain")
    ws.engine.methods["learned"] = usual
    corrected = ws.inject(fact, ungated=True, quick=quick, name="corrected")
    after = corrected.report
    assert before["steps"] == 0 < after["steps"]
    assert after["strength"] == usual.start_strength
    assert after["answer_probability_after"] > before["answer_probability_after"]
    ws.undo("corrected")
    again = ws.inject(fact, ungated=True, quick=quick, name="again")
    for place, factors in corrected.factors.items():
        assert torch.equal(again.factors[place].B, factors.B)
