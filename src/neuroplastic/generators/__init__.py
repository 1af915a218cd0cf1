"""Generators (NP components): modules that make a layer's modulation from its own attention."""

from __future__ import annotations

from ..config import PlasticityConfig
from .analytic import AnalyticActivations, AnalyticWeights
from .base import Generator, Signals, WeightGenerator
from .low_rank import LowRank, LowRankActivations, LowRankWeights

__all__ = ["Generator", "LowRank", "Signals", "WeightGenerator", "make_generator"]


def make_generator(config: PlasticityConfig, d_model: int, d_ffn: int, layer: int, leads: bool = False) -> Generator:
    """The generator of one layer, in float32 on the CPU; `leads`: it makes its group's coarse code.

    Raises NPTError if a rank does not fit.
    """
    if config.generator == "analytic":
        return AnalyticWeights() if config.axes.on_weights else AnalyticActivations(config)
    make = LowRankWeights if config.axes.on_weights else LowRankActivations
    return make(config, d_model, d_ffn, layer, leads)
