"""Sums over text from which generators are fitted: some d x d matrices per layer, however long the text is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..config import PlasticityConfig
from ..console import Progress
from ..modulation import residual_growth
from ..observe import Seen, read_layers
from ..surgery import Plasticity

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH = 16
SLOPED = 8
"""Every Nth position serves for the slopes, of which only a mean over all hidden units is used."""


class Moments:
    """Second moments of one layer. s is what the generator reads, t the change of input that the payload of gate and up
    must make up for: y = W t.

    t is e = x_c - x, less what a multiplicative part already does: x_c - (rho/rho') x. It is zero if the MLP reads
    x_c itself. `carried` is what down must add if the layer no longer adds attention. Sums are float64.

    Where a coarse code is shared, s_0 is what its first layer reads; `add` then needs it.
    """

    def __init__(self, config: PlasticityConfig, d_model: int, device: torch.device):
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.axes, self.source, self.shares = config.axes, config.input, config.coarse_rank > 0
        self.count = 0
        self._ss, self._ts, self._tt = zeros(d_model, d_model), zeros(d_model, d_model), zeros(d_model, d_model)
        self._growth = zeros(d_model)
        self._carried, self._carried_power = zeros(d_model, d_model), zeros()
        if self.shares:
            self._s0, self._t0, self._carried0 = (zeros(d_model, d_model) for _ in range(3))
        self._sloped, self._slopes = 0, zeros()
        self._streamed, self._stream = 0, zeros()

    def add(self, seen: Seen, s0: Tensor | None = None) -> Tensor:
        """Takes in the tokens of one forward pass; s_0 [n, d] is s if None. Returns s [n, d]."""
        x_c, x, a = (_rows(t) for t in (seen.x_c, seen.x, seen.a))
        e = x_c - x
        s = a if self.source == "attention" else e
        self.count += len(s)
        ss = s.T @ s
        self._ss += ss
        if self.axes.mlp_input == "pre_attention":
            t = e
            if not self.axes.on_weights and self.axes.modulation != "additive":
                growth = residual_growth(_rows(seen.h), a * seen.parts.attention_scale)
                self._growth += ((growth - 1) * s).sum(0)
                t = x_c - growth * x
            self._ts += ss if t is s else t.T @ s
            self._tt += ss if t is s else t.T @ t
            if self.shares:
                self._t0 += t.T @ (s if s0 is None else s0)
        if self.shares:
            self._s0 += ss if s0 is None else s.T @ s0
        if "down" in self.axes.sites and self.axes.attention_residual == "drop":
            carried = _rows(seen.carried)
            self._carried += carried.T @ s
            if self.shares:
                self._carried0 += carried.T @ (s if s0 is None else s0)
            self._carried_power += carried.square().sum()
        self._slopes = self._slopes + _slopes(seen)
        self._sloped += seen.g[:, ::SLOPED].shape[:2].numel()
        stream = _rows((seen.h + seen.parts.attention_scale * seen.a)[:, 1:])
        self._stream += stream.square().sum()
        self._streamed += len(stream)
        return s

    @property
    def ss(self) -> Tensor:
        """C = E[s s^T] [d, d]."""
        return self._ss / self.count

    @property
    def ts(self) -> Tensor:
        """E[t s^T] [d, d]."""
        return self._ts / self.count

    @property
    def tt(self) -> Tensor:
        """E[t t^T] [d, d]."""
        return self._tt / self.count

    @property
    def with_first(self) -> tuple[Tensor, Tensor, Tensor]:
        """E[s s_0^T], E[t s_0^T], E[carried s_0^T] [d, d]."""
        return self._s0 / self.count, self._t0 / self.count, self._carried0 / self.count

    @property
    def growth(self) -> Tensor:
        """E[(rho/rho' - 1) s] [d]; zero if nothing is multiplied."""
        return self._growth / self.count

    @property
    def carried(self) -> Tensor:
        """E[carried s^T] [d, d]; zero if the layer adds attention itself."""
        return self._carried / self.count

    @property
    def carried_power(self) -> float:
        """E|carried|^2."""
        return float(self._carried_power / self.count)

    @property
    def slopes(self) -> Tensor:
        """E[(dm_j/dg_j)^2 + (dm_j/du_j)^2] / 2 of each hidden unit [f], m = act(g) u."""
        return self._slopes / self._sloped

    @property
    def stream(self) -> float:
        """E|h + a|^2 of the residual stream before the MLP, without the first position, an attention sink."""
        return float(self._stream / max(1, self._streamed))


@torch.no_grad()
def collect(
    model: PreTrainedModel, layers: Sequence[Plasticity], text: Tensor, step: Progress | None = None
) -> dict[int, Moments]:
    """The moments of all of these layers in one pass over `text` (N, T), rows of tokens without padding.

    They must be in standard mode, in order, and groups that share a coarse code whole.
    """
    width = model.get_input_embeddings().embedding_dim
    plastic = {p.parts.index: p for p in layers}
    found = {i: Moments(p.config, width, model.device) for i, p in plastic.items()}
    first: dict[int, Tensor] = {}  # what the first layer of a group read, until its last one has

    def see(seen: Seen) -> None:
        i = seen.parts.index
        group = plastic[i].group
        s = found[i].add(seen, first.get(group[0]) if group else None)
        if group and i == group[0]:
            first[i] = s
        if group and i == group[-1]:
            del first[group[0]]

    parts = [p.parts for p in layers]
    for done in range(0, len(text), BATCH):
        read_layers(model, parts, see, input_ids=text[done : done + BATCH])
        if step is not None:
            step(min(done + BATCH, len(text)), len(text))
    return found


def _rows(t: Tensor) -> Tensor:
    return t.flatten(0, 1).to(torch.promote_types(t.dtype, torch.float32))


def _slopes(seen: Seen) -> Tensor:
    """Sum over some tokens of ((act'(g) u)^2 + act(g)^2) / 2 [f]; act' by automatic differentiation."""
    g, u = _rows(seen.g[:, ::SLOPED]).requires_grad_(), _rows(seen.u[:, ::SLOPED])
    with torch.enable_grad():
        m: Tensor = seen.parts.mlp.act_fn(g)  # type: ignore[operator]
        (slope,) = torch.autograd.grad(m.sum(), g)
    return ((slope * u).square().sum(0) + m.detach().square().sum(0)) / 2
