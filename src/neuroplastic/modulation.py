"""The mathematics of modulation: pure functions on tensors, no modules.

Symbols (shapes in brackets; `...` stands for batch and time, usually B, T):

    h [..., d]        residual stream entering the layer      a [..., d]     attention output
    x = n(h)          MLP input without attention             x_c = n(h + a) MLP input with attention
    z [..., d_in]     what a projection reads                 W [d_out, d_in] its weight
    v_a [..., k, d_in], v_b [..., k, d_out]                   k rank-1 components of one token and site

A weight update of one token is dW = sum_k v_b v_a^T. It is never formed: (W + dW) z = W z + sum_k v_b (v_a . z).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "code_gram",
    "compress",
    "effective_number",
    "frobenius_norm",
    "gate_response",
    "gated_effect",
    "inner_product",
    "modulate_activation",
    "rank_k_effect",
    "residual_growth",
    "self_gram",
    "self_key",
]


def self_key(z: Tensor) -> Tensor:
    """v_a = z / |z|^2, so that v_a . z = 1. z [..., d_in] -> [..., d_in]; a zero z gives a zero key.

    The square is taken in float32 at least: |z|^2 overflows float16 and is coarse in bfloat16.
    """
    wide = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
    power = wide.square().sum(-1, keepdim=True)
    return (wide / power.clamp_min(torch.finfo(wide.dtype).tiny)).to(z.dtype)


def rank_k_effect(v_a: Tensor, v_b: Tensor, z: Tensor) -> Tensor:
    """dW z = sum_k v_b_k (v_a_k . z).

    v_a [..., k, d_in], v_b [..., k, d_out], z [..., d_in] -> [..., d_out]. No (d_out, d_in) tensor is formed.
    """
    c = torch.einsum("...ki,...i->...k", v_a, z)
    return torch.einsum("...ko,...k->...o", v_b, c)


def gated_effect(x: Tensor, A: Tensor, up: Tensor, width: Tensor, V: Tensor) -> Tensor:
    """What gated units add to the output of an MLP that reads x:

        sum_i v_i phi_i,    phi_i = u min(max(p_i, 0), w_i u) / w_i,    p_i = a_i . x,    u = b . x

    x [..., d], A [n, d] the rows a_i, up [d] the direction b, width [n] the w_i > 0, V [n, d] the v_i -> [..., d].
    Where every p_i <= 0 the result is exactly 0.
    """
    return gate_response(x @ A.T, (x @ up)[..., None], width) @ V


def gate_response(p: Tensor, u: Tensor, width: Tensor) -> Tensor:
    """phi = u min(max(p, 0), w u) / w, of tensors that broadcast against each other: 0 for p <= 0, and 1 for p >= w
    where u = 1."""
    return u * torch.minimum(p.clamp_min(0), (width * u).clamp_min(0)) / width


def self_gram(z: Tensor, k: int) -> Tensor:
    """V_a^T V_a of k self keys z/|z|^2: 1/|z|^2 everywhere. z [..., d_in] -> [..., k, k]."""
    power = z.square().sum(-1).clamp_min(torch.finfo(z.dtype).tiny)
    return power.reciprocal()[..., None, None].expand(*power.shape, k, k)


def code_gram(code: Tensor, M: Tensor, k: int) -> Tensor:
    """V^T V of the vectors v_j = M_j code, without forming them: code^T (M_i^T M_j) code.

    code [..., r], M [d, k r] the stacked M_j -> [..., k, k]. Forming the vectors costs d k r per token, this (k r)^2.
    """
    r = code.shape[-1]
    G = (M.T @ M).view(k, r, k, r)
    half = torch.einsum("irjs,...s->...irj", G, code)
    return torch.einsum("...irj,...r->...ij", half, code)


def residual_growth(h: Tensor, a: Tensor) -> Tensor:
    """rho / rho' = rms(h) / rms(h + a): how much RMSNorm shrinks h once attention is added. [..., d] -> [..., 1].

    For RMSNorm, W n(h + a) = (rho / rho') W n(h) + W diag(w) a / rho'. Zero if h + a is zero.
    """
    after = (h + a).square().mean(-1, keepdim=True)
    return (h.square().mean(-1, keepdim=True) / after.clamp_min(torch.finfo(h.dtype).tiny)).sqrt()


def modulate_activation(y: Tensor, d_mult: Tensor | None, d_add: Tensor | None) -> Tensor:
    """y * (1 + d_mult) + d_add, either part optional. y, d_add [..., f], d_mult [..., f] or [..., 1]."""
    if d_mult is not None:
        y = y * (1 + d_mult)
    return y if d_add is None else y + d_add


def effective_number(w: Tensor) -> Tensor:
    """(sum_k w_k)^2 / sum_k w_k^2: how many of k components share the weight, 1 to k. w >= 0 [..., k] -> [...]."""
    return w.sum(-1).square() / w.square().sum(-1).clamp_min(torch.finfo(w.dtype).tiny)


def frobenius_norm(A: Tensor, B: Tensor) -> Tensor:
    """|B A|_F = sqrt(tr((B^T B)(A A^T))), without forming B A. A [rank, d_in], B [d_out, rank] -> scalar.

    Accumulated in float64, since the trace of two Gram matrices loses half the digits.
    """
    A, B = A.double(), B.double()
    return ((B.T @ B) * (A @ A.T)).sum().clamp_min(0).sqrt()


def inner_product(A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """<B A, D C> = tr((B A)^T D C) = sum((B^T D) * (A C^T)). A [m, d_in], B [d_out, m], C [n, d_in], D [d_out, n]."""
    return ((B.double().T @ D.double()) * (A.double() @ C.double().T)).sum()


def compress(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The best approximation of B A of rank at most `rank` (Eckart-Young), and what it drops.

    A [n, d_in], B [d_out, n] -> A' [rank', d_in] with orthonormal rows, B' [d_out, rank'], and |B A - B' A'|_F^2;
    rank' is min(rank, n, d_in, d_out). QR of both factors and an SVD of the small core, in float64: B A is never
    formed.
    """
    Q_b, R_b = torch.linalg.qr(B.double())
    Q_a, R_a = torch.linalg.qr(A.double().T)
    U, S, Vh = torch.linalg.svd(R_b @ R_a.T, full_matrices=False)
    dropped = S[rank:].square().sum().item()
    return (Vh[:rank] @ Q_a.T).to(A.dtype), (Q_b @ (U[:, :rank] * S[:rank])).to(B.dtype), dropped
