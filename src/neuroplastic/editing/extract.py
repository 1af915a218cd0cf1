"""Modulations as objects: read off a context, calculated with, kept in files, and applied to other prompts.

A modulation is a weight change dW = B A per layer and site. Everything here is linear in dW: adding concatenates
factors, scaling scales B. (Scaling or adding v_a and v_b separately would not be: negation would do nothing.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from ..config import SITES, Place, Site, parse_layers
from ..errors import NPTError
from ..files import read_tensors, write_tensors
from ..generators import Signals
from ..modulation import compress, frobenius_norm, inner_product
from ..structure import decoder_layers
from ..surgery import Plasticity, Probe, mode
from ..text.spaces import continuing, without_trailing_spaces
from ..text.tokens import context_length, decode_after, encode, start_token
from ..text.word_probabilities import word_probabilities, words_of_one_token
from .edit import Factors, read_factors, write_factors
from .ledger import check_places
from .token_update import probing, token_factors, weight_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

How = Literal["add", "replace", "blend"]


@dataclass(frozen=True, eq=False)  # tensors have no equality that is true or false
class Modulation:
    """dW of some layers and sites: A [n, d_in] (the rows are v_a), B [d_out, n] (the columns are v_b)."""

    factors: dict[Place, Factors]

    def __getitem__(self, layer: int) -> tuple[Tensor, ...]:
        """(v_a_gate, v_b_gate, v_a_up, v_b_up[, v_a_down, v_b_down]) of a layer, each [n, d]; sites that it has."""
        pairs = [self.factors[layer, s] for s in SITES if (layer, s) in self.factors]
        if not pairs:
            raise NPTError(f"the modulation has no layer {layer}; it has {', '.join(map(str, self.layers)) or 'none'}")
        return tuple(t for A, B in pairs for t in (A, B.T))

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted({layer for layer, _ in self.factors}))

    def __add__(self, other: Modulation) -> Modulation:
        summed = dict(self.factors)
        for place, (A, B) in other.factors.items():
            if place in summed:
                mine = summed[place]
                if mine.A.shape[1] != A.shape[1] or mine.B.shape[0] != B.shape[0]:
                    raise NPTError(
                        f"the modulations are of different models: layer {place[0]}, {place[1]} differs in width"
                    )
                A, B = torch.cat([mine.A, A]), torch.cat([mine.B, B], 1)
            summed[place] = Factors(A, B)
        return Modulation(dict(sorted(summed.items())))

    def __mul__(self, scale: float) -> Modulation:
        return Modulation({place: Factors(A, B * scale) for place, (A, B) in self.factors.items()})

    __rmul__ = __mul__

    def __neg__(self) -> Modulation:
        return self * -1.0

    def __sub__(self, other: Modulation) -> Modulation:
        return self + -other

    def dense(self, layer: int, site: Site) -> Tensor:
        """dW itself [d_out, d_in], for looking at; nothing here computes with it."""
        A, B = self.factors[layer, site]
        return B @ A

    def norm(self) -> float:
        """Frobenius norm over all layers and sites, from the factors."""
        return float(sum(frobenius_norm(*f).item() ** 2 for f in self.factors.values()) ** 0.5)

    def inner(self, other: Modulation) -> float:
        """sum over layers and sites of tr(dW^T dW'), from the factors."""
        shared = self.factors.keys() & other.factors.keys()
        return sum(inner_product(*self.factors[p], *other.factors[p]).item() for p in shared)

    def cosine(self, other: Modulation) -> float:
        """Cosine between two modulations as vectors of all their weights; 0 if one of them is nothing."""
        norms = self.norm() * other.norm()
        return self.inner(other) / norms if norms else 0.0

    def compress(self, rank: int) -> tuple[Modulation, float]:
        """At most `rank` per layer and site, and the share of the squared norm that is dropped."""
        if rank < 1:
            raise NPTError(f"rank must be at least 1, not {rank}")
        small = {place: compress(*f, rank) for place, f in self.factors.items()}
        total = self.norm() ** 2
        dropped = sum(s[2] for s in small.values()) / total if total else 0.0
        return Modulation({place: Factors(A, B) for place, (A, B, _) in small.items()}), dropped

    def save(self, path: str | Path) -> None:
        write_tensors(Path(path), write_factors(self.factors), {"kind": "modulation", "format": 1})

    @classmethod
    def load(cls, path: str | Path) -> Modulation:
        """Raises NPTError if the file is damaged or holds something else."""
        tensors, metadata = read_tensors(Path(path))
        if metadata.get("kind") != "modulation" or metadata.get("format") != 1:
            raise NPTError(f"{path} is not a modulation of format 1")
        return cls(read_factors(Path(path), tensors)[0])


def mean(modulations: Sequence[Modulation]) -> Modulation:
    """The mean of their dW, in which a layer or site that one of them lacks counts as zero."""
    if not modulations:
        raise NPTError("there is no mean of no modulations")
    total = modulations[0]
    for m in modulations[1:]:
        total = total + m
    return total * (1 / len(modulations))


def extract_modulation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    context: str,
    position: int | slice = -1,
    layers: str = "all",
) -> Modulation:
    """What reading `context` does to the weights at one of its tokens, or the sum over a range (slice(None) for all).

    Positions count the context's own tokens, without the start token before them. A converted model's generators make
    the updates; for one that is not converted, they are the analytic `dual` ones. Raises NPTError for an empty context,
    one that is too long, and a position that it does not have.
    """
    ids = _ids(model, tokenizer, context)
    position = _after_start(position, ids.shape[1] - 1, "context")
    return Modulation(token_factors(model, ids, parse_layers(layers, len(decoder_layers(model))), position))


