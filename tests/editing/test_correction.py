"""The gradient steps of editing/correction.py, on functions whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from neuroplastic.editing.methods.correction import BETA, CAP, FAR, SPARE, STEPS, Said, correct


def nothing_strayed(answer: Tensor) -> Said:
    return Said(answer, torch.zeros_like(answer))


def linear(G: Tensor, offset: Tensor, counted: list[int] | None = None) -> Callable[[Tensor], Said]:
    """log p = offset + G . V, but no more than 0 [1, n]."""

    def said(V: Tensor) -> Said:
        if counted is not None:
            counted.append(1)
        return nothing_strayed((offset + (G * V).sum((1, 2))).clamp_max(0)[None])

    return said


def test_a_linear_log_probability_is_reached_in_one_step() -> None:
    torch.manual_seed(0)
    V, G = torch.randn(1, 2, 5).double() * 10, torch.randn(1, 2, 5).double()
    offset = -1 - (G * V).sum((1, 2))  # log p is -1 at V
    found = correct(linear(G, offset), V, 0.8)
    assert found.steps.tolist() == [1]
    assert math.isclose(linear(G, offset)(found.V).answer.item(), math.log(0.8) / 2, abs_tol=1e-9)
    moved = found.V - V
    assert torch.allclose(moved / moved.norm(), G / G.norm())


def test_a_step_is_bounded_and_what_answers_is_left_alone() -> None:
    torch.manual_seed(0)
    V, G = torch.randn(2, 2, 5).double(), 0.01 * torch.randn(2, 2, 5).double()
    offset = torch.tensor([-50.0, -0.1]).double() - (G * V).sum((1, 2))
    one = correct(linear(G, offset), V, 0.8, most=1)
    assert one.steps.tolist() == [1, 0]
    assert math.isclose((one.V - V)[0].norm().item(), CAP * V[0].norm().item(), rel_tol=1e-9)
    assert torch.equal(one.V[1], V[1])
    counted: list[int] = []
    many = correct(linear(G, offset, counted), V, 0.8)
    assert many.steps.tolist() == [STEPS, 0]
    assert len(counted) == STEPS + 1
    assert (many.V - V)[0].norm() < STEPS * CAP * V[0].norm()


def test_a_gradient_of_nothing_moves_nothing_however_long_the_values() -> None:
    V = 1e4 * torch.ones(1, 2, 5)
    found = correct(lambda V: nothing_strayed((0 * V.sum((1, 2)) - 3)[None]), V, 0.8)
    assert torch.equal(found.V, V)


def test_the_worst_row_decides() -> None:
    V, g = torch.ones(1, 1, 2).double(), torch.tensor([1.0, 0.0]).double()

    def said(V: Tensor) -> Said:
        return nothing_strayed(torch.stack([(V @ g)[:, 0] - 1, (V @ g)[:, 0] - 1.4]))  # 0 and -.4 at first

    found = correct(said, V, 0.8)
    assert found.steps.item() > 0
    assert said(found.V).answer.min() >= math.log(0.8)


def test_what_follows_the_answer_is_led_back_to_what_it_was() -> None:
    """Two directions: one makes the answer likelier, the other lets the model stray behind it."""
    towards, away = torch.eye(2).double()
    V = torch.tensor([[[0.0, 30.0]]]).double()

    def said(V: Tensor) -> Said:
        return Said((V @ towards)[None, :, 0] - 0.5, (V @ away)[None, :, 0] / 10)

    found = correct(said, V, 0.8, most=1)
    moved = (found.V - V)[0, 0]
    g = towards - BETA / 10 * away
    assert torch.allclose(moved / moved.norm(), g / g.norm())
    wanted = (math.log(0.8) / 2 + 0.5 + BETA * (3 - SPARE)) / g.norm()
    assert wanted < CAP * 30  # so that it is Polyak's length that is seen
    assert math.isclose(moved.norm().item(), wanted.item(), rel_tol=1e-9)


def test_steps_go_on_until_the_answer_follows_and_little_is_strayed() -> None:
    V, towards, away = torch.tensor([[[0.0, 3.0]]]).double(), *torch.eye(2).double()

    def said(V: Tensor) -> Said:
        return Said((V @ towards - 0.5)[None, :, 0].clamp_max(0), (V @ away)[None, :, 0].clamp_min(0))

    found = correct(said, V, 0.8)
    assert said(found.V).answer.item() >= math.log(0.8)
    assert said(found.V).strayed.item() <= FAR < 3
    assert 0 < found.steps.item() < STEPS


def test_a_gradient_of_nothing_moves_nothing() -> None:
    V = torch.randn(1, 2, 5)
    found = correct(lambda V: nothing_strayed(0 * V.sum((1, 2))[None] - 3), V, 0.8)
    assert torch.equal(found.V, V)


def test_what_strays_little_is_left_alone() -> None:
    V, towards, away = torch.tensor([[[1.0, SPARE / 2]]]).double(), *torch.eye(2).double()
    found = correct(lambda V: Said((V @ towards - 2)[None, :, 0], (V @ away)[None, :, 0]), V, 0.8)
    assert found.steps.item() > 0
    assert torch.equal((found.V - V) @ away, torch.zeros(1, 1).double())
