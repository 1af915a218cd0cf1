"""Edits that are solved together, each time the set of active ones changes, instead of being added up.

Edit i asks that a projection gives v_i more at its key k_i. Alone, its update is dW_i = v_i a_i^T with

    a_i = C^-1 k_i / ((1 + rho) d_i),    d_i = k_i . C^-1 k_i

Added up, the updates disturb each other: at k_i the others write sum_j v_j (a_j . k_i). Together, the update minimises
sum_i |dW k_i - t_i|^2 / d_i + rho tr(dW C dW^T), where t_i is what should come out at k_i:

    dW = T^T (M + rho I)^-1 (1 + rho) A,    M = (1 + rho) A K^T,    T = S V

(the closed form of MEMIT, Meng et al. 2210.07229, section 4.2, with keys of unit length under C^-1). M_ij is how far
key j excites edit i, and M_ii = 1. S is M without what lies below SAME: two facts about one subject have the same key,
and there both values are wanted; between other keys nothing is. One edit alone gives back its own factors, and so do
edits whose keys do not excite each other. C itself is not needed: A and K, which every edit keeps, say all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..config import Site

if TYPE_CHECKING:
    from .edit import Edit, Factors

Place = tuple[int, Site]
SAME = 0.5
"""A key that excites another edit this far is of the same subject."""


def solve_together(A: Tensor, K: Tensor, rho: float) -> Tensor:
    """(S^T (M + rho I)^-1 (1 + rho) A): the rows that take the place of A [n, d_in]; K [n, d_in], values untouched.

    In float64: of a thousand keys some lie close together.
    """
    own, keys = A.double() * (1 + rho), K.double()
    M = own @ keys.T
    S = torch.where(M.abs() >= SAME, M, torch.zeros_like(M))
    S.fill_diagonal_(1)
    eye = torch.eye(len(M), dtype=M.dtype, device=M.device)
    return (S.T @ torch.linalg.solve(M + rho * eye, own)).to(A.dtype)


def active_factors(edits: Sequence[Edit]) -> dict[Place, list[Factors]]:
    """What these edits, all active, put into the weights: per place the factors of each edit that changes it, in order.

    The same edits always give the same bits.
    """
    from .edit import Factors

    found: dict[Place, list[Factors]] = {}
    for place, changing in edits_by_place(edits).items():
        factors = {id(e): e.factors[place] for e in changing}
        for rho in dict.fromkeys(e.rho for e in changing if e.rho is not None):
            joint = [e for e in changing if e.rho == rho]
            if len(joint) > 1:
                A = torch.cat([e.factors[place].A for e in joint])
                K = torch.cat([e.keys[place] for e in joint])
                rows = solve_together(A, K, rho).split([len(e.factors[place].A) for e in joint])
                factors |= {id(e): Factors(a, e.factors[place].B) for e, a in zip(joint, rows, strict=True)}
        found[place] = [factors[id(e)] for e in changing]
    return found


def edits_by_place(edits: Sequence[Edit]) -> Mapping[Place, list[Edit]]:
    """The edits that change each place, in the given order; places sorted."""
    found: dict[Place, list[Edit]] = {}
    for edit in edits:
        for place in edit.factors:
            found.setdefault(place, []).append(edit)
    return dict(sorted(found.items()))
