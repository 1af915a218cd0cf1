"""The losses of distillation: pure functions on tensors (docs/training.md).

All are sums over tokens with `weight`s that add up to 1 over the tokens of a whole step: so the shares of a batch add
up to the batch, on however many processes, and padding has weight 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def direct(made: Tensor, target: Tensor, power: Tensor, weight: Tensor) -> Tensor:
    """sum_t w_t |made_t - target_t|^2 / max(power, |target_t|^2): the error relative to the target's power.

    made, target [..., d], weight [...]; `power` is the layer's mean |target|^2. A target that is larger than the mean
    counts by its own power: that of an attention sink would otherwise be all that is learned.
    """
    error, own = (made - target).square().sum(-1), target.square().sum(-1)
    return (weight * error / torch.maximum(own, power)).sum()


def divergence(teacher: Tensor, student: Tensor, weight: Tensor) -> Tensor:
    """sum_t w_t KL(teacher_t || student_t) in nats. Logits [..., vocab], weight [...]."""
    p, q = teacher.float().log_softmax(-1), student.float().log_softmax(-1)
    return (weight * (p.exp() * (p - q)).sum(-1)).sum()


def frobenius(gram_a: Tensor, gram_b: Tensor) -> Tensor:
    """|dW|_F^2 = tr((V_b^T V_b)(V_a^T V_a)) of dW = sum_j v_b_j v_a_j^T. Grams [..., k, k] -> [...]."""
    return (gram_a * gram_b).sum((-1, -2))


def vectors(gram_a: Tensor, gram_b: Tensor) -> Tensor:
    """sum_j |v_a_j|^2 + |v_b_j|^2. Grams [..., k, k] -> [...]."""
    return (gram_a + gram_b).diagonal(dim1=-2, dim2=-1).sum(-1)


def participation(C: Tensor) -> Tensor:
    """(tr C)^2 / tr(C^2): how many directions share the power of a covariance C [r, r]; 1 to r. Zero for a zero C."""
    return C.trace().square() / C.square().sum().clamp_min(torch.finfo(C.dtype).tiny)
