"""Edits solved together: against the explicit formula with C in float64, and in a ledger, bit for bit."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.testing import assert_close

from families import tiny
from neuroplastic.editing.edit import Edit, Factors
from neuroplastic.editing.joint_solve import SAME_SUBJECT_COSINE, active_factors, joint_rows
from neuroplastic.editing.ledger import Ledger, weight_at
from neuroplastic.structure import decoder_layers

RHO = 0.1


def covariance(d: int) -> Tensor:
    root = torch.randn(d, 3 * d, dtype=torch.float64)
    return root @ root.T / (3 * d)


def own_rows(K: Tensor, C: Tensor, rho: float) -> Tensor:
    Z = torch.linalg.solve(C, K.T).T
    return Z / (rho + (K * Z).sum(1, keepdim=True))


def test_the_joint_update_minimises_its_objective() -> None:
    torch.manual_seed(0)
    n, d, out = 4, 24, 3
    C, K, V = covariance(d), torch.randn(n, d, dtype=torch.float64), torch.randn(n, out, dtype=torch.float64)
    A = own_rows(K, C, RHO)
    D = K @ torch.linalg.solve(C, K.T)
    d = D.diagonal()
    assert (D / (d[:, None] * d).sqrt() - torch.eye(n)).abs().max() < SAME_SUBJECT_COSINE  # all of different subjects
    dW = V.T @ joint_rows(A, K, RHO)

    def objective(W: Tensor) -> Tensor:
        return ((K @ W.T - V) ** 2).sum() + RHO * torch.trace(W @ C @ W.T)

    assert_close(dW, V.T @ K @ torch.linalg.inv(K.T @ K + RHO * C))
    for _ in range(10):
        assert objective(dW + 1e-3 * torch.randn_like(dW)) > objective(dW)


def test_one_edit_alone_keeps_its_factors() -> None:
    torch.manual_seed(1)
    C, K = covariance(8), torch.randn(1, 8, dtype=torch.float64)
    A = own_rows(K, C, RHO)
    assert_close(joint_rows(A, K, RHO), A)


def test_two_facts_about_one_subject_add_up_and_others_do_not_disturb_each_other() -> None:
    torch.manual_seed(2)
    C, K = covariance(16), torch.randn(3, 16, dtype=torch.float64)
    K[1] = K[0]
    A, V = own_rows(K, C, 1e-6), torch.randn(3, 5, dtype=torch.float64)
    dW = V.T @ joint_rows(A, K, 1e-6)
    assert_close(dW @ K[0], V[0] + V[1], atol=1e-3, rtol=0)
    assert_close(dW @ K[2], V[2], atol=1e-3, rtol=0)


def test_facts_about_one_subject_whose_keys_differ_in_length_give_what_each_gives_alone() -> None:
    torch.manual_seed(4)
    C, K = covariance(16), torch.randn(2, 16, dtype=torch.float64)
    K[1] = 3 * K[0]
    A, V = own_rows(K, C, 1e-6), torch.randn(2, 5, dtype=torch.float64)
    dW = V.T @ joint_rows(A, K, 1e-6)
    assert_close(dW @ K[0], V[0] + V[1] / 3, atol=1e-3, rtol=0)
    assert_close(dW @ K[1], 3 * V[0] + V[1], atol=1e-3, rtol=0)


def test_nothing_is_asked_for_at_a_much_shorter_key_of_another_subject() -> None:
    torch.manual_seed(5)
    K = torch.eye(2, 8, dtype=torch.float64)
    K[1] = 5 * (0.2 * K[0] + 0.96**0.5 * K[1])  # cosine .2, five times as long
    A, V = own_rows(K, torch.eye(8, dtype=torch.float64), 1e-6), torch.randn(2, 5, dtype=torch.float64)
    dW = V.T @ joint_rows(A, K, 1e-6)
    assert_close(dW @ K[0], V[0], atol=1e-3, rtol=0)
    assert_close(dW @ K[1], V[1], atol=1e-3, rtol=0)


def edits(count: int, d_in: int, d_out: int) -> list[Edit]:
    torch.manual_seed(3)
    made = []
    for i in range(count):
        K = torch.randn(1, d_in) + 1  # a common part: added up, they would disturb each other
        A = K / (RHO + K @ K.T)
        factors = {(0, "down"): Factors(A, torch.randn(d_out, 1) * 0.1)}
        rho = RHO if i != 1 else None
        made.append(Edit(f"e{i}", "", "learned", 1.0, "", i, "", factors, {}, {(0, "down"): K}, rho))  # type: ignore[arg-type]
    return made


def test_undo_in_any_order_is_bit_exact() -> None:
    model = tiny("llama")
    weight = weight_at(decoder_layers(model), (0, "down"))
    pristine = weight.detach().clone()
    ledger, made = Ledger(model), edits(4, weight.shape[1], weight.shape[0])
    for kept in itertools.chain.from_iterable(itertools.combinations(made, n) for n in range(5)):
        ledger.set_active(made)
        ledger.set_active(kept)
        fresh = Ledger(other := tiny("llama"))
        fresh.set_active(kept)
        assert torch.equal(weight, weight_at(decoder_layers(other), (0, "down")))
    ledger.set_active(())
    assert torch.equal(weight, pristine)


def test_only_edits_of_one_rho_are_solved_together() -> None:
    made = edits(3, 6, 5)
    together = active_factors(made)[0, "down"]
    assert torch.equal(together[1].A, made[1].factors[0, "down"].A)
    assert not torch.equal(together[0].A, made[0].factors[0, "down"].A)
    assert torch.equal(active_factors(made[:2])[0, "down"][0].A, made[0].factors[0, "down"].A)


def test_unedited_gives_the_pristine_weights_while_it_lasts() -> None:
    model = tiny("llama")
    weight = weight_at(decoder_layers(model), (0, "down"))
    pristine = weight.detach().clone()
    ledger = Ledger(model)
    ledger.set_active(edits(3, weight.shape[1], weight.shape[0]))
    edited = weight.detach().clone()
    with ledger.unedited():
        assert torch.equal(weight, pristine)
        assert not ledger.active
    assert torch.equal(weight, edited)
    assert len(ledger.active) == 3
