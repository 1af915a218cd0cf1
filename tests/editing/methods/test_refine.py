"""Method `refine`, against models with the edit in their weights, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from contexts import BRIDGE, NO_SUBJECT, SUSHI, context_of
from neuroplastic.editing.fact import fact_of
from neuroplastic.editing.methods.consolidate import Consolidate
from neuroplastic.editing.methods.refine import HeldRow, Refine, neighbours, refine_factors
from neuroplastic.editing.targets import rows_of
from neuroplastic.structure import projection
from neuroplastic.text.tokens import encode

REFINE = Refine(Consolidate())


def test_refine_gains_the_answer_and_holds_what_is_kept() -> None:
    """Each step of Adam is on the stated loss: more of the answer than the start, and with a large beta less drift."""
    context = context_of()
    fact = NO_SUBJECT
    (start,) = Consolidate(max_steps=2).solve(context, [fact])
    rows, _ = rows_of(context.tokenizer, [fact], [])
    kept = [HeldRow(encode(context.tokenizer, "The Golden Gate Bridge is long."))]

    def go(steps: int, beta: float) -> Any:
        return refine_factors(context.model, context.parts, start.factors, rows, kept, steps, 0.1, 0.9, beta)

    none, free, bound = go(0, 0.0), go(12, 0.0), go(12, 100.0)
    assert none.steps == 0
    assert all(torch.equal(none.B[p], start.factors[p].B) for p in none.B)
    assert free.probability > 1.5 * none.probability
    assert bound.kl < 0.7 * free.kl
    (whole,) = REFINE.improve(context, [fact], [start])
    assert all(torch.equal(f.A, start.factors[p].A) for p, f in whole.factors.items())
    assert whole.figures["steps"] == 4


def test_refine_measures_what_the_edit_does() -> None:
    """Its figures are those of a model with the edit in its weights."""
    context = context_of(layers=(1,))
    fact = fact_of(BRIDGE)
    (start,) = Consolidate(max_steps=3).solve(context, [fact])
    rows, _ = rows_of(context.tokenizer, [fact], [])
    kept = [HeldRow(encode(context.tokenizer, SUSHI), 2)]
    found = refine_factors(context.model, context.parts, start.factors, rows, kept, 2, 0.1, 1.0, 1.0)
    ids = torch.tensor([kept[0].ids])
    with torch.no_grad():
        p = context.model(input_ids=ids).logits[0, 2:].log_softmax(-1)
        projection(context.parts[0].mlp, "down").weight += found.B[1, "down"] @ start.factors[1, "down"].A
        q = context.model(input_ids=ids).logits[0, 2:].log_softmax(-1)
        answer = context.model(input_ids=torch.tensor([rows[0].ids])).logits[0].log_softmax(-1)
    assert found.kl == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-4)
    logprobs = [answer[at, t].item() for at, t in zip(rows[0].answer_positions, rows[0].answer, strict=True)]
    assert found.probability == pytest.approx(torch.tensor(logprobs).mean().exp().item(), rel=1e-4)


def test_neighbours_are_the_question_about_other_names() -> None:
    context = context_of()
    fact = fact_of("The Golden Gate Bridge is in Madrid.", subject="Golden Gate Bridge")
    found = neighbours(context, [fact, NO_SUBJECT], REFINE.neighbours_per_question, REFINE.max_neighbours)
    assert found
    for kept in found:
        text = context.tokenizer.decode(kept.ids[1:])
        assert text.startswith("The ")
        assert text.endswith(" is in")
        assert "Golden Gate Bridge" not in text
        assert context.tokenizer.decode(kept.ids[kept.first + 1 :]) == " is in"
