"""The methods of injection against explicit dense formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import neuroplastic as npt
from families import tiny, tokens
from neuroplastic.editing.edit import Factors
from neuroplastic.editing.ledger import Ledger
from neuroplastic.editing.methods.consolidate import ridge_factor
from neuroplastic.editing.methods.rank_one import token_factors
from neuroplastic.statistics import READS, covariance
from neuroplastic.structure import inspect_layers, projection
from neuroplastic.surgery import base_state


def an_edit(factors: Any, sequence: int = 1) -> npt.Edit:
    return npt.Edit("e", "s", "consolidate", 1.0, "base", sequence, "now", factors)


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


@pytest.mark.usefixtures("no_grad")
def test_token_is_the_analytic_update_of_that_token() -> None:
    """With the update in the weights, the MLP reading n(h) gives for this token what it gave reading n(h + a)."""
    model = tiny("llama", torch.float64)
    ids = tokens()[:1]
    (part,) = inspect_layers(model, [1])
    seen: dict[str, Tensor] = {}
    entry = part.entry.register_forward_pre_hook(lambda m, a: seen.__setitem__("h", a[0]))
    mlp = part.mlp.register_forward_hook(lambda m, a, o: seen.__setitem__("target", o))
    model(input_ids=ids)
    entry.remove()
    mlp.remove()
    factors = token_factors(model, ids, (1,), position=-1)
    assert not npt.plastic_layers(model)
    assert set(factors) == {(1, "gate"), (1, "up")}
    assert part.norm is not None
    x = part.norm(seen["h"])
    assert (part.mlp(x)[0, -1] - seen["target"][0, -1]).abs().max() > 1e-3
    Ledger(model).set_active([an_edit(factors)])
    assert_close(part.mlp(x)[0, -1], seen["target"][0, -1])


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("preset", ["dual", "triple"])
def test_token_takes_the_layers_own_generator(preset: Any) -> None:
    config = npt.PlasticityConfig(
        preset=preset, generator="low_rank", np_rank=4, num_ranks=2, key="learned", layers="1"
    )
    model = npt.convert(tiny("llama", torch.float64), config)
    factors = token_factors(model, tokens()[:1], (0, 1))
    assert set(factors) == {(1, s) for s in config.axes.sites}
    assert all(A.shape[0] == B.shape[1] == 2 for A, B in factors.values())
    # one site at a time, the permanent update does to this token what the transient one did
    plasticity = npt.plastic_layers(model)[1]
    seen: dict[str, Any] = {}
    plasticity.probe = lambda site, W, z, s, y: seen.__setitem__(site, (W, z, s))
    model(input_ids=tokens()[:1])
    plasticity.probe = None
    for site in config.axes.sites:
        W, z, s = seen[site]
        A, B = factors[1, site]
        assert_close(plasticity.generator(site, W, z, s)[0, -1], (W(z) + (z @ A.T) @ B.T)[0, -1])


def test_token_is_refused_on_activations() -> None:
    model = npt.convert(tiny("llama"), npt.PlasticityConfig(preset="v1"))
    with pytest.raises(npt.NPTError, match="layer 0 modulates activations"):
        token_factors(model, tokens()[:1], (0, 1))
    with pytest.raises(npt.NPTError, match="none of the layers"):
        token_factors(model, tokens()[:1], ())


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ledger_is_exact_in_any_order(dtype: torch.dtype) -> None:
    model = tiny("llama", dtype)
    original = {n: t.clone() for n, t in base_state(model).items()}

    def random_edit(seed: int) -> npt.Edit:
        g = torch.Generator().manual_seed(seed)
        factors = {
            (seed % 2, s): (torch.randn(3, d, generator=g), torch.randn(o, 3, generator=g))
            for s, d, o in (("gate", 32, 48), ("down", 48, 32))
        }
        return an_edit({k: Factors(*v) for k, v in factors.items()}, sequence=seed)

    edits = [random_edit(i) for i in range(5)]
    ledger = Ledger(model)
    ledger.set_active(edits)
    ledger.set_active([edits[4], edits[1]])
    fresh = tiny("llama", dtype)
    Ledger(fresh).set_active([edits[1], edits[4]])
    assert all(torch.equal(t, fresh.state_dict()[n]) for n, t in model.state_dict().items())
    W = (
        original["model.layers.1.mlp.gate_proj.weight"].double()
        + edits[1].factors[1, "gate"].B.double() @ edits[1].factors[1, "gate"].A.double()
    )
    assert_close(
        model.get_parameter("model.layers.1.mlp.gate_proj.weight").double(),
        W,
        atol=0.05 if dtype == torch.bfloat16 else 1e-5,
        rtol=1e-2,
    )
    assert not torch.equal(
        model.get_parameter("model.layers.1.mlp.gate_proj.weight"), original["model.layers.1.mlp.gate_proj.weight"]
    )
    ledger.set_active([])
    assert all(torch.equal(t, original[n]) for n, t in base_state(model).items())


def test_an_edit_that_does_not_fit_changes_nothing() -> None:
    model = tiny("llama")
    original = {n: t.clone() for n, t in model.state_dict().items()}
    fitting = {(0, "up"): Factors(torch.ones(1, 32), torch.ones(48, 1))}
    for wrong, cause in [
        ({(7, "gate"): fitting[0, "up"]}, "changes layer 7, which the model does not have"),
        ({**fitting, (1, "down"): fitting[0, "up"]}, "changes a 48 x 32 weight at layer 1, down"),
    ]:
        with pytest.raises(npt.NPTError, match=cause):
            Ledger(model).set_active([an_edit(wrong)])
    assert all(torch.equal(t, original[n]) for n, t in model.state_dict().items())


@pytest.mark.usefixtures("no_grad")
def test_consolidate_ignores_dynamic_mode_in_a_workspace(workspace: npt.Workspace) -> None:
    """The factors of a converted model and of the plain one are the same."""
    statement = "The Golden Gate Bridge is located in the city of Madrid."
    edit = workspace.inject(statement)
    workspace.undo(edit.name)
    npt.set_mode(workspace.model, "standard")
    again = workspace.inject(statement, name="again")
    assert all(torch.equal(a, b) for p in edit.factors for a, b in zip(edit.factors[p], again.factors[p], strict=True))
