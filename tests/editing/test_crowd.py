"""Facts taught together (editing/crowd.py), against the formula with dense weights, and in a workspace."""

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
from injectors import with_injector
from neuroplastic.editing.ledger import Ledger, weight_at
from neuroplastic.editing.methods import joint as crowd
from neuroplastic.editing.methods.consolidate import Bench
from neuroplastic.editing.methods.joint import Asked, steps_for, teach_together
from neuroplastic.editing.targets import Row
from neuroplastic.statistics import Whitening
from neuroplastic.structure import decoder_layers, inspect_layers
from neuroplastic.text.tokens import encode, start_token

LAYERS = (0, 1)
TOLD = [
    (f"The {name} is located in the city of", f" {city}") for name, city in (("bridge", "Madrid"), ("fox", "Paris"))
]
FACTS = [npt.asked(q, a) for q, a in (*TOLD, ("Sushi originated in the country of", "Italy"))]


def bench_of(texts: int = 4) -> Bench:
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer)).double()
    text = torch.randint(5, len(tokenizer), (texts, 20))
    parts = inspect_layers(model, LAYERS)
    return Bench(model, tokenizer, parts, ("down",), Whitening({}), text, {}, None, Ledger(model).unedited)


def told(bench: Bench) -> list[Asked]:
    return [Asked(encode(bench.tokenizer, q), encode(bench.tokenizer, a), i) for i, (q, a) in enumerate(TOLD)]


def rows_and_values(bench: Bench) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    d, f = (getattr(bench.model.config, n) for n in ("hidden_size", "intermediate_size"))
    A, V = (torch.randn(2, 2, n, dtype=torch.float64, generator=g) for n in (f, d))
    return 0.3 * A, 0.1 * V


def objective(bench: Bench, asked: Sequence[Asked], A: Tensor, V: Tensor, text: Tensor) -> Tensor:
    """The loss of a model whose weights are W + V^T A, one sequence at a time."""
    model = bench.model
    names = {i: f"model.layers.{layer}.mlp.down_proj.weight" for i, layer in enumerate(LAYERS)}
    weights = {n: model.get_parameter(n).detach() + V[:, i].T @ A[:, i] for i, n in names.items()}

    def logprobs(ids: Sequence[int], changed: dict[str, Any]) -> Tensor:
        out: Any = torch.func.functional_call(model, changed, kwargs={"input_ids": torch.tensor([ids])})
        return out.logits[0].log_softmax(-1)

    missing = []
    for a in asked:
        ids = [start_token(bench.tokenizer), *a.question, *a.answer]
        said = logprobs(ids, weights)[-1 - len(a.answer) : -1]
        missing.append((-said[range(len(a.answer)), list(a.answer)].mean() - crowd.SPARE).clamp_min(0))
    p, q = (logprobs(text.tolist(), changed)[1:] for changed in ({}, weights))
    return torch.stack(missing).mean() + crowd.BETA * (p.exp() * (p - q)).sum(-1).mean()


def test_a_step_follows_the_gradient_of_the_stated_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of(texts=1)
    asked, (A, proposed) = told(bench), rows_and_values(bench)
    before = {n: t.clone() for n, t in bench.model.state_dict().items()}
    monkeypatch.setattr(crowd, "ALONE", 1.0)
    monkeypatch.setattr(crowd, "VISITS", 0)
    monkeypatch.setattr(crowd, "LEAST_STEPS", 1)
    found = teach_together(bench, LAYERS, asked, A, proposed)
    assert all(torch.equal(t, before[n]) for n, t in bench.model.state_dict().items())
    assert not any(m._forward_hooks for m in bench.model.modules())
    V = (crowd.FROM * proposed).requires_grad_()
    (g,) = torch.autograd.grad(objective(bench, asked, A, V, bench.text[0]), V)
    mean_length = proposed.norm(dim=-1).mean(0)[None, :, None]
    step = crowd.RATE / crowd.WARMUP * mean_length * g / g.norm(dim=-1, keepdim=True)
    assert_close(found, V.detach() - step, rtol=1e-6, atol=1e-9)


