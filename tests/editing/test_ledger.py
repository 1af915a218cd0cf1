"""The ledger: the same weights bit for bit in any order, and nothing changed by what does not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

import neuroplastic as npt
from families import tiny
from neuroplastic.editing.edit import Factors
from neuroplastic.editing.ledger import Ledger
from neuroplastic.surgery import base_state


def an_edit(factors: Any, sequence: int = 1) -> npt.Edit:
    return npt.Edit("e", "s", "consolidate", 1.0, "base", sequence, "now", factors)


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
