"""Every formula against its explicit dense form, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from neuroplastic.modulation import frobenius_norm, modulate_activation, rank_k_effect, residual_growth, self_key


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_self_key_answers_one() -> None:
    z = rand(3, 5, 16)
    assert_close((self_key(z) * z).sum(-1), torch.ones(3, 5, dtype=torch.float64))


def test_the_self_key_of_nothing_is_nothing() -> None:
    assert torch.equal(self_key(torch.zeros(2, 4)), torch.zeros(2, 4))


def test_the_self_key_does_not_overflow_float16() -> None:
    z = torch.full((64,), 200.0, dtype=torch.float16)  # |z|^2 = 2.56e6
    assert_close((self_key(z) * z).float().sum(), torch.tensor(1.0), atol=0.02, rtol=0)


@pytest.mark.parametrize("k", [1, 3])
def test_rank_k_effect_is_the_dense_update(k: int) -> None:
    v_a, v_b, z = rand(2, 5, k, 8), rand(2, 5, k, 12, seed=1), rand(2, 5, 8, seed=2)
    dW = torch.einsum("btko,btki->btoi", v_b, v_a)
    assert_close(rank_k_effect(v_a, v_b, z), torch.einsum("btoi,bti->bto", dW, z))


def test_the_exact_update_turns_W_x_into_W_x_c() -> None:
    W, x, x_c = rand(12, 8), rand(4, 8, seed=1), rand(4, 8, seed=2)
    v_a, v_b = self_key(x)[:, None], (x_c @ W.T - x @ W.T)[:, None]
    assert_close(x @ W.T + rank_k_effect(v_a, v_b, x), x_c @ W.T)


def test_why_v2_has_its_form() -> None:
    """W n(h + a) = (rho / rho') W n(h) + W diag(w) a / rho', for RMSNorm with weight w."""
    W, w, h, a = rand(12, 8), rand(8, seed=1), rand(4, 8, seed=2), rand(4, 8, seed=3)

    def n(r: torch.Tensor) -> torch.Tensor:
        return w * r / r.square().mean(-1, keepdim=True).sqrt()

    rho_after = (h + a).square().mean(-1, keepdim=True).sqrt()
    gate = modulate_activation(n(h) @ W.T, residual_growth(h, a) - 1, (w * a / rho_after) @ W.T)
    assert_close(gate, n(h + a) @ W.T)


def test_modulate_activation_parts() -> None:
    y, mult, add = rand(3, 4), rand(3, 4, seed=1), rand(3, 4, seed=2)
    assert_close(modulate_activation(y, mult, add), y * (1 + mult) + add)
    assert torch.equal(modulate_activation(y, None, None), y)


def test_frobenius_norm_from_factors() -> None:
    A, B = rand(3, 8), rand(12, 3, seed=1)
    assert_close(frobenius_norm(A, B), (B @ A).norm())
