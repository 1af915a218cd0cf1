"""How close dynamic mode is to the pretrained model, on held-out text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from ..capture import capturing
from ..console import Progress
from ..structure import decoder_layers
from ..surgery import mode, plastic_layers
from ..text.perplexity import exp_of_nats
from .usage import Usage, Watch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Agreement:
    """A plastic model against its base, over some of the predicted tokens."""

    tokens: int
    """predicted tokens"""
    perplexity_ratio: float
    kl: float
    """KL divergence from base to plastic, nats per token"""
    top1_agreement: float
    """share of positions at which the same token is the likeliest to both"""


@dataclass(frozen=True)
class Fidelity(Agreement):
    """Dynamic mode against the base (the same model in standard mode) on the same tokens."""

    perplexity_base: float
    perplexity: float
    max_logit_error: float
    """largest absolute difference of any logit at any position"""
    per_layer_error: dict[str, float]
    """|H - H_base| / |H_base| of the residual stream after each converted layer, all layers plastic at once; the
    first position, an attention sink whose norm hides all others, is left out"""
    by_position: dict[str, Agreement]
    """over predicted tokens by the number of tokens before them, the start token included: 1, 2-3, 4-7, ..."""
    by_layer: dict[str, Agreement]
    """with this layer alone dynamic, the others standard; empty if it was not asked for"""
    usage: dict[str, Usage]
    """what tokens use of the layers whose generators choose components, or tokens"""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Compared(NamedTuple):
    """Sums over sequences, at each of the T - 1 positions that predict a token, in float64."""

    rows: int
    nll_base: Tensor
    nll: Tensor
    kl: Tensor
    same: Tensor

    def agreement(self, positions: slice = slice(None)) -> Agreement:
        """Over some of the positions."""
        base, plastic, kl, same = (t[positions].sum().item() for t in self[1:])
        n = self.rows * len(self.kl[positions])
        # rounding can take a KL of nothing below zero
        return Agreement(n, exp_of_nats((plastic - base) / n), max(0.0, kl / n), same / n)


@torch.no_grad()
def measure_fidelity(
    model: PreTrainedModel,
    text: Tensor,
    batch_size: int = 4,
    step: Progress | None = None,
    each_layer: bool = False,
) -> Fidelity:
    """Compares the modes of a converted model on `text` (N, T), rows of tokens without padding.

    `each_layer` also makes every layer dynamic alone, which takes a pass over the text for each.
    """
    plastic = plastic_layers(model)
    indices = tuple(plastic)
    largest, alone = 0.0, {i: _nothing(text) for i in indices if each_layer}
    overall_sums, watch = _nothing(text), Watch(plastic)
    differing, power = dict.fromkeys(indices, 0.0), dict.fromkeys(indices, 0.0)
    total = len(text) * (1 + len(alone))
    for done in range(0, len(text), batch_size):
        ids = text[done : done + batch_size]
        with mode(model, "standard"):
            base, base_states = _forward(model, ids, indices)
            for n, i in enumerate(alone):
                plastic[i].state.dynamic = True
                alone[i] = _add(alone[i], compare(base, _forward(model, ids, ())[0], ids))
                plastic[i].state.dynamic = False
                if step is not None:
                    step(done * (1 + len(alone)) + n * len(ids), total)
        with mode(model, "dynamic"), watch.on():
            logits, states = _forward(model, ids, indices)
        for i in indices:
            differing[i] += (states[i] - base_states[i])[:, 1:].double().square().sum().item()
            power[i] += base_states[i][:, 1:].double().square().sum().item()
        largest = max(largest, (logits - base).abs().max().item())
        overall_sums = _add(overall_sums, compare(base, logits, ids))
        if step is not None:
            step(min(done + batch_size, len(text)) * (1 + len(alone)), total)
    overall = overall_sums.agreement()
    return Fidelity(
        **vars(overall),
        perplexity_base=exp_of_nats(overall_sums.nll_base.sum().item() / overall.tokens),
        perplexity=exp_of_nats(overall_sums.nll.sum().item() / overall.tokens),
        max_logit_error=largest,
        per_layer_error={str(i): (differing[i] / power[i]) ** 0.5 if power[i] else 0.0 for i in indices},
        by_position={name: overall_sums.agreement(at) for name, at in buckets(text.shape[1] - 1).items()},
        by_layer={str(i): found.agreement() for i, found in alone.items()},
        usage=watch.found(),
    )


def compare(base: Tensor, plastic: Tensor, ids: Tensor) -> Compared:
    """Logits (N, T, vocab) of the same tokens (N, T), by the base and by the plastic model."""
    target = ids[:, 1:].flatten()
    p, q = base[:, :-1].flatten(0, 1), plastic[:, :-1].flatten(0, 1)
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    figures = (
        cross_entropy(p, target, reduction="none"),
        cross_entropy(q, target, reduction="none"),
        kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1),
        p.argmax(-1) == q.argmax(-1),
    )
    return Compared(len(ids), *(torch.unflatten(f.double(), 0, (len(ids), -1)).sum(0) for f in figures))


def buckets(positions: int) -> dict[str, slice]:
    """Positions by the number of tokens before the predicted one: 1, 2-3, 4-7, ... Position i has i + 1."""
    found, first = {}, 1
    while first <= positions:
        last = min(2 * first - 1, positions)
        found[str(first) if first == last else f"{first}-{last}"] = slice(first - 1, last)
        first *= 2
    return found


def _nothing(text: Tensor) -> Compared:
    zero = torch.zeros(text.shape[1] - 1, dtype=torch.float64, device=text.device)
    return Compared(0, zero, zero, zero, zero)


def _add(one: Compared, other: Compared) -> Compared:
    return Compared(one.rows + other.rows, *(a + b for a, b in zip(one[1:], other[1:], strict=True)))


def _forward(model: PreTrainedModel, ids: Tensor, indices: Sequence[int]) -> tuple[Tensor, dict[int, Tensor]]:
    """The logits, and the residual stream after each of the layers."""
    layers, states = decoder_layers(model), dict[int, Tensor]()

    def keep(i: int, given: Tensor, output: Tensor) -> None:
        states[i] = output

    with capturing({i: layers[i] for i in indices}, keep):
        logits = model(input_ids=ids, use_cache=False).logits.float()
    return logits, states
