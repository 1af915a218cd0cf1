"""How likely a model finds a text."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..errors import NPTError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POSITIONS = 128
"""Number of positions that get their logits at once."""


@torch.no_grad()
def perplexity(model: PreTrainedModel, text: Tensor, batch_size: int = 4) -> float:
    """Perplexity of the model, in the mode it is in, on `text` (N, T), rows of tokens without padding."""
    nll, head = 0.0, model.get_output_embeddings()
    for ids in torch.split(text, batch_size):
        states = model.base_model(input_ids=ids, use_cache=False)[0][:, :-1].flatten(0, 1)
        # some positions at a time: all of their logits at once are memory that the system has to find first
        parts = (torch.split(t, POSITIONS) for t in (states, ids[:, 1:].flatten()))
        for some, wanted in zip(*parts, strict=True):
            nll += cross_entropy(head(some).float(), wanted, reduction="sum").item()
    return exp_of_nats(nll / text[:, 1:].numel())


def exp_of_nats(nats: float) -> float:
    """A perplexity, from nats per token. Raises NPTError if it is no number or beyond the largest one."""
    if not nats < math.log(sys.float_info.max):
        raise NPTError(
            f"perplexity on ordinary text is no finite number ({nats:.3g} nats per token): the model's weights are "
            "damaged, or an edit is far too strong (a smaller alpha disturbs less)"
        )
    return math.exp(nats)
