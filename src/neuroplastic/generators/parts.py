"""What low-rank generators are composed of, beside their heads: a source, a bottleneck, weights of components, a gate.

    source     s = a, or e = x_c - x
    code       act([A_0 s_0 ; A s])           A [r, d]; A_0 s_0 [r_0] is the coarse code that a group of layers shares
    weights    w = k softmax(R a / rms(a))    R [k, d]; of the k components of a token, k altogether
    gate       g = sigmoid(G [z ; a] / rms + b)   one number in [0, 1] per token

Each is one small module or nothing, so that a generator is what its configuration names and no more.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..config import PlasticityConfig
from .base import Signals

OPEN = 4.0
"""The bias that a gate starts from: sigmoid(4) = .98, nearly open and still free to move."""


def linear(rng: torch.Generator, d_in: int, d_out: int, std: float) -> nn.Linear:
    """Without bias, drawn from `rng`; the default initialisation would draw from the global random state."""
    made = nn.Linear(d_in, d_out, bias=False, device="meta").to_empty(device=rng.device)
    with torch.no_grad():
        made.weight.normal_(0, std, generator=rng)
    return made


def source(config: PlasticityConfig, s: Signals) -> Tensor:
    """What a generator reads [..., d]."""
    if config.input == "attention":
        return s.a
    assert s.x_c is not None
    assert s.x is not None
    return s.x_c - s.x


class RankAttention(nn.Module):
    """Weights of a token's k components: w = k softmax(R a / rms(a)), over the `top` largest of them or over all.

    They sum to k, so that components which are all alike answer as with fixed weights, whatever R is; with R = 0 the
    weights are 1.
    """

    def __init__(self, rng: torch.Generator, d_model: int, k: int, top: int | None):
        super().__init__()
        self.top = k if top is None else top
        self.wanted = linear(rng, d_model, k, d_model**-0.5)

    def forward(self, a: Tensor) -> Tensor:
        """a [..., d] -> w [..., k], of which `top` are above zero."""
        logits: Tensor = self.wanted(rms_normed(a))
        if self.top < logits.shape[-1]:
            chosen = logits.topk(self.top, -1).indices
            hidden = torch.full_like(logits, -math.inf).scatter(-1, chosen, 0.0)
            logits = logits + hidden
        return logits.softmax(-1) * logits.shape[-1]

    def __call__(self, a: Tensor) -> Tensor:  # typed: nn.Module's own returns Any
        weights: Tensor = super().__call__(a)
        return weights


class Gate(nn.Module):
    """How far a token is modulated: g = sigmoid(G [z / rms(z) ; a / rms(a)] + b), z the MLP's input."""

    def __init__(self, d_model: int):
        super().__init__()
        self.wanted = nn.Linear(2 * d_model, 1, device="meta").to_empty(device="cpu")
        self.open_all()

    @torch.no_grad()
    def open_all(self) -> None:
        """The same for every token, nearly 1."""
        self.wanted.weight.zero_()
        self.wanted.bias.fill_(OPEN)

    @property
    def constant(self) -> float:
        """What it gives if it looks at nothing: sigmoid(b)."""
        return float(self.wanted.bias.double().sigmoid())

    def forward(self, z: Tensor, a: Tensor) -> Tensor:
        """z, a [..., d] -> g [..., 1]."""
        logit: Tensor = self.wanted(torch.cat([rms_normed(z), rms_normed(a)], -1))
        return logit.sigmoid()

    def __call__(self, z: Tensor, a: Tensor) -> Tensor:
        g: Tensor = super().__call__(z, a)
        return g


def rms_normed(t: Tensor) -> Tensor:
    """t / rms(t) over the last dimension; zero if t is."""
    power = t.float().square().mean(-1, keepdim=True) if t.dtype in (torch.float16, torch.bfloat16) else None
    power = t.square().mean(-1, keepdim=True) if power is None else power
    return t * power.clamp_min(torch.finfo(power.dtype).tiny).rsqrt().to(t.dtype)
