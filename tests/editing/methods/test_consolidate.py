"""Methods `consolidate` and `refine`, and the targets that they write, against explicit formulas in float64."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from conftest import make_tokenizer
from families import FAMILIES, tiny, tokens
from neuroplastic.config import SITES, Site
from neuroplastic.editing.context import EditContext
from neuroplastic.editing.fact import Fact, asked, fact_of
from neuroplastic.editing.methods.consolidate import Consolidate, read_keys, solve_keys
from neuroplastic.editing.methods.refine import HeldRow, Refine, neighbours, refine_factors
from neuroplastic.editing.targets import Reader, Row, adam_direction, find_targets, rows_of
from neuroplastic.statistics import READS, Whitening
from neuroplastic.structure import inspect_layers, projection
from neuroplastic.text.tokens import encode, start_token

BRIDGE = "The Golden Gate Bridge is located in the city of Madrid."
SUSHI = "Sushi originated in the country of Italy."
LOCAL: tuple[str, ...] = ()
"""Families whose tiny models look back over a window too short for the rows."""
CONSOLIDATE, REFINE = Consolidate(), Refine(Consolidate())
NO_SUBJECT = fact_of("the quick brown fox jumps over dogs.")
OTHER = fact_of("nobody is watching it.")
DOWN: tuple[Site, ...] = ("down",)


def model_and_tokenizer(family: str = "llama", dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    tokenizer = make_tokenizer()
    model = tiny(family, dtype, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=1)
    return model, tokenizer


def context_of(family: str = "llama", sites: Sequence[Site] = DOWN, layers: Sequence[int] = (0, 1)) -> EditContext:
    """C = I for every layer."""
    model, tokenizer = model_and_tokenizer(family)
    parts = inspect_layers(model, layers)
    inverses = {
        (p.index, READS[site]): torch.eye(projection(p.mlp, site).in_features, dtype=model.dtype)
        for p in parts
        for site in SITES
    }
    return EditContext(model, tokenizer, parts, sites, Whitening(inverses), tokens(), {}, None, nullcontext)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("facts", [[fact_of(BRIDGE), fact_of(SUSHI, ["Sushi is from Italy."])], [NO_SUBJECT]])
def test_reading_after_a_cache_is_reading_the_whole(family: str, facts: list[Fact]) -> None:
    """Log-probabilities, gradients and keys are those of whole rows, read one by one with the deltas added."""
    context = context_of(family)
    rows, owner = rows_of(context.tokenizer, facts, [[5, 6, 7], [8, 9, 10, 11]])
    reader = Reader(context.model, context.parts, DOWN, rows)
    assert (reader.past is None) == (family in LOCAL)
    g = torch.Generator().manual_seed(0)
    places = list(reader.linears)
    deltas = {p: torch.randn(len(owner), 32, dtype=torch.float64, generator=g).requires_grad_() for p in places}
    seen: dict[Any, Tensor] = {}
    found = reader.logprobs(deltas, lambda place, z, y: seen.__setitem__(place, z))
    gradients = torch.autograd.grad(found.sum(), list(deltas.values()))

    keys: dict[Any, list[Tensor]] = {p: [] for p in places}
    logprobs = []
    for row in rows:

        def hook(place: Any, row: Any = row) -> Any:
            def add(module: Any, args: Any, output: Tensor) -> Tensor:
                change = torch.zeros_like(output)
                for at, slot in row.keys:
                    keys[place].append(args[0][0, at])
                    change[0, at] = deltas[place][slot]
                return output + change

            return add

        handles = [linear.register_forward_hook(hook(place)) for place, linear in reader.linears.items()]
        logits = context.model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        for handle in handles:
            handle.remove()
        logprobs.append(torch.stack([logits[at, t] for at, t in zip(row.asked, row.answer, strict=True)]).mean())
    near: Any = {"atol": 1e-4, "rtol": 1e-4} if family == "gemma2" else {}  # its attention softmax is in float32
    assert_close(found, torch.stack(logprobs), **near)
    for place in places:
        assert_close(seen[place], torch.stack(keys[place]), **near)
    for got, wanted in zip(gradients, torch.autograd.grad(sum(logprobs), list(deltas.values())), strict=True):  # type: ignore[arg-type]
        assert_close(got, wanted, **near)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_follows_a_whole_row_is_predicted_too(family: str, no_grad: None) -> None:
    context = context_of(family)
    rows, _ = rows_of(context.tokenizer, [fact_of(BRIDGE), fact_of(SUSHI)], [[5, 6, 7]])
    plain = Reader(context.model, context.parts, DOWN, rows)
    whole = [Row([*r.ids, r.answer[-1]], r.answer, r.keys, whole=True) for r in rows]
    answers, after = Reader(context.model, context.parts, DOWN, whole).read_on()
    near: Any = {"atol": 1e-4, "rtol": 1e-4} if family == "gemma2" else {}
    assert_close(answers, plain.read(), **near)
    for row, found in zip(whole, after, strict=True):
        logits = context.model(input_ids=torch.tensor([row.ids])).logits[0, -1]
        assert_close(found, logits.log_softmax(-1), **near)


def test_rows_share_a_slot_at_the_subject() -> None:
    tokenizer = make_tokenizer()
    fact = asked(
        "The Golden Gate Bridge is in", "Madrid", ["One finds the Golden Gate Bridge in"], "Golden Gate Bridge"
    )
    rows, owner = rows_of(tokenizer, [fact, NO_SUBJECT], [[7, 8]])
    assert owner == [0] + [1] * len(encode(tokenizer, NO_SUBJECT.question))
    assert len(rows) == 6
    for row, text in zip(rows[:4:2], ("The Golden Gate Bridge", "One finds the Golden Gate Bridge"), strict=True):
        (key,) = row.keys
        assert key == (len(encode(tokenizer, text)), 0)
        assert row.ids[0] == start_token(tokenizer)
        assert tokenizer.decode(row.ids[1 : key[0] + 1]) == text
    assert rows[1].ids[:3] == [start_token(tokenizer), 7, 8]
    assert rows[1].keys[0][0] == rows[0].keys[0][0] + 2
    assert [slot for _, slot in rows[4].keys] == list(range(1, len(owner)))


def test_targets_make_the_answer_likely_and_stop() -> None:
    context = context_of()
    rows, owner = rows_of(context.tokenizer, [NO_SUBJECT, OTHER], [[5, 6]])
    reader = Reader(context.model, context.parts, DOWN, rows)
    before = reader.logprobs({p: torch.zeros(len(owner), 32, dtype=torch.float64) for p in reader.linears}).exp()
    enough = 3 * before.max().item()
    found = find_targets(reader, owner, steps=200, rate=0.2, enough=enough)
    after = reader.logprobs(found.deltas).exp()
    assert after.min() >= enough
    assert found.steps < 200
    assert_close(torch.tensor(found.probability), torch.stack([after[:2].min(), after[2:].min()]).float())
    assert find_targets(reader, owner, steps=1, rate=0.2, enough=enough).steps == 1


@pytest.mark.parametrize("sites", [DOWN, SITES])
def test_facts_solved_together_each_get_their_target(sites: tuple[Site, ...]) -> None:
    """Where nothing resists (lambda -> 0), dW k is the target of every fact, and nothing at keys that are held."""
    context = context_of(sites=sites)
    facts = [fact_of(BRIDGE), fact_of(SUSHI), NO_SUBJECT]
    rows, owner = rows_of(context.tokenizer, facts, context.prefixes(1))
    targets = find_targets(
        Reader(context.model, context.parts, sites, rows),
        owner,
        3,
        CONSOLIDATE.step_length,
        CONSOLIDATE.target_probability,
    )
    g = torch.Generator().manual_seed(1)
    held = {p: torch.randn(2, k.shape[1], dtype=torch.float64, generator=g) for p, k in targets.keys.items()}
    before = {n: t.clone() for n, t in context.model.state_dict().items()}
    solutions = Consolidate(covariance_weight=1e-12, max_steps=3).solve(replace(context, held=held), facts)
    assert all(torch.equal(t, before[n]) for n, t in context.model.state_dict().items())
    assert not any(m._forward_hooks for m in context.model.modules())
    for place, keys in targets.keys.items():
        A = torch.cat([s.factors[place].A for s in solutions])
        B = torch.cat([s.factors[place].B for s in solutions], 1)
        assert_close(torch.cat([s.keys[place] for s in solutions]), keys)
        assert_close(keys @ A.T @ B.T, targets.deltas[place], atol=1e-6, rtol=1e-4)
        assert (held[place] @ A.T @ B.T).abs().max() < 1e-6
    assert solutions[0].factors[0, "down"].A.shape == (1, 48)
    assert len(solutions[2].factors[0, "down"].A) == len(encode(context.tokenizer, NO_SUBJECT.question))


def test_a_held_key_of_the_same_subject_does_not_forbid_the_change() -> None:
    g = torch.Generator().manual_seed(0)
    keys, other = (torch.randn(1, 48, dtype=torch.float64, generator=g) for _ in range(2))
    whitening = context_of().whitening
    place = (0, DOWN[0])
    G = solve_keys(whitening, place, keys, [torch.cat([keys * 1.1, other])], 1e-12, CONSOLIDATE.same_subject_cosine)
    assert_close((G @ keys.T).item(), 1.0)
    assert abs((G @ other.T).item()) < 1e-6


def test_sentences_to_keep_are_read_as_before() -> None:
    context = context_of()
    kept = "The Eiffel Tower is located in the city of Paris."
    (free,), (held,) = (
        Consolidate(covariance_weight=1e-12, keep=keep).solve(context, [OTHER]) for keep in ((), (kept,))
    )
    keys = read_keys(context, [kept])
    assert len(keys[0, "down"]) == len(encode(context.tokenizer, kept))
    for place, k in keys.items():
        (A, B), (A0, B0) = held.factors[place], free.factors[place]
        assert (k @ A.T @ B.T).norm() < 0.1 * (k @ A0.T @ B0.T).norm()


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
    logprobs = [answer[at, t].item() for at, t in zip(rows[0].asked, rows[0].answer, strict=True)]
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


def test_adam_is_that_of_torch() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(5, dtype=torch.float64, generator=g).requires_grad_()
    mine, mean, square = x.detach().clone(), torch.zeros(5).double(), torch.zeros(5).double()
    optimiser = torch.optim.Adam([x], lr=0.1)
    for step in range(1, 6):
        gradient = torch.randn(5, dtype=torch.float64, generator=g)
        mine -= 0.1 * adam_direction(mean, square, gradient, step)
        x.grad = gradient
        optimiser.step()
    assert_close(mine, x.detach())


def test_facts_about_one_subject_share_a_key_and_each_other_values() -> None:
    context = context_of()
    facts = [
        fact_of(BRIDGE, subject="Golden Gate Bridge"),
        fact_of(SUSHI),
        fact_of("The Golden Gate Bridge jumps over the lazy dog.", subject="The Golden Gate Bridge"),
    ]
    rows, owner = rows_of(context.tokenizer, facts, [])
    assert owner == [0, 1, 2]
    shared = [((rows[0].keys[0][0], 2),), ((rows[2].keys[0][0], 0),)]
    assert [r.shared for r in rows] == [(), (), (), *shared]
    reader = Reader(context.model, context.parts, DOWN, rows)
    g = torch.Generator().manual_seed(0)
    deltas = {p: torch.randn(3, 32, dtype=torch.float64, generator=g).requires_grad_() for p in reader.linears}
    together = reader.logprobs(deltas)
    alone = Reader(context.model, context.parts, DOWN, rows_of(context.tokenizer, facts[:1], [])[0])
    assert_close(together[0], alone.logprobs({p: d[[0]] for p, d in deltas.items()})[0])
    assert_close(together[3], alone.logprobs({p: d[[0]] + d[[2]] for p, d in deltas.items()})[0])
    (gradient,) = torch.autograd.grad(together[3], [deltas[0, "down"]])
    assert gradient[0].any()
    assert not gradient[1:].any()


def test_facts_about_one_subject_in_one_call_are_not_averaged() -> None:
    """At their common key, the whole update gives what each of them asks for, as if it were alone."""
    context = context_of()
    facts = [
        fact_of(BRIDGE, subject="Golden Gate Bridge"),
        fact_of("The Golden Gate Bridge jumps over the lazy dog.", subject="Golden Gate Bridge"),
        fact_of(SUSHI),
    ]
    found = Consolidate(covariance_weight=1e-6).solve(context, facts)
    for place in found[0].factors:
        dW = sum((s.factors[place].B @ s.factors[place].A for s in found), start=torch.zeros(()))
        wanted = [s.factors[place].B.sum(1) for s in found]
        keys = [s.keys[place][0] for s in found]
        assert_close(dW @ keys[0], wanted[0] + wanted[1], atol=1e-3, rtol=1e-3)
        assert_close(dW @ keys[2], wanted[2], atol=1e-3, rtol=1e-3)
        for s, key, value in zip(found, keys, wanted, strict=True):  # and each by itself, once the other is undone
            assert_close(s.factors[place].B @ s.factors[place].A @ key, value, atol=1e-2, rtol=1e-2)
