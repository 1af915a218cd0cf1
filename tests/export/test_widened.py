"""Gated units as neurons of a wider model: the same logits, in models of several families, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import neuroplastic as npt
from families import FAMILIES, tiny, tokens
from injectors import with_injector
from neuroplastic.capture import capturing
from neuroplastic.editing.edit import Edit
from neuroplastic.editing.ledger import Ledger, units_by_layer
from neuroplastic.editing.units import Units
from neuroplastic.export import widened
from neuroplastic.export.widened import neurons, widen
from neuroplastic.structure import decoder_layers, mlp_of
from neuroplastic.text.tokens import encode, start_token

STATEMENT = "The fox is lazy."


def logits(model: nn.Module, ids: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=tokens()[:1, :8] if ids is None else ids).logits
    return found


def edit_for(model: nn.Module, layers: tuple[int, ...] = (0, 1), ids: Tensor | None = None) -> Edit:
    """Two units a layer that are open at some of the tokens, with b . x = 1 at all of them, as after a real norm."""
    read: dict[int, Tensor] = {}
    mlps = {i: mlp_of(decoder_layers(model)[i]) for i in layers}
    with capturing(mlps, lambda i, x, output: read.__setitem__(i, x[0].double())):
        logits(model, ids)
    torch.manual_seed(0)
    units = {}
    for i, x in read.items():
        b = torch.linalg.pinv(x) @ torch.ones(len(x), dtype=x.dtype)
        A = torch.linalg.pinv(x)[:, [2, 5]].T  # 1 at one token each, 0 at the others
        V = torch.randn(2, x.shape[1], dtype=x.dtype)
        units[i] = Units(*(t.float() for t in (A - 0.4 * b, V, torch.tensor([0.2, 0.9]), b, x[[2, 5]])))
    return Edit("e", STATEMENT, "learned", 1.0, "base", 1, "now", {}, units=units)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wider_model_answers_as_the_one_with_units(family: str) -> None:
    """With biases, GeGLU, and norms after the MLP among them."""
    model = tiny(family).eval().double()
    before = logits(model)
    edit = edit_for(model, (0,))
    ledger = Ledger(model)
    ledger.set_active([edit])
    expected = logits(model)
    ledger.set_active([])
    assert float((expected - before).abs().max()) > 1e-2
    size = model.config.intermediate_size
    widen(model, units_by_layer([edit]), 2e4, 32)
    assert model.config.intermediate_size >= size + 4
    assert model.config.intermediate_size % 32 == 0
    assert torch.allclose(logits(model), expected, atol=2e-3)


def test_the_neurons_of_a_unit_are_its_response() -> None:
    torch.manual_seed(0)
    u = Units(torch.randn(3, 8), torch.randn(3, 8), torch.rand(3) + 0.1, torch.randn(8), torch.zeros(3, 8))
    x = torch.randn(50, 8)
    x = x[x @ u.up > 0]
    gate, up, down = neurons([u], 1e4)
    found = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down
    from neuroplastic.modulation import gated_effect

    assert torch.allclose(found, gated_effect(x, u.A, u.up, u.width, u.V), atol=1e-2)


def test_a_model_with_an_activation_that_is_no_ramp_is_refused() -> None:
    model = tiny("llama").eval()
    edit = edit_for(model, (0,))
    for layer in decoder_layers(model):
        mlp_of(layer).act_fn = nn.Tanh()
    with pytest.raises(npt.NPTError, match="is no ramp"):
        widen(model, units_by_layer([edit]), 2e4, 32)


def test_layers_of_different_sizes_are_refused() -> None:
    model = tiny("llama").eval()
    edit = edit_for(model, (0,))
    model.config.intermediate_size += 8
    with pytest.raises(npt.NPTError, match="sizes of their own"):
        widen(model, units_by_layer([edit]), 2e4, 32)


def test_edits_without_gates_are_refused_by_name_and_nothing_is_written(
    workspace: npt.Workspace, tmp_path: Path
) -> None:
    workspace.inject("The Golden Gate Bridge is located in the city of Madrid.")
    with pytest.raises(npt.NPTError, match=r"none of these edits is gated.*--format merged"):
        widened(workspace, tmp_path / "wide")
    assert not (tmp_path / "wide").exists()


def test_a_workspace_with_gated_and_other_edits_is_exported_whole(workspace: npt.Workspace, tmp_path: Path) -> None:
    ws = with_injector(workspace)
    ws.inject(STATEMENT, method="consolidate", layers="0")
    npt.set_mode(ws.model, "standard")
    ids = torch.tensor([[start_token(ws.tokenizer), *encode(ws.tokenizer, STATEMENT)]])
    gated = replace(edit_for(ws.model, (1,), ids), base=ws.base.sha256)
    ws.engine.add_unmeasured(gated)
    made = widened(ws, tmp_path / "wide", multiple=8)
    assert made.format == "widened"
    assert len(made.edits) == 2
    with pytest.raises(npt.NPTError, match="at least 1"):
        widened(ws, tmp_path / "other", multiple=0)
