"""Method `token`: the modulation of one chosen token, made permanent as it is. W += alpha v_b v_a^T.

The update is exact for that token in its context, and for no other (specification, section 6).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..config import PlasticityConfig, Site
from ..errors import NPTError
from ..generators import Signals
from ..surgery import Plasticity, convert, mode, plastic_layers, revert
from .edit import Factors

Place = tuple[int, Site]


def token_factors(model: nn.Module, ids: Tensor, layers: tuple[int, ...], position: int = -1) -> dict[Place, Factors]:
    """The update that each layer's generator applies at one position of ids (1, T).

    A model that is not converted gives the analytic `dual` update of every layer asked for; a converted one, that of
    its own generators. Raises NPTError where a layer modulates activations, which leaves no weight update.
    """
    plastic = plastic_layers(model)
    if not plastic:
        convert(model, PlasticityConfig(layers=",".join(map(str, layers))))
        try:
            return token_factors(model, ids, layers, position)
        finally:
            revert(model)
    chosen = {i: plastic[i] for i in layers if i in plastic}
    if not chosen:
        raise NPTError(f"none of the layers {layers} is plastic; converted are {tuple(plastic)}")
    for i, p in chosen.items():
        if not p.config.axes.on_weights:
            raise NPTError(
                f"layer {i} modulates activations ({p.config.axes.modulation}), which leaves no weight update to make "
                "permanent; use method 'consolidate', or a preset on weights (single, dual, triple)"
            )
    found: dict[Place, Factors] = {}
    try:
        for i, p in chosen.items():
            p.observe = _observer(i, p, position, found)
        with torch.no_grad(), mode(model, "dynamic"):
            model(input_ids=ids, use_cache=False)
    finally:
        for p in chosen.values():
            p.observe = None
    return found


def _observer(
    layer: int, plasticity: Plasticity, position: int, found: dict[Place, Factors]
) -> Callable[[Site, Callable[[Tensor], Tensor], Tensor, Signals], None]:
    def at(t: Tensor) -> Tensor:
        return t[0, position]

    def observe(site: Site, projection: Callable[[Tensor], Tensor], z: Tensor, s: Signals) -> None:
        v_a, v_b = plasticity.generator.factors(site, projection, at(z), s.at(at))  # type: ignore[operator]
        if v_b.any():  # a site with nothing to carry has no update
            found[layer, site] = Factors(v_a.clone(), v_b.T.clone())

    return observe
