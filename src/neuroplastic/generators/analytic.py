"""The exact generators: no parameters, the pretrained layer itself as the oracle (docs/how-it-works.md).

For weights: v_a = z/|z|^2 and v_b = W x_c - W z. Since v_a . z = 1,

    (W + v_b v_a^T) z = W z + (W x_c - W z) = W x_c

so the forward pass is one product, and costs what the pretrained one does; the pair itself is formed only if it is
asked for, to be read or made permanent. For the down projection, if nothing replaces its input, v_b is what the MLP
must carry for the layer: the attention output, if the layer no longer adds it. Dherin et al. 2507.16003 derive the same
update for a context before an MLP, Goldwaser et al. 2511.17864 for gated blocks after RMSNorm.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..config import PlasticityConfig, Site
from ..modulation import modulate_activation, residual_growth, self_key
from .base import Generator, Signals


class AnalyticWeights(Generator):
    """One rank-1 pair per token and site, exact."""

    def forward(self, site: Site, projection: Callable[[Tensor], Tensor], z: Tensor, s: Signals) -> Tensor:
        if site == "down":
            y = projection(z)
            return y if s.carried is None else y + s.carried
        assert s.x_c is not None
        return projection(s.x_c)

    def factors(
        self, site: Site, projection: Callable[[Tensor], Tensor], z: Tensor, s: Signals
    ) -> tuple[Tensor, Tensor]:
        y = projection(z)
        if site == "down":
            v_b = torch.zeros_like(y) if s.carried is None else s.carried
        else:
            assert s.x_c is not None
            v_b = projection(s.x_c) - y  # a bias cancels
        return self_key(z)[..., None, :], v_b[..., None, :]


class AnalyticActivations(Generator):
    """The gate made exact on its activations: W x_c = (1 + d_mult) W z + d_add.

    `additive` and `both` are exact for the gate; `multiplicative` alone keeps only the scalar rho/rho'. Up stays
    unmodulated, so the layer is exact only if the MLP already reads x_c.
    """

    def __init__(self, config: PlasticityConfig):
        super().__init__()
        self.modulation = config.axes.modulation
        self.scales = config.axes.mlp_input == "pre_attention"  # reading x_c, there is nothing to shrink

    def forward(self, site: Site, projection: Callable[[Tensor], Tensor], z: Tensor, s: Signals) -> Tensor:
        assert s.x_c is not None
        y, d_mult, d_add = projection(z), None, None
        if self.modulation != "additive" and self.scales:
            assert s.h is not None
            d_mult = residual_growth(s.h, s.a) - 1
        if self.modulation != "multiplicative":
            d_add = projection(s.x_c) - modulate_activation(y, d_mult, None)
        return modulate_activation(y, d_mult, d_add)