@dataclass(frozen=True)
class Transfer:
    """Next-token probabilities after a prompt, without and with a modulation that came from elsewhere."""

    tokens: list[str]
    before: list[float]
    after: list[float]


@torch.no_grad()
def transfer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    modulation: Modulation,
    how: How = "add",
    weight: float = 0.5,
    position: int | slice = -1,
    track: Sequence[str] = (),
    top: int = 5,
) -> Transfer:
    """Applies a modulation while `prompt` is read, at one of its tokens or a range; touches no weight.

    `add` puts it on top of the token's own modulation, `replace` in its place, `blend` mixes the two,
    (1 - weight) own + weight given. Reported are the words in `track`, each with the probability that all of its tokens
    continue the prompt, and the `top` likeliest tokens before and after. Raises NPTError for bad input and for a
    modulation of another model.
    """
    if how not in get_args(How):
        raise NPTError(f"how must be one of {', '.join(get_args(How))}, not {how!r}")
    ids = _ids(model, tokenizer, prompt)
    n = ids.shape[1] - 1
    chosen = torch.zeros(n + 1, dtype=torch.bool, device=ids.device)
    chosen[_after_start(position, n, "prompt")] = True
    own, given = {"add": (1.0, 1.0), "replace": (0.0, 1.0), "blend": (1 - weight, weight)}[how]
    _check_fits(model, modulation)

    def make(layer: int, plasticity: Plasticity) -> Probe:
        def probe(site: Site, projection: Callable[[Tensor], Tensor], z: Tensor, s: Signals, y: Tensor) -> Tensor:
            if (layer, site) not in modulation.factors:
                return y
            A, B = (t.to(z) for t in modulation.factors[layer, site])
            bare = projection(z)
            # what follows the prompt has its own modulation alone
            here = torch.zeros(y.shape[1], dtype=torch.bool, device=y.device)
            here[: n + 1] = chosen.to(y.device)[: y.shape[1]]
            return torch.where(here[None, :, None], bare + own * (y - bare) + given * ((z @ A.T) @ B.T), y)

        return probe

    with weight_layers(model, modulation.layers) as plastic, mode(model, "dynamic"):
        before = model(input_ids=ids, use_cache=False).logits[0, -1].float().softmax(-1)
        words_before = word_probabilities(model, tokenizer, prompt, track)
        with probing(plastic, make):
            after = model(input_ids=ids, use_cache=False).logits[0, -1].float().softmax(-1)
            words_after = word_probabilities(model, tokenizer, prompt, track)
    likeliest = dict.fromkeys(t for p in (before, after) for t in p.topk(min(top, len(p))).indices.tolist())
    others = [t for t in likeliest if t not in words_of_one_token(tokenizer, prompt, track)]
    shown = [decode_after(tokenizer, ids[0].tolist(), [t], skip_special_tokens=False) for t in others]
    return Transfer(
        [*(continuing(prompt, word) for word in track), *shown],
        [*words_before, *before[others].tolist()],
        [*words_after, *after[others].tolist()],
    )


def _after_start(position: int | slice, n: int, what: str) -> int | slice:
    """A position or range among a text's own n tokens, counted with the start token before them.

    Raises NPTError if it names none of them, or goes backwards.
    """
    if isinstance(position, slice):
        if position.step is not None and position.step < 1:
            raise NPTError(f"a range of tokens has a step of at least 1, not {position.step}")
        start, stop, step = position.indices(n)
        if start >= stop:
            raise NPTError(f"the range {position.start}:{position.stop} names none of the {what}'s {n} tokens")
        return slice(start + 1, stop + 1, step)
    if not -n <= position < n:
        raise NPTError(f"position {position} is out of range: the {what} has {n} tokens")
    return position % n + 1


def _ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    if not text.strip():
        raise NPTError("the text is empty")
    ids = [start_token(tokenizer), *encode(tokenizer, without_trailing_spaces(text))]
    if len(ids) > (room := context_length(model)):
        raise NPTError(f"the text has {len(ids)} tokens, and the model reads at most {room}")
    return torch.tensor([ids], device=model.device)


def _check_fits(model: nn.Module, modulation: Modulation) -> None:
    check_places(model, modulation.factors, "the modulation")
