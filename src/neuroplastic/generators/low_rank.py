"""Low-rank generators (specification, section 4): code = A source, then per site and component keys and payloads.

    code = act(A s)          A [r, d], s the attention output a or its effect e = x_c - x
    v_a_k = P_k code         P_k [d_in, r]     (or the self key z/|z|^2)
    v_b_k = Q_k code         Q_k [d_out, r]

Neither is formed in the forward pass. With c_k = v_a_k . z = code . (P_k^T z),

    sum_k v_b_k c_k = [Q_1 ... Q_k] (c (x) code)

is one product of the stacked Q [d_out, k r] with k r numbers per token; and with the self key, whose c_k are all 1,
(sum_k Q_k) code, a product of r numbers per token whatever k is. The code is made once for all sites.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..config import PlasticityConfig, Site
from ..errors import NPTError
from ..modulation import code_gram, modulate_activation, self_gram, self_key
from .base import Generator, Signals


class _LowRank(Generator):
    """What both share: the source, the bottleneck width, seeded initialisation."""

    def __init__(self, config: PlasticityConfig, d_model: int, d_ffn: int, layer: int):
        super().__init__()
        self.rank = config.rank_of(layer)
        if self.rank > d_model:
            raise NPTError(f"np_rank {self.rank} is above the model's width {d_model}")
        self.config, self.d_model, self.d_ffn = config, d_model, d_ffn
        # each layer its own stream, so that adding a layer does not change the others
        self._rng = torch.Generator().manual_seed((config.seed * 1_000_003 + layer) % 2**63)

    def _linear(self, d_in: int, d_out: int, std: float) -> nn.Linear:
        # skip_init: the default initialisation would draw from the global random state
        linear: nn.Linear = nn.utils.skip_init(nn.Linear, d_in, d_out, bias=False)
        with torch.no_grad():
            linear.weight.normal_(0, std, generator=self._rng)
        return linear

    def _source(self, s: Signals) -> Tensor:
        if self.config.input == "attention":
            return s.a
        assert s.x_c is not None
        assert s.x is not None
        return s.x_c - s.x

    def _code(self, A: nn.Module, s: Signals, name: str = "code") -> Tensor:
        """The code of these signals, made where it was not."""
        if name not in s.codes:
            code: Tensor = A(self._source(s))
            s.codes[name] = code.relu() if self.config.bottleneck == "relu" else code
        return s.codes[name]


class LowRankWeights(_LowRank):
    """Rank-k weight updates of the sites, from one bottleneck that they share."""

    def __init__(self, config: PlasticityConfig, d_model: int, d_ffn: int, layer: int):
        super().__init__(config, d_model, d_ffn, layer)
        k, r = config.num_ranks, self.rank
        d_in = {"gate": d_model, "up": d_model, "down": d_ffn}
        d_out = {"gate": d_ffn, "up": d_ffn, "down": d_model}
        self.code = self._linear(d_model, r, d_model**-0.5)
        # key[site].weight [k r, d_in]: the rows of component k are P_k^T; payload[site].weight [d_out, k r]: Q_k
        self.key = nn.ModuleDict()
        if config.key == "learned":
            self.key.update({s: self._linear(d_in[s], k * r, (d_in[s] * r) ** -0.5) for s in config.axes.sites})
        self.payload = nn.ModuleDict(
            {s: self._linear(k * r, d_out[s], 0.02 * (k * r) ** -0.5) for s in config.axes.sites}
        )
        del self._rng

    def forward(self, site: Site, projection: Callable[[Tensor], Tensor], z: Tensor, s: Signals) -> Tensor:
        code, Q = self._code(self.code, s), self._payload(site)
        k, r = self.config.num_ranks, self.rank
        if site in self.key:
            c = torch.einsum("...kr,...r->...k", self.key[site](z).unflatten(-1, (k, r)), code)
            code = (c[..., :, None] * code[..., None, :]).flatten(-2)  # c (x) code  [..., k r]
        elif k > 1:  # the self key: every c_k is 1
            Q = Q.unflatten(-1, (k, r)).sum(-2)
        y = projection(z)
        # y + code Q^T in one pass over y
        return torch.addmm(y.flatten(0, -2), code.flatten(0, -2), Q.T).view_as(y)

    def _payload(self, site: Site) -> Tensor:
        """[Q_1 ... Q_k] of a site [d_out, k r]."""
        Q: Tensor = self.payload[site].weight  # type: ignore[assignment]
        return Q

    def grams(self, site: Site, z: Tensor, s: Signals) -> tuple[Tensor, Tensor]:
        """(V_a^T V_a, V_b^T V_b) [..., k, k] of the factors at z, without forming them."""
        code, k = self.encode(s)["code"], self.config.num_ranks
        Q = self._payload(site)
        if site not in self.key:
            return self_gram(z, k), code_gram(code, Q, k)
        P: Tensor = self.key[site].weight  # type: ignore[assignment]
        return code_gram(code, P.T, k), code_gram(code, Q, k)

    def encode(self, s: Signals) -> dict[str, Tensor]:
        """The code that keys and payloads are made from [..., r]."""
        return {"code": self._code(self.code, s)}

    def factors(
        self, site: Site, projection: Callable[[Tensor], Tensor], z: Tensor, s: Signals
    ) -> tuple[Tensor, Tensor]:
        code = self._code(self.code, s)
        k, r = self.config.num_ranks, self.rank
        Q = self._payload(site)
        v_b = torch.einsum("okr,...r->...ko", Q.unflatten(-1, (k, r)), code)
        if site in self.key:
            P: Tensor = self.key[site].weight  # type: ignore[assignment]
            v_a = torch.einsum("kri,...r->...ki", P.unflatten(0, (k, r)), code)
        else:
            v_a = self_key(z)[..., None, :].expand(*z.shape[:-1], k, z.shape[-1])
        return v_a, v_b


class LowRankActivations(_LowRank):
    """d_add and d_mult of the gate's activations, each from its own adapter A [r, d], B [f, r]."""

    def __init__(self, config: PlasticityConfig, d_model: int, d_ffn: int, layer: int):
        super().__init__(config, d_model, d_ffn, layer)
        r = self.rank
        parts = {"additive": ["add"], "multiplicative": ["mult"], "both": ["mult", "add"]}[config.axes.modulation]
        self.code = nn.ModuleDict({p: self._linear(d_model, r, d_model**-0.5) for p in parts})
        self.payload = nn.ModuleDict({p: self._linear(r, d_ffn, 0.02 * r**-0.5) for p in parts})
        del self._rng

    def forward(self, site: Site, projection: Callable[[Tensor], Tensor], z: Tensor, s: Signals) -> Tensor:
        d = {p: self.payload[p](self._code(A, s, p)) for p, A in self.code.items()}
        return modulate_activation(projection(z), d.get("mult"), d.get("add"))

    def encode(self, s: Signals) -> dict[str, Tensor]:
        """The codes of its adapters [..., r]."""
        return {part: self._code(A, s, part) for part, A in self.code.items()}
