"""Reduced-rank regression from second moments: pure functions on matrices (docs/generators.md).

A generator reads s [d] through a code c = A s [r] that several payloads share, y_j ~ Q_j c with y_j [o_j]. Wanted are
the A and Q_j that minimise sum_j w_j E|y_j - Q_j A s|^2. With C = E[s s^T], S = C^{-1/2} and M_j = E[y_j s^T] S, the
stacked M = [sqrt(w_j) M_j] has the singular value decomposition U diag(sigma) V^T, and

    A = V_r^T S        Q_j = E[y_j c^T] = E[y_j s^T] A^T        error = sum_j w_j E|y_j|^2 - sum_{i<=r} sigma_i^2

(Izenman 1975). With one payload y = W s this is Q = U_r S_r, A = V_r^T C^{-1/2} of W C^{1/2}. Only V is needed, so it
is taken from the d x d matrix M^T M, however many outputs there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-6
"""Added to C's diagonal, in units of its mean: directions that the text never used get no large coefficients."""


@dataclass(frozen=True)
class Subspace:
    """All directions of the source in the order of their worth. Everything float64."""

    rows: Tensor
    """A for the full rank [d, d]; its first r rows are the best A of rank r, and E[c c^T] = I"""
    gains: Tensor
    """sigma_i^2 [d]: how much row i lowers the weighed error"""


def inverse_root(C: Tensor, ridge: float = RIDGE) -> Tensor:
    """(C + ridge mean(diag C) I)^{-1/2}, symmetric; C [d, d] positive semidefinite. Zero for a zero C."""
    values: Tensor
    vectors: Tensor
    values, vectors = torch.linalg.eigh(C)
    values = values.clamp_min(0) + ridge * C.diagonal().mean()
    root = torch.where(values > 0, values.clamp_min(torch.finfo(C.dtype).tiny).rsqrt(), 0)
    return (vectors * root) @ vectors.T


def subspace(C: Tensor, weighed: Iterable[Tensor], ridge: float = RIDGE) -> Subspace:
    """The directions of the source s, best first. C = E[s s^T] [d, d]; `weighed` holds sqrt(w_j) E[y_j s^T] [o_j, d].

    A ridge in C makes the gains a little smaller than those of an exact least-squares fit.
    """
    S = inverse_root(C, ridge)
    K = torch.zeros_like(C)
    for cross in weighed:
        M = cross @ S
        K += M.T @ M
    values, vectors = torch.linalg.eigh(K)
    return Subspace(vectors.flip(1).T @ S, values.flip(0).clamp_min(0))


def linear_fit(C: Tensor, cross: Tensor, ridge: float = RIDGE) -> Tensor:
    """The row w [d] that predicts a scalar y from s: w = E[y s^T] C^{-1}, with the same ridge. cross [d]."""
    S = inverse_root(C, ridge)
    return S @ (S @ cross)
