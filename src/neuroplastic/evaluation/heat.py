"""How strongly reading a statement modulates each layer at each of its tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from ..editing.token_update import token_factors
from ..modulation import frobenius_norm
from ..structure import decoder_layers
from ..text.tokens import encode, start_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Heat(NamedTuple):
    tokens: list[str]
    layers: list[int]
    norms: list[list[float]]
    """|dW|_F by layer and token, over all sites; |v_a| |v_b| if a site has one component"""


def modulation_norms(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, statement: str) -> Heat:
    """|dW|_F = sqrt(sum over sites of |sum_k v_b v_a^T|_F^2) of every plastic layer (of all, analytic `dual`, if the
    model is not converted) and every token. The start token is left out: it is the attention sink.

    Raises NPTError if activations are modulated, not weights.
    """
    own = encode(tokenizer, statement)
    ids = torch.tensor([[start_token(tokenizer), *own]], device=model.device)
    factors = token_factors(model, ids, range(len(decoder_layers(model))), slice(1, None))
    squares: dict[int, list[float]] = {}
    for (layer, _), (A, B) in sorted(factors.items()):
        row = squares.setdefault(layer, [0.0] * len(own))
        for t, (a, b) in enumerate(zip(A.chunk(len(own)), B.chunk(len(own), 1), strict=True)):
            row[t] += frobenius_norm(a, b).item() ** 2
    shown = [str(tokenizer.decode([t])).strip() or "␣" for t in own]
    return Heat(shown, list(squares), [[s**0.5 for s in row] for row in squares.values()])
