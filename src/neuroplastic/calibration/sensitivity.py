"""The cost of an error after a layer in terms of the model's predictions, which makes errors of layers comparable.

A small change delta of the residual stream after a layer, at one token, changes what the model predicts there and at
all later tokens. To second order the divergences add up to

    sum_t KL(p_t || p'_t) = 1/2 delta^T F delta        F = E[g g^T],  g = d/dh sum_t log p_t(y_t),  y_t ~ p_t

(the Fisher information; Martens 1412.1193, section 5: the cross terms of independently drawn y_t have mean zero). For
an error that has no preferred direction, 1/2 |delta|^2 tr(F) / d, where tr(F) = E|g|^2 needs one backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..capture import capturing
from ..console import Progress
from ..structure import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH = 4


def sensitivities(
    model: PreTrainedModel, layers: Sequence[int], text: Tensor, step: Progress | None = None, seed: int = 0
) -> dict[int, float]:
    """tr(F) / (2 d) of each layer: nats per token that an error of unit square after it costs.

    `text` (N, T) are rows of tokens without padding; their first position, an attention sink, is left out. The model
    must be in standard mode; no parameter gets a gradient.
    """
    squares = dict.fromkeys(layers, 0.0)
    for found in _gradients(model, {i: decoder_layers(model)[i] for i in layers}, text, step, seed):
        for i, g in found.items():
            squares[i] += g.double().square().sum().item()
    d = model.get_input_embeddings().embedding_dim
    return {i: total / text[:, 1:].numel() / (2 * d) for i, total in squares.items()}


def fisher_information(
    model: PreTrainedModel, modules: Mapping[int, nn.Module], text: Tensor, step: Progress | None = None, seed: int = 0
) -> dict[int, Tensor]:
    """F [d, d] of changes of each module's output, whatever module of the model it is; arguments as above."""
    sums: dict[int, Tensor] = {}
    for found in _gradients(model, modules, text, step, seed):
        for i, g in found.items():
            sums[i] = sums.get(i, 0) + g.float().T @ g.float()
    return {i: total / text[:, 1:].numel() for i, total in sums.items()}


def _gradients(
    model: PreTrainedModel, modules: Mapping[int, nn.Module], text: Tensor, step: Progress | None, seed: int
) -> Iterator[dict[int, Tensor]]:
    """g [tokens, d] of each module's output, batch by batch."""
    drawing = torch.Generator(device=text.device).manual_seed(seed)
    for done in range(0, len(text), BATCH):
        ids = text[done : done + BATCH]
        states: dict[int, Tensor] = {}

        def leaf(i: int, given: Tensor, h: Tensor, states: dict[int, Tensor] = states) -> Tensor:
            """Adds zeros to a module's output that a gradient can be taken of."""
            states[i] = torch.zeros_like(h, requires_grad=True)
            return h + states[i]

        with capturing(modules, leaf), torch.enable_grad():
            logits = model(input_ids=ids, use_cache=False).logits.float()
            drawn = torch.multinomial(logits.detach().softmax(-1).flatten(0, 1), 1, generator=drawing)
            logprob = logits.log_softmax(-1).flatten(0, 1).gather(-1, drawn).sum()
            gradients = torch.autograd.grad(logprob, [states[i] for i in modules])
        yield {i: g[:, 1:].flatten(0, 1) for i, g in zip(modules, gradients, strict=True)}
        if step is not None:
            step(min(done + BATCH, len(text)), len(text))
