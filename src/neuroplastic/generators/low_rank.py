"""Low-rank generators (docs/generators.md): code = act(A s), then per site and component keys and payloads.

    v_a_k = P_k code         P_k [d_in, r]     (or the self key z/|z|^2)
    v_b_k = g w_k Q_k code   Q_k [d_out, r]    w, g: 1, or what parts.py makes of the token

Neither is formed in the forward pass. With c_k = g w_k v_a_k . z, and v_a_k . z = code . (P_k^T z),

    sum_k v_b_k (v_a_k . z) = [Q_1 ... Q_k] (c (x) code)

is one product of the stacked Q [d_out, k r] with k r numbers per token; and if every c_k is 1, as with the self key,
(sum_k Q_k) code, a product of r numbers per token whatever k is. The code is made once for all sites.

`projected` heads are Q_k = W U_k with W the projection's own weights: W z + W U (c (x) code) = W (z + U (c (x) code)).
So the projection reads a moved input, and nothing as wide as its output is learned.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..config import PlasticityConfig, Site
from ..errors import NPTError
from ..modulation import code_gram, modulate_activation, self_gram, self_key
from .base import Generator, Signals
from .parts import Gate, RankAttention, linear, source

Projection = Callable[[Tensor], Tensor]


class LowRank(Generator):
    """What both forms share: bottleneck, coarse code, gate, seeded initialisation."""

    def __init__(self, config: PlasticityConfig, d_model: int, d_ffn: int, layer: int):
        super().__init__()
        if config.np_rank > d_model:
            raise NPTError(f"np_rank {config.np_rank} is above the model's width {d_model}")
        if config.coarse_rank > d_model:
            raise NPTError(f"coarse_rank {config.coarse_rank} is above the model's width {d_model}")
        self.config, self.d_model, self.d_ffn = config, d_model, d_ffn
        self.rank = config.np_rank
        self.width = config.coarse_rank + config.np_rank
        """of the code: the coarse part first, then the layer's own"""
        # each layer its own stream, so that adding a layer does not change the others
        self._rng = torch.Generator("cpu").manual_seed((config.seed * 1_000_003 + layer) % 2**63)

    def _add_parts(self, leads: bool) -> None:
        """Adds the parts after those of a plain generator, whose parameters are then drawn as without them."""
        self.coarse = linear(self._rng, self.d_model, self.config.coarse_rank, self.d_model**-0.5) if leads else None
        self.gate = Gate(self.d_model) if self.config.gate == "learned" else None
        del self._rng

    @property
    def cost_of_rank(self) -> int:
        """Parameters that one more of np_rank costs."""
        return sum(
            t.numel() // (self.rank if name.startswith("code") else self.width)
            for name, t in self.named_parameters()
            if name.startswith(("code", "key", "payload"))
        )

    def make_coarse(self, s: Signals) -> Tensor:
        """The code A_0 s [..., r_0] that the layers of this one's group share."""
        assert self.coarse is not None
        made: Tensor = self.coarse(source(self.config, s))
        return made

    def openness(self, s: Signals) -> Tensor | None:
        """The gate of each token [..., 1]; None without one."""
        if self.gate is None:
            return None
        if "gate" not in s.codes:
            s.codes["gate"] = self.gate(s.mlp_input, s.a)
        return s.codes["gate"]

    @abstractmethod
    def encode(self, s: Signals) -> dict[str, Tensor]:
        """The codes that payloads are made from [..., r]."""

    def _encoded(self, A: nn.Module, s: Signals, name: str = "code") -> Tensor:
        """The code of these signals, made if it was not."""
        if name not in s.codes:
            code: Tensor = A(source(self.config, s))
            if s.coarse is not None:
                code = torch.cat([s.coarse, code], -1)
            s.codes[name] = code.relu() if self.config.bottleneck == "relu" else code
        return s.codes[name]

    def _modulated_tokens(self, s: Signals) -> tuple[Tensor, Signals] | None:
        """Where a threshold closes gates: the open tokens' indices [n] among all, and their signals [n, ...]."""
        if self.config.gate_threshold == 0:
            return None
        g = self.openness(s)
        assert g is not None
        if s.open is None:
            rows = (g.flatten() >= self.config.gate_threshold).nonzero()[:, 0]
            read = {"a", "coarse"} if self.config.input == "attention" else {"x", "x_c", "coarse"}
            if self.config.rank_weights != "fixed":
                read.add("a")
            some = s.at(lambda t: t.flatten(0, -2).index_select(0, rows), read)
            some.codes["gate"] = g.flatten(0, -2)[rows]
            s.open = rows, some
        return s.open


