"""What an answer needs at its subject, found and read, against whole rows read one by one in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from conftest import make_tokenizer
from contexts import BRIDGE, DOWN, NO_SUBJECT, OTHER, SUSHI, context_of
from families import FAMILIES
from neuroplastic.editing.fact import Fact, asked, fact_of
from neuroplastic.editing.optimise import adam_direction
from neuroplastic.editing.targets import Reader, Row, find_targets, rows_of
from neuroplastic.text.tokens import encode, start_token

LOCAL: tuple[str, ...] = ()
"""Families whose tiny models look back over a window too short for the rows."""


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
        logprobs.append(
            torch.stack([logits[at, t] for at, t in zip(row.answer_positions, row.answer, strict=True)]).mean()
        )
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
