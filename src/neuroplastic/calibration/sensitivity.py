"""How much an error behind a layer costs in the end: what makes errors of different layers comparable.

A small change delta of the residual stream behind a layer, at one token, changes what the model predicts there and at
all later tokens. To second order the divergences add up to

    sum_t KL(p_t || p'_t) = 1/2 delta^T F delta        F = E[g g^T],  g = d/dh sum_t log p_t(y_t),  y_t ~ p_t

(the Fisher information; Martens 1412.1193, section 5: the cross terms of independently drawn y_t have mean zero). For
an error that has no preferred direction, 1/2 |delta|^2 tr(F) / d, where tr(F) = E|g|^2 needs one backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..console import Progress
from ..structure import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH = 4


def sensitivities(
    model: PreTrainedModel, layers: Sequence[int], text: Tensor, step: Progress | None = None, seed: int = 0
) -> dict[int, float]:
    """tr(F) / (2 d) of each layer: nats per token that an error of unit square behind it costs.

    `text` (N, T) are rows of tokens without padding; their first position, an attention sink, is left out. The model
    must be in standard mode; no parameter gets a gradient.
    """
    drawing = torch.Generator(device=text.device).manual_seed(seed)
    squares = dict.fromkeys(layers, 0.0)
    for done in range(0, len(text), BATCH):
        ids = text[done : done + BATCH]
        states: dict[int, Tensor] = {}
        handles = [decoder_layers(model)[i].register_forward_hook(_leaf(states, i)) for i in layers]
        try:
            with torch.enable_grad():
                logits = model(input_ids=ids, use_cache=False).logits.float()
                drawn = torch.multinomial(logits.detach().softmax(-1).flatten(0, 1), 1, generator=drawing)
                said = logits.log_softmax(-1).flatten(0, 1).gather(-1, drawn).sum()
                gradients = torch.autograd.grad(said, [states[i] for i in layers])
        finally:
            for handle in handles:
                handle.remove()
        for i, g in zip(layers, gradients, strict=True):
            squares[i] += g[:, 1:].double().square().sum().item()
        if step is not None:
            step(min(done + BATCH, len(text)), len(text))
    d = model.get_input_embeddings().embedding_dim
    return {i: total / text[:, 1:].numel() / (2 * d) for i, total in squares.items()}


def _leaf(states: dict[int, Tensor], i: int) -> Any:
    """Adds zeros to a layer's output that a gradient can be taken of."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        h = output[0] if isinstance(output, tuple) else output
        states[i] = torch.zeros_like(h, requires_grad=True)
        moved = h + states[i]
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    return hook
