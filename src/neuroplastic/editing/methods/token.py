"""Method `token`: the modulation of a statement's last token, made permanent.

W += alpha v_b v_a^T is exact for that token in its context, and for no other (docs/how-it-works.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...console import Progress
from ...errors import NPTError
from ...text.tokens import context_length, encode, start_token
from ..context import EditContext, Solution
from ..fact import Fact
from ..token_update import token_factors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..injector import Injector


@dataclass(frozen=True)
class RankOne:
    """How `token` solves: there is nothing to choose."""

    def check(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        injector: Injector | None = None,
    ) -> None:
        """Raises NPTError for a statement that is too long."""
        room = context_length(model)
        for fact in facts:
            if (length := 1 + len(encode(tokenizer, fact.statement))) > room:
                raise NPTError(
                    f"the statement is too long: it takes {length} tokens, and the model reads at most {room}"
                )

    def solve(self, context: EditContext, facts: Sequence[Fact], progress: Progress | None = None) -> list[Solution]:
        """One solution per fact. Touches no weight. Raises NPTError for a statement that is too long."""
        self.check(context.model, context.tokenizer, facts)
        return [self._solution(context, fact) for fact in facts]

    def _solution(self, context: EditContext, fact: Fact) -> Solution:
        ids = [start_token(context.tokenizer), *encode(context.tokenizer, fact.statement)]
        layers = tuple(p.index for p in context.parts)
        factors = token_factors(context.model, torch.tensor([ids], device=context.model.device), layers)
        chosen = {place: f for place, f in factors.items() if place[1] in context.sites}
        if not factors:
            raise NPTError(f"the last token of {fact.statement!r} has no modulation in the layers {layers}")
        if not chosen:
            raise NPTError(
                f"the generator modulates {', '.join(sorted({site for _, site in factors}))}, none of the sites "
                f"{', '.join(context.sites)}"
            )
        return Solution(chosen, {}, {})
