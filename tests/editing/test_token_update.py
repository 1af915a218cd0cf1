"""Updates of single tokens, and method `token`, against explicit dense formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import neuroplastic as npt
from families import tiny, tokens
from neuroplastic.editing.ledger import Ledger
from neuroplastic.editing.token_update import token_factors
from neuroplastic.structure import inspect_layers


def an_edit(factors: Any, sequence: int = 1) -> npt.Edit:
    return npt.Edit("e", "s", "consolidate", 1.0, "base", sequence, "now", factors)


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
