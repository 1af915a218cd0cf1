"""What tokens use of generators that choose: how many components, and which tokens are modulated at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..capture import capturing
from ..generators import LowRank
from ..generators.low_rank import LowRankWeights
from ..modulation import effective_number
from ..surgery import Plasticity


@dataclass(frozen=True)
class Usage:
    """Of one layer, over the tokens that it read."""

    components: tuple[float, ...]
    """effective number of components per modulated token, (sum w)^2 / sum w^2: quartiles; empty without weights"""
    gate: tuple[float, ...]
    """of each token: quartiles; empty without a gate"""
    modulated: float
    """share of tokens whose gate is not below the threshold"""


class Watch:
    """Collects what the layers' tokens use in the forward passes made inside `on()`."""

    def __init__(self, plastic: Mapping[int, Plasticity]):
        self.plastic = plastic
        self._parts: dict[int, tuple[nn.Module | None, nn.Module | None]] = {}
        """weights and gate of the layers whose generators have one of them"""
        for i, p in plastic.items():
            weights = p.generator.weights if isinstance(p.generator, LowRankWeights) else None
            gate = p.generator.gate if isinstance(p.generator, LowRank) else None
            if weights is not None or gate is not None:
                self._parts[i] = weights, gate
        self._seen: dict[int, tuple[list[Tensor], list[Tensor]]] = {i: ([], []) for i in self._parts}

    @contextmanager
    def on(self) -> Iterator[None]:
        modules = {(i, which): m for i, parts in self._parts.items() for which, m in enumerate(parts) if m is not None}

        def keep(at: tuple[int, int], given: Tensor, output: Tensor) -> None:
            layer, which = at
            self._seen[layer][which].append(output.detach())

        with capturing(modules, keep):
            yield

    def found(self) -> dict[str, Usage]:
        """By layer; only of layers whose generators choose."""
        usage = {}
        for i, (w, g) in self._seen.items():
            components = _quartiles([effective_number(t) for t in w])
            modulated = torch.cat([(t >= self.plastic[i].config.gate_threshold).flatten() for t in g]) if g else None
            share = 1.0 if modulated is None else float(modulated.float().mean())
            usage[str(i)] = Usage(components, _quartiles(g), share)
        return usage


def _quartiles(tensors: list[Tensor]) -> tuple[float, ...]:
    if not tensors:
        return ()
    every = torch.cat([t.flatten().float() for t in tensors])
    return tuple(torch.quantile(every, torch.tensor([0.25, 0.5, 0.75], device=every.device)).tolist())
