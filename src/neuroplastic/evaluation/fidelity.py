"""How close dynamic mode is to the pretrained model, on held-out text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from ..console import Progress
from ..structure import decoder_layers
from ..surgery import mode, plastic_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


POSITIONS = 128
"""How many positions get their logits at once."""


@dataclass(frozen=True)
class Fidelity:
    """Dynamic mode against the base (the same model in standard mode) on the same tokens."""

    tokens: int
    """predicted tokens"""
    perplexity_base: float
    perplexity: float
    kl: float
    """KL divergence from base to plastic, nats per token"""
    top1_agreement: float
    """share of positions at which both think the same token likeliest"""
    max_logit_error: float
    """largest absolute difference of any logit at any position"""
    per_layer_error: dict[str, float]
    """|H - H_base| / |H_base| of the residual stream behind each converted layer, all layers plastic at once; the
    first position, an attention sink whose norm hides all others, is left out"""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@torch.no_grad()
def measure_fidelity(
    model: PreTrainedModel, text: Tensor, batch_size: int = 4, step: Progress | None = None
) -> Fidelity:
    """Compares the modes of a converted model on `text` (N, T), rows of tokens without padding."""
    indices = tuple(plastic_layers(model))
    total = dict.fromkeys(("base", "plastic", "kl", "agree"), 0.0)
    largest, count = 0.0, 0
    differing, power = dict.fromkeys(indices, 0.0), dict.fromkeys(indices, 0.0)
    for done in range(0, len(text), batch_size):
        ids = text[done : done + batch_size]
        with mode(model, "standard"):
            base, base_states = _forward(model, ids, indices)
        with mode(model, "dynamic"):
            plastic, states = _forward(model, ids, indices)
        for i in indices:
            differing[i] += (states[i] - base_states[i])[:, 1:].double().square().sum().item()
            power[i] += base_states[i][:, 1:].double().square().sum().item()
        largest = max(largest, (plastic - base).abs().max().item())
        base, plastic, target = (
            base[:, :-1].flatten(0, 1),
            plastic[:, :-1].flatten(0, 1),
            ids[:, 1:].flatten(),
        )
        total["base"] += cross_entropy(base, target, reduction="sum").item()
        total["plastic"] += cross_entropy(plastic, target, reduction="sum").item()
        total["agree"] += (base.argmax(-1) == plastic.argmax(-1)).sum().item()
        p, q = base.log_softmax(-1), plastic.log_softmax(-1)
        total["kl"] += kl_div(q, p, reduction="sum", log_target=True).item()
        count += target.numel()
        if step is not None:
            step(min(done + batch_size, len(text)), len(text))
    return Fidelity(
        tokens=count,
        perplexity_base=math.exp(total["base"] / count),
        perplexity=math.exp(total["plastic"] / count),
        kl=max(0.0, total["kl"] / count),  # rounding can take a KL of nothing below zero
        top1_agreement=total["agree"] / count,
        max_logit_error=largest,
        per_layer_error={str(i): (differing[i] / power[i]) ** 0.5 if power[i] else 0.0 for i in indices},
    )


@torch.no_grad()
def perplexity(model: PreTrainedModel, text: Tensor, batch_size: int = 4) -> float:
    """Perplexity of the model, in the mode it is in, on `text` (N, T), rows of tokens without padding."""
    nll, head = 0.0, model.get_output_embeddings()
    for ids in text.split(batch_size):
        states = model.base_model(input_ids=ids, use_cache=False)[0][:, :-1].flatten(0, 1)
        # some positions at a time: all of their logits at once are memory that the system has to find first
        for some, wanted in zip(states.split(POSITIONS), ids[:, 1:].flatten().split(POSITIONS), strict=True):
            nll += cross_entropy(head(some).float(), wanted, reduction="sum").item()
    return math.exp(nll / text[:, 1:].numel())


def _forward(model: PreTrainedModel, ids: Tensor, indices: Sequence[int]) -> tuple[Tensor, dict[int, Tensor]]:
    with _states(model, indices) as states:
        logits = model(input_ids=ids, use_cache=False).logits.float()
    return logits, states


@contextmanager
def _states(model: nn.Module, indices: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """The residual stream behind each of the layers, of the forward pass made inside."""
    layers, found = decoder_layers(model), {}
    handles = []
    for i in indices:

        def hook(module: nn.Module, args: Any, output: Any, i: int = i) -> None:
            found[i] = output[0] if isinstance(output, tuple) else output

        handles.append(layers[i].register_forward_hook(hook))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
