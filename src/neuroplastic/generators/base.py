"""What a generator is: given one projection's input and output, and the layer's signals, the modulated output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from ..config import Site


@dataclass
class Signals:
    """What one converted layer knows about its tokens when its MLP runs. All tensors [..., d].

    `h` and `x_c` are None on layers whose configuration does not need them.
    """

    a: Tensor
    """attention output"""
    h: Tensor | None
    """residual stream entering the layer"""
    x: Tensor | None
    """n(h), the MLP input without attention"""
    x_c: Tensor | None
    """n(h + a), the MLP input with attention"""
    carried: Tensor | None
    """what the MLP must add to its own output because the layer no longer adds a; None if it does"""
    mlp_input: Tensor
    """what gate and up read: x or x_c"""
    coarse: Tensor | None = None
    """the code that the layer's group shares [..., r_0]; None if it has none"""
    codes: dict[str, Tensor] = field(default_factory=dict)
    """what a generator has made of them once, for all sites"""
    open: tuple[Tensor, Signals] | None = None
    """the tokens that a generator's gate lets through: their indices among all, and their signals"""

    def at(self, select: Callable[[Tensor], Tensor], names: Collection[str] | None = None) -> Signals:
        """The same signals at some of the tokens; of those not among `names`, if given, nothing is left."""
        own = {name: t for name, t in vars(self).items() if name not in ("codes", "open")}
        some: dict[str, Any] = {}
        for name, t in own.items():
            left_out = names is not None and name not in names
            some[name] = None if t is None else t.new_empty(0) if left_out else select(t)
        return Signals(**some)


class Generator(nn.Module, ABC):
    """Modulates the output of a projection. Subclasses hold parameters, or none."""

    @abstractmethod
    def forward(self, site: Site, projection: Callable[[Tensor], Tensor], z: Tensor, s: Signals) -> Tensor:
        """The modulated output of `projection` at z [..., d_in] -> [..., d_out]."""

    def __call__(self, *args: Any) -> Tensor:  # typed: nn.Module's own returns Any
        modulated: Tensor = super().__call__(*args)
        return modulated


class WeightGenerator(Protocol):
    """A generator whose modulation is a weight update, which can therefore be made permanent."""

    def factors(
        self, site: Site, projection: Callable[[Tensor], Tensor], z: Tensor, s: Signals
    ) -> tuple[Tensor, Tensor]:
        """(v_a [..., k, d_in], v_b [..., k, d_out]) of the update that `forward` applies at z."""
        ...
