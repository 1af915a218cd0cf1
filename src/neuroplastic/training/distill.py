"""Distillation: generators learn to make converted layers do what the pretrained ones do (docs/training.md).

    L = direct_weight    mean over layers of |mlp' - target|^2 / |target|^2     target: MLP(x_c); `drop`: a + MLP(x_c)
      + fidelity_weight  KL(base || plastic)
      + reg_weight       mean over layers and sites of |dW|_F^2, or of the squares of the modulation vectors
      + gate_weight      max(0, mean gate - gate_open), if generators have gates

In the teacher stage every layer is fed what the pretrained layers see: one frozen forward gives inputs and targets of
all layers, each learns on its own, and no gradient crosses a layer; there are no logits to compare. Where many layers
learn, most of the work is theirs: each then learns from every n-th token, other ones in every row and layer. Afterwards
the plastic model runs, with each converted layer's hidden state moved from the teacher's to its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..capture import capturing, feeding
from ..config import Site
from ..generators import Signals
from ..generators.low_rank import LowRank, LowRankWeights
from ..modulation import effective_number
from ..observe import Seen, observing, read_layers
from ..surgery import Plasticity, Projection, learnable_layers, mode
from ..training import losses
from .packing import Packed
from .recipe import TrainSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FEW_LAYERS = 6
"""Up to this number of layers learn from every token by default: the frozen forward pass is most of the work."""
EVERY = 4
"""With more layers, each learns from every Nth token: neighbouring tokens are much alike, and steps are faster."""
LOOKED_AT = 16
"""Every Nth token serves for what is only logged."""


class Distillation(nn.Module):
    """The generators of a converted model, and their losses on rows of text. Its parameters are theirs alone."""

    def __init__(self, model: PreTrainedModel, settings: TrainSettings):
        super().__init__()
        plastic = learnable_layers(model)
        self.generators = nn.ModuleDict({str(i): p.generator for i, p in plastic.items()})
        # held by plain objects: the model's weights are not trained, saved or synchronised
        self._model, self.plastic = [model], plastic
        self.settings = settings
        self.power: dict[int, Tensor] = {}
        """mean |target|^2 of each layer"""

    @property
    def model(self) -> PreTrainedModel:
        return self._model[0]

    @torch.no_grad()
    def measure_power(self, text: Tensor) -> None:
        """Takes each layer's mean |target|^2 from `text` (N, T), without the first position, an attention sink."""

        def see(seen: Seen) -> None:
            i = seen.parts.index
            self.power[i] = target_of(self.plastic[i], seen)[:, 1:].square().sum(-1).mean()

        with mode(self.model, "standard"):
            read_layers(self.model, [p.parts for p in self.plastic.values()], see, input_ids=text)

    def forward(self, rows: Packed, weight: Tensor, blend: float) -> dict[str, Tensor]:
        """Losses, and what is logged, on some rows; `weight` (N, T) sums to 1 over the whole step."""
        look = Look(self.plastic, weight, self.settings)
        if blend == 0:
            direct = self._teacher_stage(rows, weight, look)
            fidelity = weight.new_zeros(())
        else:
            direct, fidelity = self._student(rows, weight, blend, look)
        s = self.settings
        mean = torch.stack(list(direct.values())).mean()
        regularisation = torch.stack(look.regularisation).mean()
        loss = s.direct_weight * mean + s.fidelity_weight * fidelity + s.reg_weight * regularisation
        found = {"direct": mean, "fidelity": fidelity, "regularisation": regularisation}
        if look.openness:
            found["openness"] = torch.stack(look.openness).mean()
            loss = loss + s.gate_weight * (found["openness"] - s.gate_open).clamp_min(0)
        found = {"loss": loss, **found}
        return found | {f"direct.{i}": d for i, d in direct.items()} | look.logged

    def _teacher_stage(self, rows: Packed, weight: Tensor, look: Look) -> dict[int, Tensor]:
        """The direct loss of every layer from one frozen forward."""
        direct: dict[int, Tensor] = {}
        learning = torch.is_grad_enabled()
        n = self.settings.every or (1 if len(self.plastic) <= FEW_LAYERS else EVERY)

        def see(seen: Seen) -> None:
            i = seen.parts.index
            if n > 1:
                group = self.plastic[i].group  # layers that share a coarse code learn from the same tokens
                chosen = every_nth(rows, n, group[0] if group else i)
                at = chosen.flatten().nonzero()[:, 0]
                seen = seen.at(lambda t: t.flatten(0, 1).index_select(0, at)[None])
                look.weights[i] = n * weight.flatten()[at][None]
            with torch.set_grad_enabled(learning):
                made = rerun(self.plastic[i], seen)
                direct[i] = losses.direct(made, target_of(self.plastic[i], seen), self.power[i], look.weights[i])

        parts = [p.parts for p in self.plastic.values()]
        with mode(self.model, "standard"), look.at_all(), torch.no_grad():
            read_layers(self.model, parts, see, input_ids=rows.ids, position_ids=rows.positions)
        return direct

    def _student(self, rows: Packed, weight: Tensor, blend: float, look: Look) -> tuple[dict[int, Tensor], Tensor]:
        """Direct losses and KL of the plastic model, run with hidden states of which `blend` are its own."""
        taught: dict[int, tuple[Tensor, Tensor]] = {}
        direct: dict[int, Tensor] = {}

        def see(seen: Seen) -> None:
            i = seen.parts.index
            taught[i] = (seen.h, target_of(self.plastic[i], seen))

        parts = [p.parts for p in self.plastic.values()]
        inputs = {"input_ids": rows.ids, "position_ids": rows.positions, "use_cache": False}
        with mode(self.model, "standard"), observing(parts, see), torch.no_grad():
            teacher = self.model(**inputs).logits

        def feed(i: int, own: Tensor) -> Tensor:
            return torch.lerp(taught[i][0], own, blend) if blend < 1 else own

        def compare(i: int, given: Tensor, made: Tensor) -> None:
            direct[i] = losses.direct(made, taught[i][1], self.power[i], weight)

        layers = {i: p.parts.layer for i, p in self.plastic.items()}
        mlps = {i: p.parts.mlp for i, p in self.plastic.items()}
        with feeding(layers, feed), capturing(mlps, compare), mode(self.model, "dynamic"), look.at_all():
            student = self.model(**inputs).logits
        return direct, losses.divergence(teacher, student, weight)


