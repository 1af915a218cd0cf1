"""Where a gated unit opens: its key, and a threshold between what should open it and what should not.

The key k of an edit in a layer is what the MLP reads at the fact's subject; its match with any such x is a . x, with

    a = C^-1 k / (rho d + k . C^-1 k)

under the covariance C of ordinary text, in units of d, which is what k . C^-1 k is at an ordinary token on average. It
is about .8 at the key itself. A threshold must let the subject through where it is read in other surroundings, and
keep out (1) every token of ordinary text, (2) the keys of other edits, and (3) the end of the subject's name without
its beginning: *The younger* opens no edit about *Joseph Bergler the Younger*.

    high     = the largest match in (1), (2) and (3)         low = the smallest one of the subject
    theta    = high and a margin, from `least` to `highest` low
    width    = what is left below low, at most `width`

A layer in which the two cannot be separated gets no unit; a fact with too few layers left is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..capture import read_until
from ..errors import NPTError
from ..text.tokens import batch, start_token
from .units import Units

if TYPE_CHECKING:
    from .context import EditContext

LEAST_CONSTANT = 0.05
"""b . x is not taken for less where a match is divided by it."""
BATCH = 64
"""Rows read at once."""


@dataclass(frozen=True)
class Gating:
    """How thresholds are found. Chosen on development records (docs/gated.md)."""

    rho: float = 0.5
    """strength of the ridge of a match, in units of the input's width"""
    least: float = 0.45
    """no threshold is lower"""
    text_margin: float = 1.3
    """a threshold is at least this many times the largest match on ordinary text"""
    key_margin: float = 1.05
    """the same of the match of another edit's key, unless it is about the same subject"""
    same_subject: float = 0.8
    """a key with at least this share of an edit's own match is of the same subject"""
    name_share: float = 0.35
    """of the way from the match of the name's end alone to that of the whole name, a threshold is at least here"""
    name_highest: float = 0.75
    """and this alone raises no threshold above this share of the subject's lowest match: the end of a name may well
    stand for it"""
    highest: float = 0.85
    """no threshold is above this share of the subject's lowest match; where ordinary text or another key matches that
    well, there is no unit in that layer"""
    width: float = 0.15
    """a unit acts fully from its threshold and this much on"""
    narrowest: float = 0.03
    """no unit is steeper"""
    least_share: float = 0.5
    """of the layers, in which an edit must have units"""
    in_place: float = 0.8
    """part of the values that is in place where `gain` is measured"""
    largest_gain: float = 2.5
    num_prefixes: int = 2
    """unrelated beginnings after which the subject is read too"""
    largest_spread: float = 0.15
    """of the constant direction over ordinary text; a model that passes it has no such direction"""


@dataclass(frozen=True)
class Name:
    """A fact's subject where one of its wordings has it."""

    through: Sequence[int]
    """the wording's tokens from its beginning through the subject's last one, without the start token"""
    end: Sequence[int]
    """the last word of a subject of several words, if the tokenizer has one token for it, as for a common word; else
    empty: the end of a rare word stands for the name"""


@dataclass(frozen=True)
class Gates:
    """The gates of n facts in L layers."""

    layers: tuple[int, ...]
    A: Tensor
    """a - theta b [n, L, d]"""
    width: Tensor
    """[n, L]"""
    up: Tensor
    """b [L, d]"""
    K: Tensor
    """[n, L, d]"""
    theta: Tensor
    """[n, L]"""
    gain: Tensor
    """[n, L]: what values are multiplied by"""
    open: Tensor
    """[n, L] bool: whether there is a unit in that layer"""

    @property
    def keys(self) -> dict[int, Tensor]:
        """By layer, the keys of the facts that have a unit there [m, d]."""
        return {layer: self.K[self.open[:, at], at] for at, layer in enumerate(self.layers)}

    def units(self, i: int, V: Tensor) -> dict[int, Units]:
        """The units of fact i with the values V [L, d]."""
        return {
            layer: Units(*(t.detach().cpu().clone() for t in self._of(i, at, V)))
            for at, layer in enumerate(self.layers)
            if self.open[i, at]
        }

    def _of(self, i: int, at: int, V: Tensor) -> tuple[Tensor, ...]:
        return (
            self.A[i, at][None],
            self.gain[i, at] * V[at][None],
            self.width[i, at][None],
            self.up[at],
            self.K[i, at][None],
        )


