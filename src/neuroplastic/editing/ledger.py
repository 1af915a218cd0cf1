"""Which edits are in the weights, and the only place that writes weights.

Undo is exact: weights are always the pristine ones plus the active edits, added up in one fixed order, never a sum from
which something was subtracted. A change is computed whole before the first weight is touched, then swapped in.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from ..config import Place
from ..errors import NPTError
from ..structure import decoder_layers, mlp_of, projection
from ..surgery import GATED_UNITS
from .edit import Edit, Factors
from .joint_solve import active_factors, edits_by_place
from .units import GatedUnits, Units, install


@dataclass(frozen=True, eq=False)
class Change:
    """What the weights of some places become, and which edits are in them then."""

    weights: Mapping[Place, Tensor]
    pristine: Mapping[Place, Tensor]
    """the base's own tensors of every place that is edited afterwards"""
    units: Mapping[int, GatedUnits | None]
    """the gated units of the layers in which they change; None where there are none afterwards"""
    active: tuple[Edit, ...]


class Ledger:
    """The active edits of one model in memory.

    An edited projection's parameter points to new storage; the pristine tensor is kept as it is and put back by undo,
    which therefore copies nothing. So only edited projections cost memory, and nothing is read back from disk: a base
    from a hub may be gone by then.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self._pristine: dict[Place, Tensor] = {}
        self.active: tuple[Edit, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Ledger:
        """The ledger of a copied model: the same edits, and pristine tensors of its own."""
        copied = Ledger(copy.deepcopy(self._model, memo))
        copied._pristine, copied.active = copy.deepcopy(self._pristine, memo), self.active
        return copied

    def staged(self, edits: Sequence[Edit]) -> Change:
        """The change after which exactly these edits are in the weights. Touches none of them.

        Raises NPTError if an edit does not fit.
        """
        wanted = tuple(sorted(edits, key=lambda e: (e.sequence, e.name)))
        known = {id(e) for e in self.active}
        for edit in wanted:
            if id(edit) not in known:
                check_places(self._model, edit.factors, f"edit {edit.name!r}")
                self._check_units(edit)
        self._follow()
        before, after = (edits_by_place([e for e in es if not e.units]) for es in (self.active, wanted))
        changed = {p for p in before.keys() | after.keys() if _sources(before, p) != _sources(after, p)}
        factors = active_factors([e for e in wanted if not e.units]) if changed else {}
        pristine = {p: self._pristine.get(p, self._weight(p).data) for p in after}
        weights = {p: edited(pristine[p], factors[p]) if p in after else self._pristine[p] for p in sorted(changed)}
        return Change(weights, pristine, self._staged_units(wanted), wanted)

    def _staged_units(self, wanted: Sequence[Edit]) -> dict[int, GatedUnits | None]:
        """Of the layers whose units change, all units that they have afterwards, in the order of the edits."""
        before, after = units_by_layer(self.active), units_by_layer(wanted)
        found: dict[int, GatedUnits | None] = {}
        for layer in sorted(before.keys() | after.keys()):
            old, new = before.get(layer, []), after.get(layer, [])
            if list(map(id, old)) != list(map(id, new)):
                found[layer] = stacked(old, new, self._units(layer), self._weight((layer, "gate"))) if new else None
        return found

    def _check_units(self, edit: Edit) -> None:
        for layer, u in edit.units.items():
            if layer >= len(self._layers):
                raise NPTError(f"edit {edit.name!r} changes layer {layer}, which the model does not have")
            if (width := self._weight((layer, "gate")).shape[1]) != u.A.shape[1]:
                raise NPTError(
                    f"edit {edit.name!r} has units of width {u.A.shape[1]} at layer {layer}; the model's is {width}"
                )

    def commit(self, change: Change) -> Change:
        """Swaps a change in, and returns the one that takes it back.

        An interrupt in the middle of the swap takes it back before it is raised: the weights are never half an edit.
        """
        units = {layer: self._units(layer) for layer in change.units}
        back = Change({p: self._weight(p).data for p in change.weights}, dict(self._pristine), units, self.active)
        try:
            self._swap(change)
        except BaseException:
            self._swap(back)
            raise
        return back

    def is_exact(self) -> bool:
        """Whether every edited weight is, bit for bit, the pristine one plus the active edits, computed anew, and every
        layer's units those of the active edits."""
        units = units_by_layer(self.active)
        for layer in range(len(self._layers)):
            module = self._units(layer)
            if (module is None) != (layer not in units):
                return False
            if module is not None:
                anew = stacked([], units[layer], None, self._weight((layer, "gate"))).to(module.A.dtype)
                pairs = zip(module.buffers(), anew.buffers(), strict=True)
                if not all(torch.equal(a, b) for a, b in pairs):
                    return False
        factors = active_factors([e for e in self.active if not e.units])
        return factors.keys() == self._pristine.keys() and all(
            torch.equal(self._weight(p).data, edited(pristine, factors[p])) for p, pristine in self._pristine.items()
        )

    def set_active(self, edits: Sequence[Edit]) -> None:
        """Puts exactly these edits into the weights. Raises NPTError, with nothing changed, if one does not fit."""
        self.commit(self.staged(edits))

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """The pristine weights, while it lasts; nothing is computed."""
        self._follow()
        none = dict.fromkeys(units_by_layer(self.active))
        back = self.commit(Change(dict(self._pristine), {}, none, ()))
        try:
            yield
        finally:
            self.commit(back)

    def _swap(self, change: Change) -> None:
        for place, data in change.weights.items():
            self._weight(place).data = data
        for layer, units in change.units.items():
            install(mlp_of(self._layers[layer]), units)
        self._pristine, self.active = dict(change.pristine), change.active

    def _follow(self) -> None:
        """Takes the pristine tensors to where the model was moved, with `model.to(...)`, since they were kept."""
        for place, pristine in self._pristine.items():
            weight = self._weight(place)
            if (weight.device, weight.dtype) != (pristine.device, pristine.dtype):
                self._pristine[place] = pristine.to(weight)

    def _units(self, layer: int) -> GatedUnits | None:
        found: GatedUnits | None = getattr(mlp_of(self._layers[layer]), GATED_UNITS, None)
        return found

    def _weight(self, place: Place) -> Tensor:
        return weight_at(self._layers, place)

    @cached_property
    def _layers(self) -> nn.ModuleList:
        return decoder_layers(self._model)


