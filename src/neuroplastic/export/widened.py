"""Gated edits as ordinary neurons: a plain Hugging Face checkpoint with a larger intermediate size.

A gated unit adds v u min(max(p, 0), w u) / w to the output of an MLP that reads x, with p = a . x and u = b . x
(editing/units.py). With act the MLP's activation, near max(., 0) for large numbers, two neurons of the MLP do the same:

    gate row  s a              up row  b      down column   v / (s w)
    gate row  s (a - w b)      up row  b      down column  -v / (s w)

since act(s p) / s goes to max(p, 0) as the sharpness s grows. All layers must have one size, so the others are padded
with zeros. Any engine that runs the base runs it, without this package and without adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import models
from ..editing.ledger import Ledger, units_by_layer
from ..editing.units import Units
from ..errors import NPTError
from ..files import refuse_occupied
from ..structure import PROJECTIONS, decoder_layers, mlp_of, projection
from .checkpoint import write_checkpoint
from .export_report import Clock, ExportReport, chosen_edits, finish, workspace_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..workspace.workspace import Workspace

SHARPNESS = {"float32": 2e4, "float64": 2e4}
HALF_SHARPNESS = 500.0
"""In float16 and bfloat16, where columns that are divided by more would be too small to keep."""
MULTIPLE = 32
"""The intermediate size becomes a multiple of this, which quantised formats want (K-quants of llama.cpp: of 256)."""


def widened(
    ws: Workspace,
    dest: str | Path,
    edits: Sequence[str] | None = None,
    dtype: str | None = None,
    multiple: int = MULTIPLE,
) -> ExportReport:
    """Writes a checkpoint whose MLPs have the chosen active edits as further neurons, loads it with transformers and
    compares. Edits without gates are merged into its weights.

    Raises NPTError for bad input, for edits of which none is gated, and for a model whose layers have sizes of their
    own or an activation that is no ramp; CheckFailed, leaving nothing, if what was loaded answers differently.
    """
    clock, dest, dtype = Clock(), Path(dest), dtype or ws.base.dtype
    refuse_occupied(dest)
    if dtype not in models.DTYPES:
        raise NPTError(f"dtype must be one of {', '.join(models.DTYPES)}, not {dtype!r}")
    if multiple < 1:
        raise NPTError(f"the size must be a multiple of at least 1, not {multiple}")
    chosen = chosen_edits(ws, edits)
    if not any(e.units for e in chosen):
        raise NPTError("none of these edits is gated, so nothing needs a wider model; use --format merged")
    statements = [e.statement for e in chosen]
    reference = workspace_logits(ws, chosen, statements)
    wide = "float64" if ws.base.dtype == "float64" else "float32"
    model, tokenizer = models.load_base(ws.base.spec, wide, "cpu")
    Ledger(model).set_active([e for e in chosen if not e.units])
    widen(model, units_by_layer(chosen), SHARPNESS.get(dtype, HALF_SHARPNESS), multiple)
    error, agreement = write_checkpoint("widened", model, tokenizer, dest, dtype, statements, reference, ws.base.dtype)
    names = [e.name for e in chosen]
    return finish(ws, ExportReport("widened", str(dest), names, None, 0.0, error, agreement, clock()))


@torch.no_grad()
def widen(model: PreTrainedModel, units: dict[int, list[Units]], sharpness: float, multiple: int) -> None:
    """Gives every MLP of a model the neurons of its layer's units, and the configuration their number."""
    config: Any = model.config.get_text_config(decoder=True)
    layers = decoder_layers(model)
    mlps = [mlp_of(layer) for layer in layers]
    sizes = {projection(mlp, "gate").out_features for mlp in mlps}
    if not isinstance(getattr(config, "intermediate_size", None), int) or sizes != {config.intermediate_size}:
        raise NPTError(f"the MLPs of {type(model).__name__} have sizes of their own; it cannot be widened as a whole")
    _require_ramp(mlps[0])
    most = max(2 * sum(len(u.A) for u in us) for us in units.values())
    size = -(-(config.intermediate_size + most) // multiple) * multiple
    for i, mlp in enumerate(mlps):
        gate, up, down = neurons(units.get(i, []), sharpness)
        for site, rows in (("gate", gate), ("up", up), ("down", down)):
            setattr(mlp, PROJECTIONS[site], _widened(projection(mlp, site), rows, size, site == "down"))
        if hasattr(mlp, "intermediate_size"):
            mlp.intermediate_size = size
    config.intermediate_size = size


def neurons(units: Sequence[Units], sharpness: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of n units: rows of gate and up [2n, d], and columns of down, as rows [2n, d]."""
    if not units:
        return (torch.zeros(0, 0, device="cpu"),) * 3
    gate = [t for u in units for t in (u.A, u.A - u.width[:, None] * u.up)]
    up = [u.up.expand_as(u.A) for u in units for _ in range(2)]
    down = [sign * u.V / (sharpness * u.width[:, None]) for u in units for sign in (1, -1)]
    return sharpness * torch.cat(gate), torch.cat(up), torch.cat(down)


def _widened(linear: nn.Linear, rows: Tensor, size: int, inwards: bool) -> nn.Linear:
    """A linear layer with further rows, or, of the down projection, columns, and zeros up to `size`."""
    weight = linear.weight
    d_in, d_out = (size, linear.out_features) if inwards else (linear.in_features, size)
    wide = nn.Linear(d_in, d_out, linear.bias is not None, weight.device, weight.dtype)
    wide.weight.zero_()
    (wide.weight.T if inwards else wide.weight)[: weight.shape[1 if inwards else 0]] = weight.T if inwards else weight
    if len(rows):
        first = weight.shape[1 if inwards else 0]
        (wide.weight.T if inwards else wide.weight)[first : first + len(rows)] = rows.to(weight)
    if linear.bias is not None:
        wide.bias.zero_()
        wide.bias[: len(linear.bias)] = linear.bias
    return wide


def _require_ramp(mlp: nn.Module) -> None:
    """Raises NPTError if the activation is not near max(., 0) for large numbers, as SiLU and GELU are."""
    t = torch.tensor([-1e3, -1e2, 1e2, 1e3], device="cpu")
    act: Any = getattr(mlp, "act_fn", None)
    if act is None or not torch.allclose(act(t), t.clamp_min(0), atol=1e-3):
        raise NPTError(f"the activation {act} is no ramp: a gated unit cannot be neurons of this model")