class LowRankWeights(LowRank):
    """Rank-k weight updates of the sites, from one bottleneck that they share."""

    def __init__(self, config: PlasticityConfig, d_model: int, d_ffn: int, layer: int, leads: bool = False):
        super().__init__(config, d_model, d_ffn, layer)
        k, r = config.num_ranks, self.width
        d_in = {"gate": d_model, "up": d_model, "down": d_ffn}
        d_out = {"gate": d_ffn, "up": d_ffn, "down": d_model}
        self.code = linear(self._rng, d_model, self.rank, d_model**-0.5)
        # key[site].weight [k r, d_in]: the rows of component k are P_k^T; payload[head].weight [d_out, k r]: Q_k or U_k
        self.key = nn.ModuleDict()
        if config.key == "learned":
            self.key.update({s: linear(self._rng, d_in[s], k * r, (d_in[s] * r) ** -0.5) for s in config.axes.sites})
        widths = {self.head_of(s): d_model if self._projects(s) else d_out[s] for s in config.axes.sites}
        self.payload = nn.ModuleDict(
            {head: linear(self._rng, k * r, width, 0.02 * (k * r) ** -0.5) for head, width in widths.items()}
        )
        self.weights = (
            RankAttention(self._rng, d_model, k, config.top_ranks) if config.rank_weights != "fixed" else None
        )
        self._add_parts(leads)

    def head_of(self, site: Site) -> str:
        """The name of a site's payload head: its own, or `input` if gate and up share a projected one."""
        return "input" if self._projects(site) else site

    def _projects(self, site: Site) -> bool:
        return self.config.heads == "projected" and site != "down"

    def forward(self, site: Site, projection: Projection, z: Tensor, s: Signals) -> Tensor:
        if self._projects(site):
            name = f"moved.{site}" if site in self.key else "moved"  # the same for both sites unless keys differ
            if name not in s.codes:
                s.codes[name] = self._add(z, site, z, s)
            return projection(s.codes[name])
        return self._add(projection(z), site, z, s)

    def _add(self, y: Tensor, site: Site, z: Tensor, s: Signals) -> Tensor:
        """y + Q (c (x) code), the head's part of dW z. Tokens and components that were not chosen cost nothing."""
        chosen = self._modulated_tokens(s)
        rows, some = (None, s) if chosen is None else chosen
        z, flat = z.flatten(0, -2), y.flatten(0, -2)
        if rows is not None and site in self.key:
            z = z.index_select(0, rows)
        if self.weights is not None and self.weights.top < self.config.num_ranks:
            added = self._by_component(site, z, some)
        else:
            code, Q = self._mixed(site, z, some)
            if rows is None:  # in one pass over y
                return torch.addmm(flat, code, Q.T).view_as(y)
            added = code @ Q.T
        return (flat + added if rows is None else flat.index_add(0, rows, added)).view_as(y)

    def _mixed(self, site: Site, z: Tensor, s: Signals) -> tuple[Tensor, Tensor]:
        """(c (x) code, [Q_1 ... Q_k]) of z [n, d_in], or their short form if all components answer alike."""
        code, Q, k = self._encoded(self.code, s).flatten(0, -2), self._payload(site), self.config.num_ranks
        c = self.component_weights(s)
        if site in self.key:
            keyed = torch.einsum("nkr,nr->nk", torch.unflatten(self.key[site](z), -1, (k, self.width)), code)
            c = keyed if c is None else c * keyed
        if (g := self.openness(s)) is not None:
            code = g.flatten(0, -2) * code
        if c is not None:
            return (c[:, :, None] * code[:, None, :]).flatten(-2), Q
        return code, Q if k == 1 else torch.unflatten(Q, -1, (k, self.width)).sum(-2)

    def _by_component(self, site: Site, z: Tensor, s: Signals) -> Tensor:
        """sum over the chosen components of c_k Q_k code [n, d_out]: each sees only the tokens that chose it."""
        code, k = self._encoded(self.code, s).flatten(0, -2), self.config.num_ranks
        Q = torch.unflatten(self._payload(site), -1, (k, self.width))
        w, g = self.component_weights(s), self.openness(s)
        assert w is not None
        added = code.new_zeros(len(code), len(Q))
        for j in range(k):
            rows = (w[:, j] > 0).nonzero()[:, 0]
            c, of = w[rows, j], code[rows]
            if site in self.key:
                P = torch.unflatten(self._weight(self.key[site]), 0, (k, self.width))
                c = c * torch.einsum("nr,nr->n", z[rows] @ P[j].T, of)
            if g is not None:
                c = c * g.flatten()[rows]
            added.index_add_(0, rows, (c[:, None] * of) @ Q[:, j].T)
        return added

    def component_weights(self, s: Signals) -> Tensor | None:
        """w [n, k] of all tokens in a row; None if all are 1."""
        if self.weights is None:
            return None
        if "weights" not in s.codes:
            s.codes["weights"] = self.weights(s.a.flatten(0, -2))
        return s.codes["weights"]

    @staticmethod
    def _weight(module: nn.Module) -> Tensor:
        weight: Tensor = module.weight  # type: ignore[assignment]
        return weight

    def _payload(self, site: Site) -> Tensor:
        """[Q_1 ... Q_k] of a site's head [d_out, k r]; [U_1 ... U_k] [d, k r] if it is projected."""
        return self._weight(self.payload[self.head_of(site)])

    def _full_payload(self, site: Site, projection: Projection) -> Tensor:
        """[Q_1 ... Q_k] [d_out, k r], whatever the head is."""
        Q = self._payload(site)
        if not self._projects(site):
            return Q
        rows = Q.T
        return (projection(rows) - projection(torch.zeros_like(rows[:1]))).T  # a bias cancels

    def scales(self, s: Signals) -> Tensor | None:
        """g w_k [..., k]: what each component's payload is multiplied by; None if all are 1."""
        w, g = self.component_weights(s), self.openness(s)
        shape = (*s.a.shape[:-1], self.config.num_ranks)
        scale = None if w is None else w.view(shape)
        if g is not None:
            if self.config.gate_threshold > 0:
                g = torch.where(g >= self.config.gate_threshold, g, 0.0)
            scale = g.expand(shape) if scale is None else g * scale
        return scale

    def grams(self, site: Site, projection: Projection, z: Tensor, s: Signals) -> tuple[Tensor, Tensor]:
        """(V_a^T V_a, V_b^T V_b) [..., k, k] of the factors at z, without forming them."""
        code, k = self.encode(s)["code"], self.config.num_ranks
        gram_b = code_gram(code, self._full_payload(site, projection), k)
        if (scale := self.scales(s)) is not None:
            gram_b = gram_b * scale[..., :, None] * scale[..., None, :]
        if site not in self.key:
            return self_gram(z, k), gram_b
        return code_gram(code, self._weight(self.key[site]).T, k), gram_b

    def encode(self, s: Signals) -> dict[str, Tensor]:
        return {"code": self._encoded(self.code, s)}

    def factors(self, site: Site, projection: Projection, z: Tensor, s: Signals) -> tuple[Tensor, Tensor]:
        code = self._encoded(self.code, s)
        k, r = self.config.num_ranks, self.width
        Q = torch.unflatten(self._full_payload(site, projection), -1, (k, r))
        v_b = torch.einsum("okr,...r->...ko", Q, code)
        if (scale := self.scales(s)) is not None:
            v_b = scale[..., None] * v_b
        if site in self.key:
            P = torch.unflatten(self._weight(self.key[site]), 0, (k, r))
            v_a = torch.einsum("kri,...r->...ki", P, code)
        else:
            v_a = self_key(z)[..., None, :].expand(*z.shape[:-1], k, z.shape[-1])
        return v_a, v_b


