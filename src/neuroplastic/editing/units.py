"""Gated units: the form of an edit that acts where its key matches, and nowhere else.

With x what the MLP of a layer reads, unit i adds to what that MLP gives

    v_i phi_i,    phi_i = u min(max(p_i, 0), w_i u) / w_i,    p_i = (a_i - theta_i b) . x,    u = b . x

where a_i . x is the match of x with the edit's key (thresholds.py), and b the constant direction of x: u is 1 but
for a few hundredths. phi_i is 0 where the match is below the threshold theta_i, rises above it, and is 1 from
theta_i + w_i on. An MLP is a memory of keys and values (Geva et al. 2012.14913); units with a threshold that are added
to it are the edits of T-Patcher (Huang et al. 2301.09785), keys with a radius those of GRACE (Hartvigsen et al.
2211.11031).

Written with u, and not with 1 in its place, a unit is two ordinary neurons of a gated MLP (export/widened.py): an
edited model is the same architecture with a larger intermediate size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..modulation import gated_effect
from ..surgery import GATED_UNITS


class Units(NamedTuple):
    """The gated units of one layer, n of them; float32, or float64 for a float64 base."""

    A: Tensor
    """a - theta b [n, d]: the thresholds are in it"""
    V: Tensor
    """[n, d]: what each adds where it acts fully"""
    width: Tensor
    """[n], above 0: how far above its threshold a match must be for that"""
    up: Tensor
    """b [d]"""
    K: Tensor
    """the keys [n, d]: what the MLP read where the units should act"""


class GatedUnits(nn.Module):
    """The units of all active edits in one layer, in the order of the edits. A submodule of the MLP, to whose output a
    hook adds what it gives, so that generation, caches, compilation and checkpointing see an ordinary module."""

    A: Tensor
    V: Tensor
    width: Tensor
    up: Tensor

    def __init__(self, A: Tensor, V: Tensor, width: Tensor, up: Tensor):
        super().__init__()
        for name, t in {"A": A, "V": V, "width": width, "up": up}.items():
            self.register_buffer(name, t)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d] -> [..., d], computed in the units' own dtype or a wider one, given in that of x."""
        wide = torch.promote_types(torch.promote_types(x.dtype, self.A.dtype), torch.float32)
        A, up, width, V = (t.to(wide) for t in (self.A, self.up, self.width, self.V))
        return gated_effect(x.to(wide), A, up, width, V).to(x.dtype)


def add_units(mlp: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """The forward hook of an MLP with gated units."""
    units: GatedUnits = getattr(mlp, GATED_UNITS)
    added: Tensor = units(args[0])
    return output + added


def install(mlp: nn.Module, units: GatedUnits | None) -> None:
    """Puts units in the place of those that an MLP has; with None, the MLP is as it was before it had any."""
    had = getattr(mlp, GATED_UNITS, None)
    if units is None:
        if had is not None:
            delattr(mlp, GATED_UNITS)
            for key, hook in list(mlp._forward_hooks.items()):
                if hook is add_units:
                    del mlp._forward_hooks[key]
        return
    mlp.add_module(GATED_UNITS, units)
    if had is None:
        mlp.register_forward_hook(add_units)