def test_more_steps_lower_it_and_beta_holds_ordinary_text(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of()
    asked, (A, proposed) = told(bench), rows_and_values(bench)
    monkeypatch.setattr(crowd, "RATE", 0.5)

    def parts(V: Tensor) -> tuple[float, float]:
        """What is missing from the answers, and KL."""
        with torch.no_grad():
            values = {}
            for beta in (0.0, 1.0):
                monkeypatch.setattr(crowd, "BETA", beta)
                values[beta] = torch.stack([objective(bench, asked, A, V, row) for row in bench.text]).mean().item()
        return values[0.0], values[1.0] - values[0.0]

    start = parts(crowd.FROM * proposed)
    monkeypatch.setattr(crowd, "BETA", 0.0)
    free = parts(teach_together(bench, LAYERS, asked, A, proposed))
    monkeypatch.setattr(crowd, "BETA", 1000.0)
    held = parts(teach_together(bench, LAYERS, asked, A, proposed))
    assert free[0] < 0.7 * start[0]
    assert held[1] < 0.3 * free[1]


def test_every_wording_is_asked_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    assert steps_for(1) == crowd.LEAST_STEPS
    assert steps_for(1000) == math.ceil(1000 * crowd.VISITS / crowd.ROWS)
    bench = bench_of()
    asked, (A, proposed) = [*told(bench), *told(bench)[:1]], rows_and_values(bench)
    for name, value in (("ROWS", 2), ("LEAST_STEPS", 6), ("VISITS", 0), ("ALONE", 1.0)):
        monkeypatch.setattr(crowd, name, value)
    seen: list[int] = []
    real = Row

    def row(ids: list[int], answer: list[int], keys: list[tuple[int, int]]) -> Row:
        seen.append(len(ids))
        return real(ids, answer, keys)

    monkeypatch.setattr(crowd, "Row", row)
    steps: list[tuple[int, int]] = []
    teach_together(bench, LAYERS, asked, A, proposed, lambda done, total: steps.append((done, total)))
    assert steps == [(i, 6) for i in range(1, 7)]
    lengths = [1 + len(a.question) + len(a.answer) - 1 for a in asked]
    assert sorted(seen) == sorted(lengths * 4)


@pytest.fixture
def crowded(workspace: npt.Workspace, monkeypatch: pytest.MonkeyPatch) -> npt.Workspace:
    """With an injector, and with three facts for a crowd."""
    monkeypatch.setattr(crowd, "CROWD", 3)
    return with_injector(workspace)


def test_in_a_workspace_facts_told_together_are_taught_together(
    crowded: npt.Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws, pristine, names = crowded, crowded.weights_hash(), ["one", "two", "three"]
    monkeypatch.setattr(crowd, "RATE", 0.3)
    made = ws.inject_all(FACTS, names=names)
    assert all(e.report["steps"] == crowd.LEAST_STEPS for e in made)
    assert all(e.report["strength"] == crowd.FROM for e in made)
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
    again = ws.inject_all(FACTS, names=names)
    assert all(torch.equal(a.factors[p].B, f.B) for a, e in zip(again, made, strict=True) for p, f in e.factors.items())


def test_fewer_facts_and_quick_ones_are_taught_one_by_one(crowded: npt.Workspace) -> None:
    few = crowded.inject_all(FACTS[:2], names=["one", "two"])
    assert all(e.report["strength"] != crowd.FROM for e in few)
    quick = crowded.inject_all(FACTS, npt.InjectOptions(quick=True), names=["a", "b", "c"])
    assert all(e.report["steps"] < crowd.LEAST_STEPS for e in quick)


def test_several_wordings_of_a_fact_share_one_value(crowded: npt.Workspace) -> None:
    worded = replace(FACTS[0], wordings=(*FACTS[0].wordings, *npt.asked("One sees the bridge in", "Madrid").wordings))
    made = crowded.inject_all([worded, *FACTS[1:]], names=["one", "two", "three"])
    assert {len(f.A) for e in made for f in e.factors.values()} == {1}
    weight = weight_at(decoder_layers(crowded.model), next(iter(made[0].factors)))
    assert torch.isfinite(weight).all()


def test_text_is_cut_into_rows_that_open_with_the_start_token() -> None:
    text = torch.arange(22).view(2, 11)
    assert crowd.cut(text, 5).tolist() == [
        [0, 1, 2, 3, 4],
        [11, 12, 13, 14, 15],
        [0, 6, 7, 8, 9],
        [11, 17, 18, 19, 20],
    ]
    assert torch.equal(crowd.cut(text, 20), text)


def test_a_crowd_reads_more_text(crowded: npt.Workspace) -> None:
    engine = crowded.engine
    crowded.inject_all(FACTS[:2], names=["one", "two"])
    assert "more_text" not in vars(engine)
    crowded.inject_all(FACTS, names=["a", "b", "c"])
    assert torch.equal(engine.more_text[: len(engine.text[0])], engine.text[0])
    assert len(engine.more_text) > 2 * len(engine.text[0])
