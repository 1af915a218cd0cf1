"""Values that are not enough: a few gradient steps, until the answer follows.

A part of an injector's values opens the way and does not yet name the answer; for an answer unlike all that it was
trained on, all of them do not. What is missing is little. With p the answer's probability per token, in the mean over
its rows, p_min in the worst of them, and g = d log p / dV, its values V of all layers move by

    V <- V + min(  (log p* - log p_min) / |g|  ,  CAP DECAY^t |V_0|  )  M / |M|        M <- g + MOMENTUM M

Polyak's step length (Introduction to Optimization, 1987, section 5.3), which needs no learning rate: as far as a linear
log p would need to reach p*, and never further than a part of the values' own length. A statement stops where its
answer has the probability `enough` in each of its rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

STEPS = 10
"""of the gradient, at most"""
CAP, DECAY, MOMENTUM = 0.2, 0.85, 0.5


class Corrected(NamedTuple):
    V: Tensor
    """[n, L, d]"""
    steps: Tensor
    """[n]: how many each took"""


def correct(logprobs: Callable[[Tensor], Tensor], V: Tensor, enough: float, most: int = STEPS) -> Corrected:
    """Steps on values V [n, L, d], at most so many; `logprobs` gives log p of each statement's rows [rows, n]."""
    V, M = V.detach(), torch.zeros_like(V)
    longest = CAP * _length(V)
    steps = torch.zeros(len(V), dtype=torch.long, device=V.device)
    for t in range(most + 1):
        with torch.set_grad_enabled(t < most):
            given = V.clone().requires_grad_(t < most)
            said = logprobs(given)
            mean = said.mean(0)
        worst = said.detach().amin(0)
        short = worst < math.log(enough)
        if t == most or not short.any():
            break
        (g,) = torch.autograd.grad(mean, given, torch.ones_like(mean))
        M = g + MOMENTUM * M
        wanted = (math.log(enough) / 2 - worst) / _length(g)  # p* is between enough and 1
        length = torch.minimum(wanted.clamp_min(0), longest * DECAY**t) / _length(M)
        V = V + torch.where(short, length, 0.0)[:, None, None] * M
        steps += short
    return Corrected(V, steps)


def _length(V: Tensor) -> Tensor:
    """|V| of each statement [n]; above 0, so that a gradient of nothing moves nothing."""
    return V.flatten(1).norm(dim=1).clamp_min(torch.finfo(V.dtype).tiny)
