"""Values that are not enough: a few gradient steps, until the answer follows.

A part of an injector's values opens the way and does not yet name the answer; for an answer unlike all that it was
trained on, all of them do not. What is missing is little. Over a statement's rows r, with p_r the answer's probability
per token, and K_r the divergence KL(before || after) of what follows the answer from what the unedited model would say
there, its values V of all layers climb

    F = mean_r log p_r  -  BETA O          O = mean_r (K_r - SPARE)+          g = dF/dV          M <- g + MOMENTUM M

    V <- V + min(  (log p* - log p_min  +  BETA O) / |g|  ,  CAP DECAY^t |V_0|  )  M / |M|

Polyak's step length (Introduction to Optimization, 1987, section 5.3), which needs no learning rate: as far as a linear
F would need to reach its goal, and never further than a part of the values' own length. A statement stops where its
answer has the probability `enough` in each of its rows, and K is below FAR on average. Without O, what makes an answer
likely makes it likely again behind itself: the model says it over and over. SPARE leaves alone what does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

STEPS = 14
"""of the gradient, at most"""
CAP, DECAY, MOMENTUM = 0.2, 0.85, 0.5
BETA, SPARE, FAR = 0.3, 0.25, 0.3
"""What straying behind the answer weighs; nats of it that cost nothing; nats above which steps go on in any case."""


class Said(NamedTuple):
    """What a model says in n statements' rows with some values, in nats."""

    answer: Tensor
    """log p, the answer's, per token [rows, n]"""
    strayed: Tensor
    """K, of what it says next [rows, n]"""


class Corrected(NamedTuple):
    V: Tensor
    """[n, L, d]"""
    steps: Tensor
    """[n]: how many each took"""


def correct(said: Callable[[Tensor], Said], V: Tensor, enough: float, most: int = STEPS) -> Corrected:
    """Steps on values V [n, L, d], at most so many."""
    V, M = V.detach(), torch.zeros_like(V)
    longest = CAP * _length(V)
    steps = torch.zeros(len(V), dtype=torch.long, device=V.device)
    for t in range(most + 1):
        with torch.set_grad_enabled(t < most):
            given = V.clone().requires_grad_(t < most)
            answer, strayed = said(given)
            over = (strayed - SPARE).clamp_min(0).mean(0)
            F = answer.mean(0) - BETA * over
        worst, away = answer.detach().amin(0), strayed.detach().mean(0)
        short = (worst < math.log(enough)) | (away > FAR)
        if t == most or not short.any():
            break
        (g,) = torch.autograd.grad(F, given, torch.ones_like(F))
        M = g + MOMENTUM * M
        # p* is between enough and 1
        wanted = (math.log(enough) / 2 - worst).clamp_min(0) + BETA * over.detach()
        length = torch.where(short, torch.minimum(wanted / _length(g), longest * DECAY**t), 0.0)
        V = V + length[:, None, None] * (M / _length(M)[:, None, None])
        steps += short
    return Corrected(V, steps)


def _length(V: Tensor) -> Tensor:
    """|V| of each statement [n]; above 0, so that a gradient of nothing moves nothing."""
    return V.flatten(1).norm(dim=1).clamp_min(torch.finfo(V.dtype).tiny)
