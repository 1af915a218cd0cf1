"""The gradient steps of editing/methods/correction.py, on functions whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from neuroplastic.editing.methods.correction import AnswerScores, GradientSteps, correct

STEPS = GradientSteps()


def nothing_strayed(answer: Tensor) -> AnswerScores:
    return AnswerScores(answer, torch.zeros_like(answer))


def linear(G: Tensor, offset: Tensor, counted: list[int] | None = None) -> Callable[[Tensor], AnswerScores]:
    """log p = offset + G . V, but no more than 0 [1, n]."""

    def scores(V: Tensor) -> AnswerScores:
        if counted is not None:
            counted.append(1)
        return nothing_strayed((offset + (G * V).sum((1, 2))).clamp_max(0)[None])

    return scores


def test_a_linear_log_probability_is_reached_in_one_step() -> None:
    torch.manual_seed(0)
    V, G = torch.randn(1, 2, 5).double() * 10, torch.randn(1, 2, 5).double()
    offset = -1 - (G * V).sum((1, 2))  # log p is -1 at V
    found = correct(linear(G, offset), V, 0.8, STEPS)
    assert found.steps.tolist() == [1]
    assert math.isclose(linear(G, offset)(found.V).answer.item(), math.log(0.8) / 2, abs_tol=1e-9)
    moved = found.V - V
    assert torch.allclose(moved / moved.norm(), G / G.norm())


def test_a_step_is_bounded_and_what_answers_is_left_alone() -> None:
    torch.manual_seed(0)
    V, G = torch.randn(2, 2, 5).double(), 0.01 * torch.randn(2, 2, 5).double()
    offset = torch.tensor([-50.0, -0.1]).double() - (G * V).sum((1, 2))
    one = correct(linear(G, offset), V, 0.8, replace(STEPS, max_steps=1))
    assert one.steps.tolist() == [1, 0]
    assert math.isclose((one.V - V)[0].norm().item(), STEPS.longest_step * V[0].norm().item(), rel_tol=1e-9)
    assert torch.equal(one.V[1], V[1])
    counted: list[int] = []
    many = correct(linear(G, offset, counted), V, 0.8, STEPS)
    assert many.steps.tolist() == [STEPS.max_steps, 0]
    assert len(counted) == STEPS.max_steps + 1
    assert (many.V - V)[0].norm() < STEPS.max_steps * STEPS.longest_step * V[0].norm()


def test_a_gradient_of_nothing_moves_nothing_however_long_the_values() -> None:
    V = 1e4 * torch.ones(1, 2, 5)
    found = correct(lambda V: nothing_strayed((0 * V.sum((1, 2)) - 3)[None]), V, 0.8, STEPS)
    assert torch.equal(found.V, V)


def test_the_worst_row_decides() -> None:
    V, g = torch.ones(1, 1, 2).double(), torch.tensor([1.0, 0.0]).double()

    def scores(V: Tensor) -> AnswerScores:
        return nothing_strayed(torch.stack([(V @ g)[:, 0] - 1, (V @ g)[:, 0] - 1.4]))  # 0 and -.4 at first

    found = correct(scores, V, 0.8, STEPS)
    assert found.steps.item() > 0
    assert scores(found.V).answer.min() >= math.log(0.8)


def test_what_follows_the_answer_is_led_back_to_what_it_was() -> None:
    """Two directions: one makes the answer likelier, the other lets the model stray after it."""
    towards, away = torch.eye(2).double()
    V = torch.tensor([[[0.0, 30.0]]]).double()

    def scores(V: Tensor) -> AnswerScores:
        return AnswerScores((V @ towards)[None, :, 0] - 0.5, (V @ away)[None, :, 0] / 10)

    found = correct(scores, V, 0.8, replace(STEPS, max_steps=1))
    moved = (found.V - V)[0, 0]
    g = towards - STEPS.stray_weight / 10 * away
    assert torch.allclose(moved / moved.norm(), g / g.norm())
    wanted = (math.log(0.8) / 2 + 0.5 + STEPS.stray_weight * (3 - STEPS.free_stray)) / g.norm()
    assert wanted < STEPS.longest_step * 30  # so that it is Polyak's length that is seen
    assert math.isclose(moved.norm().item(), wanted.item(), rel_tol=1e-9)


def test_steps_go_on_until_the_answer_follows_and_little_is_strayed() -> None:
    V, towards, away = torch.tensor([[[0.0, 3.0]]]).double(), *torch.eye(2).double()

    def scores(V: Tensor) -> AnswerScores:
        return AnswerScores((V @ towards - 0.5)[None, :, 0].clamp_max(0), (V @ away)[None, :, 0].clamp_min(0))

    found = correct(scores, V, 0.8, STEPS)
    assert scores(found.V).answer.item() >= math.log(0.8)
    assert scores(found.V).strayed.item() <= STEPS.max_stray < 3
    assert 0 < found.steps.item() < STEPS.max_steps


def test_a_gradient_of_nothing_moves_nothing() -> None:
    V = torch.randn(1, 2, 5)
    found = correct(lambda V: nothing_strayed(0 * V.sum((1, 2))[None] - 3), V, 0.8, STEPS)
    assert torch.equal(found.V, V)


def test_what_strays_little_is_left_alone() -> None:
    V, towards, away = torch.tensor([[[1.0, STEPS.free_stray / 2]]]).double(), *torch.eye(2).double()
    found = correct(lambda V: AnswerScores((V @ towards - 2)[None, :, 0], (V @ away)[None, :, 0]), V, 0.8, STEPS)
    assert found.steps.item() > 0
    assert torch.equal((found.V - V) @ away, torch.zeros(1, 1).double())
