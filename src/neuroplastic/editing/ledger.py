"""Which edits are in the weights. Undo is exact: weights are always the pristine ones plus the active edits, added up
in one fixed order, never a sum from which something was subtracted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..config import Site
from ..errors import NPTError
from ..structure import decoder_layers, projection
from .edit import Edit, Factors


class Ledger:
    """The active edits of one model in memory.

    An edited projection's parameter points to new storage; the pristine tensor is kept as it is and put back by undo,
    which therefore copies nothing. So only edited projections cost memory, and nothing is read back from disk: a base
    from a hub may be gone by then.
    """

    def __init__(self, model: nn.Module):
        self._layers = decoder_layers(model)
        self._pristine: dict[tuple[int, Site], Tensor] = {}
        self.active: tuple[Edit, ...] = ()

    @torch.no_grad()
    def set_active(self, edits: Sequence[Edit]) -> None:
        """Puts exactly these edits into the weights. Raises NPTError, with nothing changed, where one does not fit."""
        wanted = tuple(sorted(edits, key=lambda e: (e.sequence, e.name)))
        for edit in wanted:
            self._check(edit)
        before, after = _by_place(self.active), _by_place(wanted)
        for place in sorted(before.keys() | after.keys()):
            if [id(f.A) for f in before.get(place, [])] == [id(f.A) for f in after.get(place, [])]:
                continue
            weight = self._weight(place)
            if place in after:
                pristine = self._pristine.setdefault(place, weight.data)
                weight.data = edited(pristine, after[place])
            else:
                weight.data = self._pristine.pop(place)
        self.active = wanted

    def _weight(self, place: tuple[int, Site]) -> Tensor:
        layer, site = place
        mlp = next(m for m in self._layers[layer].children() if hasattr(m, "gate_proj"))
        weight: Tensor = projection(mlp, site).weight
        return weight

    def _check(self, edit: Edit) -> None:
        for (layer, site), (A, B) in edit.factors.items():
            if layer >= len(self._layers):
                raise NPTError(f"edit {edit.name!r} changes layer {layer}, which the model does not have")
            weight = self._weight((layer, site))
            if not weight.is_floating_point():
                raise NPTError(f"layer {layer}, {site} is quantised ({weight.dtype}): its weights cannot be edited")
            if tuple(weight.shape) != (B.shape[0], A.shape[1]):
                raise NPTError(
                    f"edit {edit.name!r} changes a {B.shape[0]} x {A.shape[1]} weight at layer {layer}, {site}; "
                    f"the model's is {tuple(weight.shape)}"
                )


def edited(pristine: Tensor, factors: Sequence[Factors]) -> Tensor:
    """W + sum_e B_e A_e as one product of the stacked factors, in float32 at least, rounded once to W's dtype."""
    W = pristine.to(torch.promote_types(pristine.dtype, torch.float32))
    A, B = torch.cat([f.A for f in factors]), torch.cat([f.B for f in factors], 1)
    return torch.addmm(W, B.to(W), A.to(W)).to(pristine.dtype)


def _by_place(edits: Sequence[Edit]) -> dict[tuple[int, Site], list[Factors]]:
    places: dict[tuple[int, Site], list[Factors]] = {}
    for edit in edits:
        for place, factors in edit.factors.items():
            places.setdefault(place, []).append(factors)
    return places
