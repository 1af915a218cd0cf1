"""The joint solution of active edits, made anew each time their set changes, instead of adding the edits up.

Edit i asks that a projection gives v_i more at its key k_i. Alone, its update is dW_i = v_i a_i^T with

    a_i = Z_i / (rho + d_i),    Z_i = C^-1 k_i,    d_i = k_i . Z_i

which answers at its key by d_i / (rho + d_i). That is nearly the whole of v_i if the key is unlike ordinary text, whose
own d is d_in on average, and little if the key is like it, as at a common last token, where the update would act on
ordinary text as well. Added up, the updates disturb each other: at k_i the others write sum_j v_j (a_j . k_i).
Solved jointly, the update minimises sum_i |dW k_i - t_i|^2 + rho tr(dW C dW^T), where t_i is what should come out at
k_i:

    dW = T^T (D + rho I)^-1 Z,    D = Z K^T,    T = S V

(the closed form of MEMIT, Meng et al. 2210.07229, section 4.2). S_ij = D_ij / d_j, what edit j gives at k_i, if the
cosine of the two keys under C^-1 is at least SAME_SUBJECT_COSINE, else 0: two facts about one subject have the same
key, up to its length, and both values are wanted there; other keys share nothing. One edit alone gives back its own
factors, and so do edits whose keys have nothing in common. C itself is not needed: A, K and rho, which every edit
keeps, determine Z and D, because a_i . k_i = d_i / (rho + d_i).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..config import Place
from .edit import Edit, Factors

SAME_SUBJECT_COSINE = 0.5
"""Keys whose cosine is at least this are of one subject."""


def joint_rows(A: Tensor, K: Tensor, rho: float) -> Tensor:
    """S^T (D + rho I)^-1 Z: the rows that take the place of A [n, d_in]; K [n, d_in], values untouched.

    It is computed in float64, because among a thousand keys some lie close to each other.
    """
    rows, keys = A.double(), K.double()
    Z = rows * (rho / (1 - (rows * keys).sum(1, keepdim=True)))  # rho + d = rho / (1 - a . k)
    D = Z @ keys.T
    d = D.diagonal()
    cosine = D / (d[:, None] * d).sqrt()
    S = torch.where(cosine >= SAME_SUBJECT_COSINE, D / d, torch.zeros_like(D))
    eye = torch.eye(len(D), dtype=D.dtype, device=D.device)
    solved: Tensor = torch.linalg.solve(D + rho * eye, Z)
    return (S.T @ solved).to(A.dtype)


def active_factors(edits: Sequence[Edit]) -> dict[Place, list[Factors]]:
    """What these edits, all active, put into the weights: per place the factors of each edit that changes it, in order.

    The same edits always give the same bits.
    """
    found: dict[Place, list[Factors]] = {}
    for place, changing in edits_by_place(edits).items():
        factors = {id(e): e.factors[place] for e in changing}
        for rho in dict.fromkeys(e.rho for e in changing if e.rho is not None):
            joint = [e for e in changing if e.rho == rho]
            if len(joint) > 1:
                A = torch.cat([e.factors[place].A for e in joint])
                K = torch.cat([e.keys[place] for e in joint])
                rows = torch.split(joint_rows(A, K, rho), [len(e.factors[place].A) for e in joint])
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
