"""Gradient steps on an injector's values, until the answer follows.

A fraction of an injector's values does not yet give the answer; for an answer unlike all that it was trained on, the
whole values do not either. Little is missing. Over a statement's rows r, with p_r the answer's probability per token,
and K_r the divergence KL(before || after) of what follows the answer from what the unedited model predicts there, the
steps on the values V of all layers maximise

    F = mean_r log p_r  -  BETA O          O = mean_r (K_r - FREE_STRAY)+        g = dF/dV        M <- g + MOMENTUM M

    V <- V + min(  (log p* - log p_min  +  BETA O) / |g|  ,  CAP DECAY^t |V_0|  )  M / |M|

Polyak's step length (Introduction to Optimization, 1987, section 5.3) needs no learning rate: a step is as long as a
linear F would need to reach its goal, and at most a fraction of the values' own length. A statement is finished when
its answer has the probability `enough` in each of its rows, and K is below MAX_STRAY on average. Without O, what makes
an answer likely makes it likely again after itself, and the model repeats it without end. Divergence below FREE_STRAY
costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class GradientSteps:
    """The number and the length of the steps."""

    max_steps: int = 14
    longest_step: float = 0.2
    """CAP: of the first step, as a part of the values' own length"""
    decay: float = 0.85
    """of the longest step, from one to the next"""
    momentum: float = 0.5
    stray_weight: float = 0.3
    """BETA: the weight of a nat of divergence after the answer"""
    free_stray: float = 0.25
    """nats of it that cost nothing"""
    max_stray: float = 0.3
    """nats above which steps continue in any case"""


class AnswerScores(NamedTuple):
    """What a model gives in n statements' rows with some values, in nats."""

    answer: Tensor
    """log p, the answer's, per token [rows, n]"""
    strayed: Tensor
    """K, of what the model predicts next [rows, n]"""


class Corrected(NamedTuple):
    V: Tensor
    """[n, L, d]"""
    steps: Tensor
    """[n]: the number that each took"""


def correct(scores_of: Callable[[Tensor], AnswerScores], V: Tensor, enough: float, how: GradientSteps) -> Corrected:
    """Steps on values V [n, L, d], until the answer has the probability `enough` in each row."""
    V, M = V.detach(), torch.zeros_like(V)
    longest = how.longest_step * _length(V)
    steps = torch.zeros(len(V), dtype=torch.long, device=V.device)
    for t in range(how.max_steps + 1):
        with torch.set_grad_enabled(t < how.max_steps):
            given = V.clone().requires_grad_(t < how.max_steps)
            answer, strayed = scores_of(given)
            over = (strayed - how.free_stray).clamp_min(0).mean(0)
            F = answer.mean(0) - how.stray_weight * over
        worst, away = answer.detach().amin(0), strayed.detach().mean(0)
        short = (worst < math.log(enough)) | (away > how.max_stray)
        if t == how.max_steps or not short.any():
            break
        (g,) = torch.autograd.grad(F, given, torch.ones_like(F))
        M = g + how.momentum * M
        # p* is between enough and 1
        wanted = (math.log(enough) / 2 - worst).clamp_min(0) + how.stray_weight * over.detach()
        length = torch.where(short, torch.minimum(wanted / _length(g), longest * how.decay**t), 0.0)
        V = V + length.to(V)[:, None, None] * (M / _length(M)[:, None, None])  # F may be wider than V
        steps += short
    return Corrected(V, steps)


def _length(V: Tensor) -> Tensor:
    """|V| of each statement [n]; above 0, so that a gradient of nothing moves nothing."""
    length: Tensor = V.flatten(1).norm(dim=1)
    return length.clamp_min(torch.finfo(V.dtype).tiny)