def weight_at(layers: nn.ModuleList, place: Place) -> Tensor:
    """The weight of an MLP projection."""
    layer, site = place
    return projection(mlp_of(layers[layer]), site).weight


def check_places(model: nn.Module, factors: Mapping[Place, Factors], what: str) -> None:
    """Raises NPTError if the factors do not fit the model's weights; `what` names them in the message."""
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


def units_by_layer(edits: Sequence[Edit]) -> dict[int, list[Units]]:
    """The units of edits in each layer, in the given order."""
    found: dict[int, list[Units]] = {}
    for edit in edits:
        for layer, units in edit.units.items():
            found.setdefault(layer, []).append(units)
    return found


@torch.no_grad()
def stacked(old: Sequence[Units], new: Sequence[Units], had: GatedUnits | None, like: Tensor) -> GatedUnits:
    """`new` as one module on the device of `like`; `had` holds `old`, and what is in both is taken from there.

    The time that adding or removing one edit takes hardly depends on the others: rows are copied, nothing is solved.
    Raises NPTError if the units were made with different constant directions.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    first = new[0].up
    for u in new:
        if u.up is not first and not torch.allclose(u.up, first, rtol=1e-2, atol=1e-2 * float(first.abs().max())):
            raise NPTError("these edits were made with different statistics of their base; make them again")

    def put(t: Tensor) -> Tensor:
        return t.to(like.device, dtype)

    at = {id(u): i for i, u in enumerate(old)}
    kept = [u for u in new if id(u) in at]
    up = put(first)
    if had is None or had.A.dtype != dtype or not kept or [id(u) for u in new[: len(kept)]] != list(map(id, kept)):
        A, V, width = (put(torch.cat([u[i] for u in new])) for i in range(3))
        return GatedUnits(A, V, width, up)
    starts = list(accumulate((len(u.A) for u in old), initial=0))
    rows = [row for u in kept for row in range(starts[at[id(u)]], starts[at[id(u)] + 1])]
    index = torch.tensor(rows, device=like.device)

    def renewed(i: int, t: Tensor) -> Tensor:
        t = t[index] if len(rows) < len(t) else t
        return torch.cat([t, *(put(u[i]) for u in new[len(kept) :])]) if len(kept) < len(new) else t

    return GatedUnits(renewed(0, had.A), renewed(1, had.V), renewed(2, had.width), up)


@torch.no_grad()
def edited(pristine: Tensor, factors: Sequence[Factors]) -> Tensor:
    """W + sum_e B_e A_e as one product of the stacked factors, in float32 at least, rounded once to W's dtype.

    Raises NPTError if that is not finite: float16 ends at 65,504.
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


def _sources(edits: Mapping[Place, Sequence[Edit]], place: Place) -> list[int]:
    """Which factors a place is made of: an edit whose report alone changed keeps its own."""
    return [id(e.factors[place].A) for e in edits.get(place, ())]
