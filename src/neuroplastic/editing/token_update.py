"""What each layer's generator would do to the weights for chosen tokens, as factors v_b v_a^T."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..config import Place, PlasticityConfig, Site
from ..errors import NPTError
from ..generators import Signals
from ..surgery import Plasticity, Probe, convert, mode, plastic_layers, revert
from .edit import Factors


@contextmanager
def weight_layers(model: nn.Module, layers: Sequence[int]) -> Iterator[dict[int, Plasticity]]:
    """The plastic layers among `layers`; a model that is not converted is, while it lasts: `dual`, analytic.

    Raises NPTError if a layer modulates activations, which leaves no weight update, or none is plastic.
    """
    plastic = plastic_layers(model)
    if not plastic:
        convert(model, PlasticityConfig(layers=",".join(map(str, layers))))
        try:
            yield plastic_layers(model)
        finally:
            revert(model)
        return
    chosen = {i: plastic[i] for i in layers if i in plastic}
    if not chosen:
        raise NPTError(f"none of the layers {tuple(layers)} is plastic; converted are {tuple(plastic)}")
    for i, p in chosen.items():
        if not p.config.axes.on_weights:
            raise NPTError(
                f"layer {i} modulates activations ({p.config.axes.modulation}), which leaves no weight update to make "
                "permanent; use method 'consolidate', or a preset on weights (single, dual, triple)"
            )
    yield chosen


@contextmanager
def probing(plastic: dict[int, Plasticity], make: Callable[[int, Plasticity], Probe]) -> Iterator[None]:
    """A probe on each of the layers, while it lasts."""
    try:
        for i, p in plastic.items():
            p.probe = make(i, p)
        yield
    finally:
        for p in plastic.values():
            p.probe = None


def token_factors(
    model: nn.Module, ids: Tensor, layers: Sequence[int], position: int | slice = -1
) -> dict[Place, Factors]:
    """The update that each layer's generator applies at one position, or the sum over a range, of ids (1, T).

    A has one row, and B one column, for each token and component, in this order.
    """
    found: dict[Place, Factors] = {}

    def at(t: Tensor) -> Tensor:
        chosen = t[0, position]
        return chosen if isinstance(position, slice) else chosen[None]

    def make(layer: int, plasticity: Plasticity) -> Probe:
        def probe(site: Site, projection: Callable[[Tensor], Tensor], z: Tensor, s: Signals, y: Tensor) -> None:
            v_a, v_b = plasticity.generator.factors(site, projection, at(z), s.at(at))  # type: ignore[operator]
            if v_b.any():  # a site with nothing to carry has no update
                found[layer, site] = Factors(v_a.flatten(0, 1).clone(), v_b.flatten(0, 1).T.clone())

        return probe

    with torch.no_grad(), weight_layers(model, layers) as plastic, probing(plastic, make), mode(model, "dynamic"):
        model(input_ids=ids, use_cache=False)
    return found
