"""Edits of a model in memory, without a workspace: calls on its engine."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import NPTError
from ..structure import decoder_layers
from .edit import Edit, Factors, name_from
from .engine import EditableModel
from .fact import Fact
from .inject_options import InjectOptions, Method
from .token_update import token_factors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def editable(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EditableModel:
    """The engine of a model in memory, converted or not: always the same object for the same model."""
    return EditableModel.of(model, tokenizer)


def inject(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fact: str | Fact,
    method: Method | None = None,
    name: str | None = None,
    **options: Any,
) -> Edit:
    """Writes a fact into the weights of `model`, converted or not, and returns the edit, which can be undone.

    `fact` is a statement, or made by `fact_of` or `asked`; `options` are fields of `InjectOptions`. The first call
    measures the covariance of ordinary text (cached on disk by the content of the weights). An edit of a workspace's
    model is an edit of that workspace. Raises NPTError, with nothing changed, for bad input.
    """
    return EditableModel.of(model, tokenizer).inject(fact, method, name, **options)


def consolidate_weights(
    model: nn.Module, context_tokens: Tensor | Sequence[int], token_idx: int = -1, alpha: float = 0.1
) -> Edit:
    """Method `token` for tokens: W += alpha v_b v_a^T with the modulation of one of them, in every layer.

    It is the first design's call, and has its name.

    context_tokens (T,) or (1, T), int64. A converted model gives its generators' update, a plain one the analytic
    `dual` one. Raises NPTError if the tokens or the index cannot be, or the token has no modulation.
    """
    alpha = InjectOptions("token", alpha).strength
    device = next(model.parameters()).device
    ids = torch.as_tensor(context_tokens, device=device).reshape(1, -1)
    if ids.shape[1] == 0 or not -ids.shape[1] <= token_idx < ids.shape[1]:
        raise NPTError(f"token_idx {token_idx} is out of range: the context has {ids.shape[1]} tokens")
    engine = EditableModel.of(model)
    found = token_factors(model, ids, tuple(range(len(decoder_layers(model)))), token_idx)
    if not found:
        raise NPTError(f"the token at {token_idx} has no modulation: there is nothing to make permanent")
    factors = {p: Factors(A.cpu().contiguous(), (B * alpha).cpu().contiguous()) for p, (A, B) in sorted(found.items())}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    name = name_from("token", engine.names)
    return engine.add_unmeasured(Edit(name, "", "token", alpha, engine.sha256, 0, now, factors))
