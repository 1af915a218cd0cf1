"""Which edits are in the weights. Undo is exact: weights are always the pristine ones plus the active edits, added up
in one fixed order, never a sum from which something was subtracted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..config import Site
from ..errors import NPTError
from ..structure import decoder_layers, mlp_of, projection
from .edit import Edit, Factors
from .together import active_factors, edits_by_place


class Ledger:
    """The active edits of one model in memory.

    An edited projection's parameter points to new storage; the pristine tensor is kept as it is and put back by undo,
    which therefore copies nothing. So only edited projections cost memory, and nothing is read back from disk: a base
    from a hub may be gone by then.
    """

    def __init__(self, model: nn.Module):
        self._model, self._layers = model, decoder_layers(model)
        self._pristine: dict[tuple[int, Site], Tensor] = {}
        self.active: tuple[Edit, ...] = ()

    @torch.no_grad()
    def set_active(self, edits: Sequence[Edit]) -> None:
        """Puts exactly these edits into the weights. Raises NPTError, with nothing changed, where one does not fit."""
        wanted = tuple(sorted(edits, key=lambda e: (e.sequence, e.name)))
        for edit in wanted:
            check_places(self._model, edit.factors, f"edit {edit.name!r}")
        before, after = edits_by_place(self.active), edits_by_place(wanted)
        changed = {p for p in before.keys() | after.keys() if _sources(before, p) != _sources(after, p)}
        factors = active_factors(wanted) if changed else {}
        for place in sorted(changed):
            weight = weight_at(self._layers, place)
            if place in after:
                pristine = self._pristine.setdefault(place, weight.data)
                weight.data = edited(pristine, factors[place])
            else:
                weight.data = self._pristine.pop(place)
        self.active = wanted

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """The pristine weights, while it lasts; nothing is computed."""
        active, edited = self.active, {p: weight_at(self._layers, p).data for p in self._pristine}
        try:
            for place, pristine in self._pristine.items():
                weight_at(self._layers, place).data = pristine
            self.active = ()
            yield
        finally:
            for place, data in edited.items():
                weight_at(self._layers, place).data = data
            self.active = active


def weight_at(layers: nn.ModuleList, place: tuple[int, Site]) -> Tensor:
    """The weight of an MLP projection."""
    layer, site = place
    return projection(mlp_of(layers[layer]), site).weight


def check_places(model: nn.Module, factors: Mapping[tuple[int, Site], Factors], what: str) -> None:
    """Raises NPTError where the factors do not fit the model's weights; `what` names them in the message."""
    layers = decoder_layers(model)
    for (layer, site), (A, B) in factors.items():
        if layer >= len(layers):
            raise NPTError(f"{what} changes layer {layer}, which the model does not have")
        weight = weight_at(layers, (layer, site))
        if not weight.is_floating_point():
            raise NPTError(f"layer {layer}, {site} is quantised ({weight.dtype}): its weights cannot be edited")
        if tuple(weight.shape) != (B.shape[0], A.shape[1]):
            raise NPTError(
                f"{what} changes a {B.shape[0]} x {A.shape[1]} weight at layer {layer}, {site}; the model's is "
                f"{tuple(weight.shape)}"
            )


def edited(pristine: Tensor, factors: Sequence[Factors]) -> Tensor:
    """W + sum_e B_e A_e as one product of the stacked factors, in float32 at least, rounded once to W's dtype.

    Raises NPTError where that is not finite: float16 ends at 65,504.
    """
    W = pristine.to(torch.promote_types(pristine.dtype, torch.float32))
    A, B = torch.cat([f.A for f in factors]), torch.cat([f.B for f in factors], 1)
    weight = torch.addmm(W, B.to(W), A.to(W)).to(pristine.dtype)
    if not bool(weight.isfinite().all()):
        raise NPTError(
            f"with these edits a weight is no finite number in {str(pristine.dtype).removeprefix('torch.')}; choose a "
            "smaller alpha, or a workspace of another dtype"
        )
    return weight


def _sources(edits: Mapping[tuple[int, Site], Sequence[Edit]], place: tuple[int, Site]) -> list[int]:
    """Which factors a place is made of: an edit whose report alone changed keeps its own."""
    return [id(e.factors[place].A) for e in edits.get(place, ())]
