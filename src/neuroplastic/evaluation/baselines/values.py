"""The value that makes an answer likely: the optimisation that ROME and MEMIT share.

delta is added to what an MLP gives at the subject's last token, in every row, and minimises

    L(delta) = 1/N sum_j -log P_delta[o | x_j + p]  +  kl D_KL(P_delta[. | p'] || P[. | p'])  +  decay |delta| / |v0|^2

with x_j random beginnings, p' = "{subject} is a", v0 its own output (Meng et al. 2202.05262, section 3.1, equation 4;
the last term, and the bound |delta| <= clamp |v0|, are its released code's). MEMIT adds delta to the residual stream
instead, and v0 is that stream (Meng et al. 2210.07229, section 4.2). Adam (Kingma and Ba 1412.6980).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from ...editing.targets import Reader, Row
from ...errors import NPTError
from ...structure import LayerParts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ValueSearch:
    """How delta is searched for: as ROME's released settings for GPT-2 XL do, but for the beginnings."""

    steps: int = 20
    rate: float = 0.5
    kl: float = 0.0625
    decay: float = 0.5
    clamp: float = 4.0
    """longest delta, in units of |v0|"""
    prefixes: int = 3
    """beginnings x_j; the papers have 20 and more, which here would take most of the time"""
    enough: float = 0.05
    """stop where the answers' negative log-probability per token is below this, in nats"""


def find_delta(
    model: PreTrainedModel, part: LayerParts, rows: Sequence[Row], essence: Row, value: Tensor, search: ValueSearch
) -> Tensor:
    """delta [d], added to what the down projection of `part` gives; its bound is in units of |v0|, `value` [d].

    Touches no weight. Tokens before the subject's last one depend on no delta; as in our own search they are read once
    and cached, so that times compare methods. Raises NPTError if no answer depends on delta, as in the last layer.
    """
    reader = Reader(model, [part], ["down"], [*rows, essence])
    size, delta = value.norm(), torch.zeros_like(value, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=search.rate)
    before: Tensor | None = None
    for _ in range(search.steps):
        with torch.enable_grad():
            predictions = reader.predictions({(part.index, "down"): delta[None]})
            loss = -reader.of_answers(predictions)[:-1].mean()
            if loss < search.enough:
                break
            predicted = predictions[-1]  # what follows the essence
            if before is None:
                before = predicted.detach()  # delta is zero
                if not torch.autograd.grad(loss, [delta], retain_graph=True)[0].any():
                    raise NPTError("no answer depends on what this layer gives at the subject; choose an earlier one")
            kept = kl_div(before, predicted, reduction="sum", log_target=True)
            total = loss + search.kl * kept + search.decay * delta.norm() / size**2
            (delta.grad,) = torch.autograd.grad(total, [delta])
        adam.step()
        with torch.no_grad():
            delta *= (search.clamp * size / delta.norm()).clamp_max(1)
    return delta.detach()