@torch.no_grad()
def find_gates(
    context: EditContext, layers: Sequence[int], names: Sequence[Sequence[Name]], values: Tensor, how: Gating
) -> Gates:
    """The gates of n facts, each given by its subject in every wording, and by its values [n, L, d]. Touches no weight.

    Keys are read on the model as it is: read with the values of earlier layers in place, those of all facts would have
    much in common. But these values move x, and with it b . x, at the subject: `gain` makes up for that.

    Raises NPTError if the model has no constant direction.
    """
    text = context.inputs(layers)
    spread, worst = max((text[layer].spread, layer) for layer in layers)
    if spread > how.largest_spread:
        raise NPTError(
            f"what the MLP of layer {worst} reads has no constant direction (it spreads by {spread:.2f}, "
            f"more than {how.largest_spread}), which gated edits need; make the edit ungated"
        )
    own, elsewhere, end = _read(context, layers, names, how)
    K = torch.stack([x.mean(0) for x in own])  # [n, L, d]
    found, shut = [], []
    for at, layer in enumerate(layers):
        k = K[:, at]
        Z = context.whitening.solve(layer, "gate", k)
        A = Z / (how.rho * k.shape[-1] + (k * Z).sum(-1, keepdim=True))
        b = text[layer].b
        match = _matches(k, A, b).diagonal()
        low = torch.stack(
            [
                _matches(torch.cat([x[:, at], y[:, at]]), a[None], b).amin()
                for x, y, a in zip(own, elsewhere, A, strict=True)
            ]
        )
        ordinary = torch.stack([_matches(x, A, b).amax((0, 1)) for x in torch.split(text[layer].x, 8)]).amax(0)
        others = torch.cat([k, context.unit_keys[layer].to(k)]) if layer in context.unit_keys else k
        others_match = _matches(others, A, b)
        others_match[others_match >= how.same_subject * match] = 0
        theta = torch.stack([how.text_margin * ordinary, how.key_margin * others_match.amax(0)]).amax(0)
        theta = torch.minimum(theta.clamp_min(how.least), how.highest * low)
        shut.append(torch.maximum(ordinary, others_match.amax(0)) >= how.highest * low)
        for i, x in enumerate(end):
            if x is not None:
                alone, whole = float(_matches(x[at], A[i : i + 1], b)), float(low[i])
                between = min(alone + how.name_share * (whole - alone), how.name_highest * whole)
                theta[i] = max(float(theta[i]), between)
        found.append((A - theta[:, None] * b, low, theta))
    A, low, theta = (torch.stack(ts, 1) for ts in zip(*found, strict=True))
    width = (0.9 * (low - theta)).clamp(how.narrowest, how.width)
    opens = ~torch.stack(shut, 1)
    start = start_token(context.tokenizer)
    moved = _last_inputs(context, layers, [[start, *w[0].through] for w in names], how.in_place * values)
    u = torch.stack([moved[:, at] @ text[layer].b for at, layer in enumerate(layers)], 1)
    gain = u.clamp_min(LEAST_CONSTANT).square().reciprocal().clamp(1, how.largest_gain)
    return Gates(tuple(layers), A, width, torch.stack([text[layer].b for layer in layers]), K, theta, gain, opens)


def _matches(x: Tensor, A: Tensor, b: Tensor) -> Tensor:
    """a . x / (b . x), the threshold from which on x would not open a gate: x [..., d], A [n, d] -> [..., n]."""
    return x @ A.T / (x @ b).clamp_min(LEAST_CONSTANT)[..., None]


def closed(gates: Gates, how: Gating) -> list[int]:
    """The numbers of the facts that have units in too few layers."""
    return (gates.open.double().mean(1) < how.least_share).nonzero()[:, 0].tolist()


def _read(
    context: EditContext, layers: Sequence[int], names: Sequence[Sequence[Name]], how: Gating
) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]]:
    """Per fact, what the MLPs read at the subject's last token in each wording [w, L, d], after unrelated beginnings
    [w k, L, d], and at the end of the name without its beginning [L, d]."""
    start, prefixes = start_token(context.tokenizer), context.prefixes(how.num_prefixes)
    rows: list[list[int]] = []
    for wordings in names:
        rows += [[start, *w.through] for w in wordings]
        rows += [[start, *p, *w.through] for w in wordings for p in prefixes]
        rows += [[start, *prefixes[0], *wordings[0].end]] if prefixes and wordings[0].end else []
    states = _last_inputs(context, layers, rows)
    own, elsewhere, end = [], [], list[Tensor | None]()
    first = 0
    for wordings in names:
        w, k = len(wordings), len(prefixes)
        own.append(states[first : first + w])
        elsewhere.append(states[first + w : first + w + w * k])
        first += w + w * k
        has_end = bool(prefixes and wordings[0].end)
        end.append(states[first] if has_end else None)
        first += has_end
    return own, elsewhere, end


def _last_inputs(
    context: EditContext, layers: Sequence[int], rows: Sequence[Sequence[int]], written: Tensor | None = None
) -> Tensor:
    """What the MLPs read at the last token of each row [R, L, d], where they may also write `written` [R, L, d]; in
    batches of rows of like length."""
    modules = {p.index: p.mlp for p in context.parts if p.index in layers}
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: dict[int, Tensor] = {}
    for first in range(0, len(rows), BATCH):
        some = order[first : first + BATCH]
        ids, mask = batch([rows[i] for i in some], 0, context.model.device)
        here = (torch.arange(len(some), device=ids.device), mask.sum(1) - 1)
        given = {} if written is None else {layer: written[some, i] for i, layer in enumerate(layers)}
        read: dict[int, Tensor] = {}
        read_until(context.model, modules, partial(_keep, read, here, given), input_ids=ids, attention_mask=mask)
        states = torch.stack([read[layer] for layer in layers], 1)
        found |= zip(some, states, strict=True)
    return torch.stack([found[i] for i in range(len(rows))])


def _keep(
    read: dict[int, Tensor],
    here: tuple[Tensor, Tensor],
    given: Mapping[int, Tensor],
    layer: int,
    x: Tensor,
    output: Tensor,
) -> Tensor | None:
    """Keeps what an MLP reads at some positions, and adds there what is given for its layer."""
    read[layer] = x[here].to(torch.promote_types(x.dtype, torch.float32))
    return output.index_put(here, given[layer].to(output.dtype), accumulate=True) if layer in given else None