class LowRankActivations(LowRank):
    """d_add and d_mult of the gate's activations, each from its own adapter A [r, d], B [f, r]."""

    def __init__(self, config: PlasticityConfig, d_model: int, d_ffn: int, layer: int, leads: bool = False):
        super().__init__(config, d_model, d_ffn, layer)
        parts = {"additive": ["add"], "multiplicative": ["mult"], "both": ["mult", "add"]}[config.axes.modulation]
        self.code = nn.ModuleDict({p: linear(self._rng, d_model, self.rank, d_model**-0.5) for p in parts})
        self.payload = nn.ModuleDict({p: linear(self._rng, self.width, d_ffn, 0.02 * self.width**-0.5) for p in parts})
        self._add_parts(leads)

    def forward(self, site: Site, projection: Projection, z: Tensor, s: Signals) -> Tensor:
        y = projection(z)
        chosen = self._modulated_tokens(s)
        if chosen is None:
            d = self._made(s)
        else:
            rows, some = chosen
            nothing = torch.zeros_like(y).flatten(0, -2)
            d = {p: nothing.index_add(0, rows, t).view_as(y) for p, t in self._made(some).items()}
        return modulate_activation(y, d.get("mult"), d.get("add"))

    def _made(self, s: Signals) -> dict[str, Tensor]:
        g = self.openness(s)
        made: dict[str, Tensor] = {p: self.payload[p](self._encoded(A, s, p)) for p, A in self.code.items()}
        return made if g is None else {p: g * t for p, t in made.items()}

    def encode(self, s: Signals) -> dict[str, Tensor]:
        return {part: self._encoded(A, s, part) for part, A in self.code.items()}
