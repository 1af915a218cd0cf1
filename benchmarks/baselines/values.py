"""The value that makes an answer likely: the optimisation that ROME and MEMIT share.

delta is added to what a module gives at the subject's last token, in every row, and minimises

    L(delta) = 1/N sum_j -log P_delta[o | x_j + p]  +  kl D_KL(P_delta[. | p'] || P[. | p'])  +  decay |delta| / |v0|^2

with x_j random beginnings, p' = "{subject} is a", v0 the module's own output (Meng et al. 2202.05262, section 3.1,
equation 4; the last term and the clamp |delta| <= clamp |v0| as in the paper's appendix E.5 and released settings;
2210.07229, section 4.2). Adam (Kingma and Ba 1412.6980).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from neuroplastic.editing.targets import Row
from neuroplastic.errors import NPTError

from .answers import answer_loss, keys_at, states_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ValueSearch:
    """How delta is searched for."""

    steps: int = 20
    rate: float = 0.5
    kl: float = 0.0625
    decay: float = 0.5
    clamp: float = 4.0
    """longest delta, in units of |v0|"""
    prefixes: int = 5
    enough: float = 0.05
    """stop where the answers' negative log-probability per token is below this, in nats"""


def find_delta(
    model: PreTrainedModel, module: nn.Module, rows: Sequence[Row], essence: Row, value: Tensor, search: ValueSearch
) -> Tensor:
    """delta [d]; `value` v0 [d] is what the module gives at the first row's key. Touches no weight.

    Raises NPTError where no answer depends on what the module gives there, as in the last layer.
    """
    size = value.norm()
    every = [*rows, essence]
    last = len(essence.ids) - 1
    delta = torch.zeros_like(value, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=search.rate)
    before: Tensor | None = None
    with torch.enable_grad(), _adding(module, every, delta):
        for _ in range(search.steps):
            states = states_of(model, every)
            loss = answer_loss(model, rows, states)
            told = model.get_output_embeddings()(states[-1, last]).float().log_softmax(-1)
            if before is None:
                before = told.detach()  # delta is zero
            if loss < search.enough:
                break
            if not delta.any() and not torch.autograd.grad(loss, [delta], retain_graph=True)[0].any():
                raise NPTError("no answer depends on what this layer gives at the subject; choose an earlier one")
            total = loss + search.kl * kl_div(before, told, reduction="sum", log_target=True)
            total = total + search.decay * delta.norm() / size**2
            (delta.grad,) = torch.autograd.grad(total, [delta])
            adam.step()
            with torch.no_grad():
                delta *= (search.clamp * size / delta.norm()).clamp_max(1)
    return delta.detach()


@contextmanager
def _adding(module: nn.Module, rows: Sequence[Row], delta: Tensor) -> Iterator[None]:
    at = keys_at(rows)

    def add(module: nn.Module, args: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        changed = first.index_put(at, delta.expand(len(rows), -1).to(first.dtype), accumulate=True)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = module.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
