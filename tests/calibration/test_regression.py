"""Closed forms against explicit least squares, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from neuroplastic import NPTError
from neuroplastic.calibration.budget import as_overrides, spend
from neuroplastic.calibration.regression import inverse_root, linear_fit, subspace
from neuroplastic.config import PlasticityConfig

N, D = 200, 12


def rand(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_reduced_rank_regression_is_the_best_map_of_its_rank(rank: int) -> None:
    """Against the textbook: `lstsq`, then the best rank-r approximation of the weighed fitted values."""
    s = rand(N, D, seed=0) @ rand(D, D, seed=1)
    outputs = [s @ rand(D, 7, seed=2) + rand(N, 7, seed=3), s @ rand(D, 5, seed=4) + rand(N, 5, seed=5)]
    weights = [0.3, 2.0]
    found = subspace(s.T @ s / N, [w**0.5 * y.T @ s / N for w, y in zip(weights, outputs, strict=True)], ridge=0)
    A = found.rows[:rank]
    ours = torch.cat([s @ (y.T @ s / N @ A.T @ A).T for y in outputs], 1)

    scale = torch.tensor([weights[0]] * 7 + [weights[1]] * 5, dtype=torch.float64).sqrt()
    Y = torch.cat(outputs, 1)
    fitted = s @ torch.linalg.lstsq(s, Y * scale).solution
    U, S, Vh = torch.linalg.svd(fitted, full_matrices=False)
    assert_close(ours * scale, (U[:, :rank] * S[:rank]) @ Vh[:rank])
    error = ((Y - ours) * scale).square().sum() / N
    assert_close(((Y * scale).square().sum() / N - found.gains[:rank].sum()), error)
    assert_close(A @ (s.T @ s / N) @ A.T, torch.eye(rank, dtype=torch.float64))


def test_one_payload_is_the_singular_value_decomposition_of_the_specification() -> None:
    """Q = U_r S_r and A = V_r^T C^{-1/2} of W C^{1/2}."""
    e, W = rand(N, D, seed=0) @ rand(D, D, seed=1), rand(20, D, seed=2)
    C = e.T @ e / N
    root = torch.linalg.inv(inverse_root(C, 0))
    U, S, Vh = torch.linalg.svd(W @ root, full_matrices=False)
    found = subspace(C, [W @ C], ridge=0)
    A = found.rows[:4]
    assert_close(found.gains, S.square())
    assert_close(W @ C @ A.T @ A, (U[:, :4] * S[:4]) @ (Vh[:4] @ torch.linalg.inv(root)))


def test_a_scalar_is_fitted_by_least_squares() -> None:
    s, y = rand(N, D, seed=0), rand(N, seed=1)
    assert_close(linear_fit(s.T @ s / N, (y[:, None] * s).mean(0), ridge=0), torch.linalg.lstsq(s, y[:, None])[0][:, 0])


def test_directions_that_were_never_seen_stay_small() -> None:
    s = rand(N, D, seed=0)
    s[:, 0] = 0
    found = subspace(s.T @ s / N, [rand(5, D, seed=1) @ s.T @ s / N])
    assert found.rows.isfinite().all()
    assert not inverse_root(torch.zeros(3, 3, dtype=torch.float64)).any()


COST = dict.fromkeys((3, 5, 8), 10)


def test_a_budget_is_spent_as_well_as_it_can_be() -> None:
    gains = {3: [9.0, 1.0, 0.5], 5: [5.0, 4.0, 3.0], 8: [2.0, 1.5, 0.1]}
    bought = spend(gains, COST, budget=69)
    worth = {
        ranks: sum(sum(g[:r]) for g, r in zip(gains.values(), ranks, strict=True))
        for ranks in itertools.product((1, 2, 3), repeat=3)
        if sum(ranks) <= 6
    }
    assert tuple(bought.values()) == max(worth, key=worth.__getitem__)
    assert spend(gains, COST, budget=10**6) == {3: 3, 5: 3, 8: 3}
    assert spend(gains, {**COST, 5: 100}, budget=140) == {3: 2, 5: 1, 8: 2}  # what costs more has to be worth more
    with pytest.raises(NPTError, match="3 layers need at least 30"):
        spend(gains, COST, budget=29)


def test_ranks_are_overrides_of_a_configuration() -> None:
    ranks = {0: 7, 1: 7, 2: 3, 5: 3, 6: 3, 9: 1}
    texts = as_overrides(ranks)
    assert texts == ("0-1:np_rank=7", "2:np_rank=3", "5-6:np_rank=3", "9:np_rank=1")
    config = PlasticityConfig(generator="low_rank", layer_overrides=texts)
    assert {i: config.at(i).np_rank for i in config.overridden} == ranks
