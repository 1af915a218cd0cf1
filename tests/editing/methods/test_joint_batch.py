"""Facts taught jointly (editing/methods/joint_batch.py), against the formula with dense weights, and in a workspace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import neuroplastic as npt
from conftest import make_tokenizer
from families import tiny
from injectors import learned_of, set_learned, with_injector
from neuroplastic.editing.context import EditContext
from neuroplastic.editing.ledger import Ledger, weight_at
from neuroplastic.editing.methods import joint_batch
from neuroplastic.editing.methods.joint_batch import JointBatch, TokenizedQuestion, solve_jointly
from neuroplastic.editing.targets import Row
from neuroplastic.statistics import Whitening
from neuroplastic.structure import decoder_layers, inspect_layers
from neuroplastic.text.tokens import encode, start_token

LAYERS = (0, 1)
USUAL = JointBatch()
QUESTIONS = [
    (f"The {name} is located in the city of", f" {city}") for name, city in (("bridge", "Madrid"), ("fox", "Paris"))
]
UNGATED = npt.InjectOptions(ungated=True)
FACTS = [npt.asked(q, a) for q, a in (*QUESTIONS, ("Sushi originated in the country of", "Italy"))]


def context_of(texts: int = 4) -> EditContext:
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer)).double()
    text = torch.randint(5, len(tokenizer), (texts, 20))
    parts = inspect_layers(model, LAYERS)
    return EditContext(model, tokenizer, parts, ("down",), Whitening({}), text, {}, None, Ledger(model).unedited)


def tokenized(context: EditContext) -> list[TokenizedQuestion]:
    return [
        TokenizedQuestion(encode(context.tokenizer, q), encode(context.tokenizer, a), i)
        for i, (q, a) in enumerate(QUESTIONS)
    ]


def rows_and_values(context: EditContext) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    d, f = (getattr(context.model.config, n) for n in ("hidden_size", "intermediate_size"))
    A, V = (torch.randn(2, 2, n, dtype=torch.float64, generator=g) for n in (f, d))
    return 0.3 * A, 0.1 * V


def objective(
    context: EditContext, asked: Sequence[TokenizedQuestion], A: Tensor, V: Tensor, text: Tensor, how: JointBatch
) -> Tensor:
    """The loss of a model whose weights are W + V^T A, one sequence at a time."""
    model = context.model
    names = {i: f"model.layers.{layer}.mlp.down_proj.weight" for i, layer in enumerate(LAYERS)}
    weights = {n: model.get_parameter(n).detach() + V[:, i].T @ A[:, i] for i, n in names.items()}

    def logprobs(ids: Sequence[int], changed: dict[str, Any]) -> Tensor:
        out: Any = torch.func.functional_call(model, changed, kwargs={"input_ids": torch.tensor([ids])})
        return out.logits[0].log_softmax(-1)

    missing = []
    for a in asked:
        ids = [start_token(context.tokenizer), *a.question, *a.answer]
        answer = logprobs(ids, weights)[-1 - len(a.answer) : -1]
        missing.append((-answer[range(len(a.answer)), list(a.answer)].mean() - how.spared_nats).clamp_min(0))
    p, q = (logprobs(text.tolist(), changed)[1:] for changed in ({}, weights))
    return torch.stack(missing).mean() + how.kl_weight * (p.exp() * (p - q)).sum(-1).mean()


def test_a_step_follows_the_gradient_of_the_stated_objective() -> None:
    context = context_of(texts=1)
    asked, (A, proposed) = tokenized(context), rows_and_values(context)
    before = {n: t.clone() for n, t in context.model.state_dict().items()}
    how = replace(USUAL, share_alone=1.0, visits=0, min_steps=1)
    found = solve_jointly(context, LAYERS, asked, A, proposed, how)
    assert all(torch.equal(t, before[n]) for n, t in context.model.state_dict().items())
    assert not any(m._forward_hooks for m in context.model.modules())
    V = (how.start_strength * proposed).requires_grad_()
    (g,) = torch.autograd.grad(objective(context, asked, A, V, context.text[0], how), V)
    mean_length = proposed.norm(dim=-1).mean(0)[None, :, None]
    step = how.step_length / how.warmup_steps * mean_length * g / g.norm(dim=-1, keepdim=True)
    assert_close(found, V.detach() - step, rtol=1e-6, atol=1e-9)


def test_more_steps_lower_it_and_beta_holds_ordinary_text() -> None:
    context = context_of()
    asked, (A, proposed) = tokenized(context), rows_and_values(context)
    how = replace(USUAL, step_length=0.5)

    def parts(V: Tensor) -> tuple[float, float]:
        """What is missing from the answers, and KL."""
        with torch.no_grad():
            values = {}
            for beta in (0.0, 1.0):
                weighed = replace(how, kl_weight=beta)
                found = torch.stack([objective(context, asked, A, V, row, weighed) for row in context.text])
                values[beta] = found.mean().item()
        return values[0.0], values[1.0] - values[0.0]

    start = parts(how.start_strength * proposed)
    free = parts(solve_jointly(context, LAYERS, asked, A, proposed, replace(how, kl_weight=0.0)))
    held = parts(solve_jointly(context, LAYERS, asked, A, proposed, replace(how, kl_weight=1000.0)))
    assert free[0] < 0.7 * start[0]
    assert held[1] < 0.3 * free[1]


def test_every_wording_is_asked_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    assert USUAL.steps_for(1) == USUAL.min_steps
    assert USUAL.steps_for(1000) == math.ceil(1000 * USUAL.visits / USUAL.rows_per_step)
    context = context_of()
    asked, (A, proposed) = [*tokenized(context), *tokenized(context)[:1]], rows_and_values(context)
    how = replace(USUAL, rows_per_step=2, min_steps=6, visits=0, share_alone=1.0)
    seen: list[int] = []
    real = Row

    def row(ids: list[int], answer: list[int], keys: list[tuple[int, int]]) -> Row:
        seen.append(len(ids))
        return real(ids, answer, keys)

    monkeypatch.setattr(joint_batch, "Row", row)
    steps: list[tuple[int, int]] = []
    solve_jointly(context, LAYERS, asked, A, proposed, how, lambda done, total: steps.append((done, total)))
    assert steps == [(i, 6) for i in range(1, 7)]
    lengths = [1 + len(a.question) + len(a.answer) - 1 for a in asked]
    assert sorted(seen) == sorted(lengths * 4)


@pytest.fixture
def three_are_many(workspace: npt.Workspace) -> npt.Workspace:
    """With an injector, and three facts in one call are taught jointly."""
    ws = with_injector(workspace)
    set_learned(ws, joint_batch=replace(USUAL, min_facts=3))
    return ws


def test_in_a_workspace_many_facts_in_one_call_are_taught_jointly(three_are_many: npt.Workspace) -> None:
    ws, pristine, names = three_are_many, three_are_many.weights_hash(), ["one", "two", "three"]
    set_learned(ws, joint_batch=replace(learned_of(ws).joint_batch, step_length=0.3))
    made = ws.inject_all(FACTS, UNGATED, names=names)
    assert all(e.report["steps"] == USUAL.min_steps for e in made)
    assert all(e.report["strength"] == USUAL.start_strength for e in made)
    assert all(e.report["answer_probability_after"] > e.report["answer_probability_before"] for e in made)
    together = ws.weights_hash()
    assert npt.Workspace.open(ws.path).weights_hash() == together
    ws.undo("two")
    ws.redo("two")
    assert ws.weights_hash() == together
    for name in ("two", "one", "three"):
        ws.undo(name)
        ws.drop(name)
    assert ws.weights_hash() == pristine
    again = ws.inject_all(FACTS, UNGATED, names=names)
    assert all(torch.equal(a.factors[p].B, f.B) for a, e in zip(again, made, strict=True) for p, f in e.factors.items())


def test_fewer_facts_and_quick_ones_are_taught_one_by_one(three_are_many: npt.Workspace) -> None:
    few = three_are_many.inject_all(FACTS[:2], UNGATED, names=["one", "two"])
    assert all(e.report["strength"] != USUAL.start_strength for e in few)
    quick = three_are_many.inject_all(FACTS, npt.InjectOptions(quick=True, ungated=True), names=["a", "b", "c"])
    assert all(e.report["steps"] < USUAL.min_steps for e in quick)


def test_several_wordings_of_a_fact_share_one_value(three_are_many: npt.Workspace) -> None:
    worded = replace(FACTS[0], wordings=(*FACTS[0].wordings, *npt.asked("One sees the bridge in", "Madrid").wordings))
    made = three_are_many.inject_all([worded, *FACTS[1:]], UNGATED, names=["one", "two", "three"])
    assert {len(f.A) for e in made for f in e.factors.values()} == {1}
    weight = weight_at(decoder_layers(three_are_many.model), next(iter(made[0].factors)))
    assert torch.isfinite(weight).all()


def test_text_is_cut_into_rows_that_open_with_the_start_token() -> None:
    text = torch.arange(22).view(2, 11)
    assert joint_batch.cut(text, 5).tolist() == [
        [0, 1, 2, 3, 4],
        [11, 12, 13, 14, 15],
        [0, 6, 7, 8, 9],
        [11, 17, 18, 19, 20],
    ]
    assert torch.equal(joint_batch.cut(text, 20), text)


def test_a_joint_batch_reads_more_text(three_are_many: npt.Workspace) -> None:
    engine = three_are_many.engine
    three_are_many.inject_all(FACTS[:2], UNGATED, names=["one", "two"])
    assert "more_text" not in vars(engine)
    three_are_many.inject_all(FACTS, UNGATED, names=["a", "b", "c"])
    assert torch.equal(engine.more_text[: len(engine.text[0])], engine.text[0])
    assert len(engine.more_text) > 2 * len(engine.text[0])
