"""The explicit path of a weight generator: v_a and v_b of every token and component formed, and summed over k.

A reference for tests and benchmarks. It has the generator's own parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

from torch import Tensor, nn

from neuroplastic.config import Site
from neuroplastic.generators import LowRank, Signals
from neuroplastic.generators.base import Generator, WeightGenerator
from neuroplastic.modulation import rank_k_effect
from neuroplastic.surgery import plastic_layers


class Naive(Generator):
    """W z + sum_k v_b_k (v_a_k . z), with v_a [B, T, k, d_in] and v_b [B, T, k, d_out] in memory."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.generator = generator

    def forward(self, site: Site, projection: Callable[[Tensor], Tensor], z: Tensor, s: Signals) -> Tensor:
        s.codes.clear()  # each site on its own
        s.open = None
        explicit = cast(WeightGenerator, self.generator)
        v_a, v_b = explicit.factors(site, projection, z, s)
        return projection(z) + rank_k_effect(v_a, v_b, z)

    def make_coarse(self, s: Signals) -> Tensor:
        return cast(LowRank, self.generator).make_coarse(s)


@contextmanager
def naively(model: nn.Module) -> Iterator[None]:
    """While it lasts, every converted layer of `model` takes the explicit path."""
    plastic = plastic_layers(model).values()
    own = [p.generator for p in plastic]
    for p, generator in zip(plastic, own, strict=True):
        p.generator = Naive(generator)
    try:
        yield
    finally:
        for p, generator in zip(plastic, own, strict=True):
            p.generator = generator