def target_of(plasticity: Plasticity, seen: Seen) -> Tensor:
    """What the modulated MLP should give (N, T, d): section 2's last column."""
    return seen.y + seen.carried if plasticity.state.drop else seen.y


def every_nth(rows: Packed, n: int, offset: int) -> Tensor:
    """Every n-th position of each row -> bool (N, T); which of them depends on the row's own tokens alone, so that rows
    may be dealt out to processes in any way."""
    first = (rows.ids * rows.valid).sum(1, keepdim=True) + offset
    return (torch.arange(rows.ids.shape[1], device=first.device) - first) % n == 0


def rerun(plasticity: Plasticity, seen: Seen) -> Tensor:
    """The modulated MLP (N, T, d) on what the pretrained layer saw."""
    plasticity.state.h, plasticity.state.a = seen.h, seen.a
    made: Tensor = plasticity(seen.x if plasticity.state.drop else seen.x_c)
    return made


class Look:
    """Sees every modulated projection of one pass: what is regularised, and what is logged."""

    def __init__(self, plastic: dict[int, Plasticity], weight: Tensor, settings: TrainSettings):
        self.plastic, self.settings = plastic, settings
        self.weights = dict.fromkeys(plastic, weight)
        """of the tokens that each layer learns from"""
        self.regularisation: list[Tensor] = []
        self.openness: list[Tensor] = []
        """mean gate of each layer that has one"""
        self.logged: dict[str, Tensor] = {}

    @contextmanager
    def at_all(self) -> Iterator[None]:
        """While it lasts, the layers are looked at."""
        for i, p in self.plastic.items():

            def probe(site: Site, linear: Projection, z: Tensor, s: Signals, y: Tensor, i: int = i) -> None:
                self._see(i, site, linear, z, s, y)

            p.probe = probe
        try:
            yield
        finally:
            for p in self.plastic.values():
                p.probe = None

    def _see(self, i: int, site: Site, linear: Projection, z: Tensor, s: Signals, y: Tensor) -> None:
        generator = self.plastic[i].generator
        if isinstance(generator, LowRankWeights):
            grams = generator.grams(site, linear, z, s)
            squares = losses.frobenius(*grams)
            kept_small = squares if self.settings.reg == "frobenius" else losses.vectors(*grams)
        else:  # activations have no dW: what is done to them is kept small, whichever is asked for
            with torch.no_grad():
                unmodulated = linear(z)
            squares = kept_small = (y - unmodulated).square().sum(-1)
        self.regularisation.append((self.weights[i] * kept_small).sum())
        first = site == self.plastic[i].config.axes.sites[0]
        if first and isinstance(generator, LowRank) and (g := generator.openness(s)) is not None:
            self.openness.append((self.weights[i] * g[..., 0]).sum() / self.weights[i].sum())
            self.logged[f"gate.{i}"] = self.openness[-1].detach()
        with torch.no_grad():
            self.logged[f"norm.{i}.{site}"] = (self.weights[i] * squares).sum().sqrt()
            if first:
                self._log_once(i, site, linear, z, s)

    def _log_once(self, i: int, site: Site, linear: Projection, z: Tensor, s: Signals) -> None:
        """Of some tokens: the cosine between key and attention output, and how many directions the code uses."""
        chosen = (self.weights[i].flatten() > 0).nonzero()[::LOOKED_AT, 0]
        some, z = s.at(lambda t: t.flatten(0, 1)[chosen]), z.flatten(0, 1)[chosen]
        generator = self.plastic[i].generator
        if isinstance(generator, LowRankWeights):
            v_a, _ = generator.factors(site, linear, z, some)
            if v_a.shape[-1] == some.a.shape[-1]:
                self.logged[f"cosine.{i}"] = torch.cosine_similarity(v_a, some.a[:, None], dim=-1).mean()
            if (w := generator.component_weights(some)) is not None:
                self.logged[f"components.{i}"] = effective_number(w).mean()
        for name, code in generator.encode(some).items():  # type: ignore[operator]
            flat = code.float()
            self.logged[f"rank.{i}" + (f".{name}" if name != "code" else "")] = losses.participation(flat.T @ flat)
