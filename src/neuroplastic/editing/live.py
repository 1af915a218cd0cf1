"""Edits of a plain model in memory, with no workspace."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import NPTError
from ..files import content_hash
from ..structure import decoder_layers
from ..surgery import base_state
from .edit import Edit, Factors, name_from
from .editor import Editor
from .fact import Fact, fact_of
from .ledger import Ledger
from .options import InjectOptions, Method, Start
from .token import token_factors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_EDITORS: weakref.WeakKeyDictionary[nn.Module, Editor] = weakref.WeakKeyDictionary()
_LEDGERS: weakref.WeakKeyDictionary[nn.Module, Ledger] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class LiveEdit:
    """An edit that is in the weights of a model in memory. `undo` takes it out, in any order, bit for bit."""

    edit: Edit
    _ledger: Ledger

    @property
    def active(self) -> bool:
        return any(e.sequence == self.edit.sequence for e in self._ledger.active)

    def undo(self) -> None:
        """Raises NPTError where it was undone already."""
        if not self.active:
            raise NPTError(f"the edit {self.edit.name!r} was undone already")
        self._ledger.set_active([e for e in self._ledger.active if e.sequence != self.edit.sequence])


def inject(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fact: str | Fact,
    method: Method | None = None,
    alpha: float | None = None,
    layers: str | None = None,
    name: str | None = None,
    *,
    sites: str | None = None,
    rank: int | None = None,
    start: Start = "consolidate",
    keep: Sequence[str] = (),
    quick: bool = False,
) -> LiveEdit:
    """Writes a fact into the weights of `model`, converted or not, and returns the edit, which can be undone.

    `fact` is a statement, or made by `fact_of` or `asked`; the options are those of `InjectOptions`. The first call
    measures the covariance of ordinary text (cached on disk by the content of the weights). The model must not be a
    workspace's: edits made there are undone there. Raises NPTError, with nothing changed, for bad input.
    """
    options = InjectOptions(
        method=method,
        alpha=alpha,
        layers=layers,
        sites=sites,
        rank=rank,
        start=start,
        keep=tuple(keep),
        quick=quick,
    )
    told = fact_of(fact) if isinstance(fact, str) else fact
    editor = _EDITORS.get(model)
    if editor is None:
        if model in _LEDGERS:
            raise NPTError("consolidate_weights has edited this model; undo these edits before injecting a statement")
        editor = _EDITORS[model] = Editor(model, tokenizer, content_hash(base_state(model)))
        _LEDGERS[model] = editor.ledger
    taken = {e.name for e in editor.ledger.active}
    (made,) = editor.make([told], options, [name or name_from(told.statement, taken)])
    (applied,) = editor.apply([replace(made, sequence=_next(editor.ledger))])
    return LiveEdit(applied, editor.ledger)


def consolidate_weights(
    model: nn.Module, context_tokens: Tensor | Sequence[int], token_idx: int = -1, alpha: float = 0.1
) -> LiveEdit:
    """W += alpha v_b v_a^T with the modulation of one token, in every layer (the first design's call).

    context_tokens (T,) or (1, T), int64. A converted model gives its generators' update, a plain one the analytic
    `dual` one. Raises NPTError where the tokens or the index cannot be.
    """
    alpha = InjectOptions("token", alpha).strength
    device = next(model.parameters()).device
    ids = torch.as_tensor(context_tokens, device=device).reshape(1, -1)
    if ids.shape[1] == 0 or not -ids.shape[1] <= token_idx < ids.shape[1]:
        raise NPTError(f"token_idx {token_idx} is out of range: the context has {ids.shape[1]} tokens")
    ledger = _LEDGERS.setdefault(model, Ledger(model))
    found = token_factors(model, ids, tuple(range(len(decoder_layers(model)))), token_idx)
    factors = {place: Factors(A.contiguous(), (B * alpha).contiguous()) for place, (A, B) in sorted(found.items())}
    edit = Edit("token", "", "token", alpha, "", _next(ledger), "", factors)
    ledger.set_active((*ledger.active, edit))
    return LiveEdit(edit, ledger)


def _next(ledger: Ledger) -> int:
    return 1 + max((e.sequence for e in ledger.active), default=0)
