"""Method `consolidate` against explicit formulas in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import neuroplastic as npt
from contexts import BRIDGE, DOWN, NO_SUBJECT, OTHER, SUSHI, context_of
from neuroplastic.config import SITES, Site
from neuroplastic.editing.fact import fact_of
from neuroplastic.editing.methods.consolidate import Consolidate, read_keys, ridge_factor, solve_keys
from neuroplastic.editing.targets import Reader, find_targets, rows_of
from neuroplastic.text.tokens import encode

CONSOLIDATE = Consolidate()


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_ridge_minimises_its_objective() -> None:
    """dW = R^T G is where the gradient of |K dW^T - R|^2 + lambda tr(dW C dW^T) is zero."""
    K, R, root, strength = rand(5, 8), rand(5, 6, seed=1), rand(8, 8, seed=2), 0.3
    C = root @ root.T + torch.eye(8, dtype=torch.float64)
    dW = (R.T @ ridge_factor(K, torch.linalg.solve(strength * C, K.T).T)).requires_grad_()
    ((K @ dW.T - R).square().sum() + strength * torch.trace(dW @ C @ dW.T)).backward()
    assert dW.grad is not None
    assert_close(dW.grad, torch.zeros_like(dW), atol=1e-10, rtol=0)


@pytest.mark.parametrize("sites", [DOWN, SITES])
def test_facts_solved_together_each_get_their_target(sites: tuple[Site, ...]) -> None:
    """Where nothing resists (lambda -> 0), dW k is the target of every fact, and nothing at keys that are held."""
    context = context_of(sites=sites)
    facts = [fact_of(BRIDGE), fact_of(SUSHI), NO_SUBJECT]
    rows, owner = rows_of(context.tokenizer, facts, context.prefixes(1))
    targets = find_targets(
        Reader(context.model, context.parts, sites, rows),
        owner,
        3,
        CONSOLIDATE.step_length,
        CONSOLIDATE.target_probability,
    )
    g = torch.Generator().manual_seed(1)
    held = {p: torch.randn(2, k.shape[1], dtype=torch.float64, generator=g) for p, k in targets.keys.items()}
    before = {n: t.clone() for n, t in context.model.state_dict().items()}
    solutions = Consolidate(covariance_weight=1e-12, max_steps=3).solve(replace(context, held=held), facts)
    assert all(torch.equal(t, before[n]) for n, t in context.model.state_dict().items())
    assert not any(m._forward_hooks for m in context.model.modules())
    for place, keys in targets.keys.items():
        A = torch.cat([s.factors[place].A for s in solutions])
        B = torch.cat([s.factors[place].B for s in solutions], 1)
        assert_close(torch.cat([s.keys[place] for s in solutions]), keys)
        assert_close(keys @ A.T @ B.T, targets.deltas[place], atol=1e-6, rtol=1e-4)
        assert (held[place] @ A.T @ B.T).abs().max() < 1e-6
    assert solutions[0].factors[0, "down"].A.shape == (1, 48)
    assert len(solutions[2].factors[0, "down"].A) == len(encode(context.tokenizer, NO_SUBJECT.question))


def test_a_held_key_of_the_same_subject_does_not_forbid_the_change() -> None:
    g = torch.Generator().manual_seed(0)
    keys, other = (torch.randn(1, 48, dtype=torch.float64, generator=g) for _ in range(2))
    whitening = context_of().whitening
    place = (0, DOWN[0])
    G = solve_keys(whitening, place, keys, [torch.cat([keys * 1.1, other])], 1e-12, CONSOLIDATE.same_subject_cosine)
    assert_close((G @ keys.T).item(), 1.0)
    assert abs((G @ other.T).item()) < 1e-6


def test_sentences_to_keep_are_read_as_before() -> None:
    context = context_of()
    kept = "The Eiffel Tower is located in the city of Paris."
    (free,), (held,) = (
        Consolidate(covariance_weight=1e-12, keep=keep).solve(context, [OTHER]) for keep in ((), (kept,))
    )
    keys = read_keys(context, [kept])
    assert len(keys[0, "down"]) == len(encode(context.tokenizer, kept))
    for place, k in keys.items():
        (A, B), (A0, B0) = held.factors[place], free.factors[place]
        assert (k @ A.T @ B.T).norm() < 0.1 * (k @ A0.T @ B0.T).norm()


def test_facts_about_one_subject_in_one_call_are_not_averaged() -> None:
    """At their common key, the whole update gives what each of them asks for, as if it were alone."""
    context = context_of()
    facts = [
        fact_of(BRIDGE, subject="Golden Gate Bridge"),
        fact_of("The Golden Gate Bridge jumps over the lazy dog.", subject="Golden Gate Bridge"),
        fact_of(SUSHI),
    ]
    found = Consolidate(covariance_weight=1e-6).solve(context, facts)
    for place in found[0].factors:
        dW = sum((s.factors[place].B @ s.factors[place].A for s in found), start=torch.zeros(()))
        wanted = [s.factors[place].B.sum(1) for s in found]
        keys = [s.keys[place][0] for s in found]
        assert_close(dW @ keys[0], wanted[0] + wanted[1], atol=1e-3, rtol=1e-3)
        assert_close(dW @ keys[2], wanted[2], atol=1e-3, rtol=1e-3)
        for s, key, value in zip(found, keys, wanted, strict=True):  # and each by itself, once the other is undone
            assert_close(s.factors[place].B @ s.factors[place].A @ key, value, atol=1e-2, rtol=1e-2)


@pytest.mark.usefixtures("no_grad")
def test_consolidate_ignores_dynamic_mode_in_a_workspace(workspace: npt.Workspace) -> None:
    """The factors of a converted model and of the plain one are the same."""
    statement = "The Golden Gate Bridge is located in the city of Madrid."
    edit = workspace.inject(statement)
    workspace.undo(edit.name)
    npt.set_mode(workspace.model, "standard")
    again = workspace.inject(statement, name="again")
    assert all(torch.equal(a, b) for p in edit.factors for a, b in zip(edit.factors[p], again.factors[p], strict=True))
