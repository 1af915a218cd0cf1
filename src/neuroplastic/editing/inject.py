"""From a statement to a weight update: one call, several methods, one result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from ..config import Site
from ..errors import NPTError
from ..modulation import frobenius_norm
from ..statistics import Whitening
from ..structure import LayerParts, projection
from ..surgery import mode
from ..text import context_length, encode, start_token
from .consolidate import consolidate_factors
from .edit import Factors
from .token import token_factors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Method = Literal["consolidate", "token"]
DEFAULT_ALPHA: dict[str, float] = {"consolidate": 1.0, "token": 0.1}
CONTEXT = "Fact: {}\n"
"""How the teacher is told the statement before it reads it again."""


@dataclass(frozen=True)
class Injection:
    """The update of one statement, alpha in its factors, and what it took."""

    factors: dict[tuple[int, Site], Factors]
    alpha: float
    seconds: float


def check_request(method: str, alpha: float | None) -> float:
    """The alpha to use. Raises NPTError for an unknown method or an alpha that changes nothing or is not finite."""
    if method not in get_args(Method):
        raise NPTError(f"method must be one of {', '.join(get_args(Method))}, not {method!r}")
    alpha = DEFAULT_ALPHA[method] if alpha is None else float(alpha)
    if not math.isfinite(alpha) or alpha == 0:
        raise NPTError(f"alpha must be a finite number other than 0, not {alpha}")
    return alpha


def tokens_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, statement: str) -> tuple[Tensor, Tensor]:
    """(context and statement, statement alone), each (1, T) behind the start token.

    Raises NPTError for an empty statement and for one that does not fit into the model's context twice.
    """
    if not statement.strip():
        raise NPTError("the statement is empty; give a sentence such as 'The Eiffel Tower is in Rome.'")
    start, told, said = (
        start_token(tokenizer),
        encode(tokenizer, CONTEXT.format(statement)),
        encode(tokenizer, statement),
    )
    if (needed := 1 + len(told) + len(said)) > (room := context_length(model)):
        raise NPTError(
            f"the statement has {len(said)} tokens; read twice it needs {needed}, and the model reads at most {room}"
        )
    device = model.device
    return torch.tensor([[start, *told, *said]], device=device), torch.tensor([[start, *said]], device=device)


def make_update(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    parts: Sequence[LayerParts],
    statement: str,
    method: str,
    alpha: float | None,
    whitening: Callable[[], Whitening],
) -> Injection:
    """The update that `statement` asks for. Touches no weight; `parts` are the layers that may change."""
    alpha = check_request(method, alpha)
    taught, alone = tokens_of(model, tokenizer, statement)
    if method == "token":
        began = time.perf_counter()
        factors = token_factors(model, alone, tuple(p.index for p in parts))
    else:
        known = whitening()  # once per model, so not part of the edit's time
        began = time.perf_counter()
        with mode(model, "standard"):
            factors = consolidate_factors(model, parts, known, taught, alone)
    for (layer, site), f in factors.items():
        if not (torch.isfinite(f.A).all() and torch.isfinite(f.B).all()):
            raise NPTError(f"the update of layer {layer}, {site} is not finite; nothing was changed")
    # contiguous and in order, as they will be read from the file: products depend on the layout in the last bit
    scaled = {p: Factors(_fresh(A), _fresh(B * alpha)) for p, (A, B) in sorted(factors.items())}
    return Injection(scaled, alpha, time.perf_counter() - began)


def _fresh(t: Tensor) -> Tensor:
    return t.clone(memory_format=torch.contiguous_format)


def relative_norms(
    parts: Sequence[LayerParts], factors: dict[tuple[int, Site], Factors]
) -> dict[str, dict[str, float]]:
    """|dW|_F / |W|_F by layer and site."""
    by_index = {p.index: p for p in parts}
    norms: dict[str, dict[str, float]] = {}
    for (layer, site), f in sorted(factors.items()):
        weight: Any = projection(by_index[layer].mlp, site).weight
        norms.setdefault(str(layer), {})[site] = frobenius_norm(*f).item() / weight.detach().float().norm().item()
    return norms
