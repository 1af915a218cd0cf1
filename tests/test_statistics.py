"""Statistics of ordinary text against explicit dense formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import neuroplastic as npt
from families import tiny, tokens
from neuroplastic.statistics import READS, covariance
from neuroplastic.structure import inspect_layers, projection


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.usefixtures("no_grad")
def test_covariance_is_that_of_what_the_projections_read() -> None:
    model = tiny("llama", torch.float64)
    parts = inspect_layers(model, [0, 1])
    read: dict[Any, list[Tensor]] = {}
    for p in parts:
        p.mlp.register_forward_pre_hook(lambda m, a, i=p.index: read.setdefault((i, "x"), []).append(a[0]))
        projection(p.mlp, "down").register_forward_pre_hook(
            lambda m, a, i=p.index: read.setdefault((i, "m"), []).append(a[0])
        )
    model(input_ids=tokens())
    seen = {at: z[0][:, 1:].flatten(0, 1) for at, z in read.items()}
    found = covariance(model, parts, tokens(), batch_size=1)
    assert found.keys() == seen.keys()
    for at, z in seen.items():
        assert_close(found[at], z.T @ z / len(z))


def test_whitening_solves_the_covariance(workspace: npt.Workspace) -> None:
    """(C + ridge) solve(k) = k, for the covariance of the workspace's own statistics text."""
    from neuroplastic.statistics import RIDGE

    npt.set_mode(workspace.model, "standard")
    found = covariance(workspace.model, workspace.engine.parts, workspace.engine.text[0])
    for layer, site in ((0, "gate"), (1, "down")):
        C = found[layer, READS[site]].double()  # type: ignore[index]
        keys = rand(3, len(C))
        solved = workspace.engine.whitening.solve(layer, site, keys).double()  # type: ignore[arg-type]
        assert_close(solved @ (C + RIDGE * C.diagonal().mean() * torch.eye(len(C))), keys, atol=1e-3, rtol=0)


def test_the_first_edit_of_a_model_is_that_of_the_second_time_to_the_bit(fresh: Callable[..., npt.Workspace]) -> None:
    """What was just measured gives the same products as what is read from the cache."""
    first, second = (fresh(name).inject("Sushi originated in the country of Italy.") for name in ("one", "two"))
    assert first.factors.keys() == second.factors.keys()
    for place, (A, B) in first.factors.items():
        assert torch.equal(A, second.factors[place].A)
        assert torch.equal(B, second.factors[place].B)
