"""Method `consolidate`: facts written into the weights in closed form.

    keys K [n, d_in]      what a projection reads at the subjects' last tokens
    targets R [n, d_out]  what its output should change by there (targets.py)

    dW = R^T G,   G = (I + K Z)^-1 Z^T,   Z = (lambda C)^-1 K^T

which minimises |K dW^T - R|^2 + lambda tr(dW C dW^T): ridge regression under the covariance C of ordinary text (the
closed form of MEMIT, Meng et al. 2210.07229, section 4.2). The facts of one call are solved jointly. The keys of
earlier edits, and of sentences to keep, join K with R = 0: what they wrote or say stays. Facts about one subject have
one key, and there each wants what all of them write: R becomes P R, with P = 1 between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..capture import read_until
from ..config import Site
from ..console import Progress
from ..errors import NPTError
from ..statistics import Whitening
from ..structure import LayerParts, projection
from ..text import batch, context_length, encode, start_token
from .edit import Factors
from .fact import Fact
from .targets import Place, Reader, Row, Targets, find_targets, rows_of, topic_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .injector import Injector

STRENGTH = 0.1
"""lambda: how much ordinary text resists the change."""
STEPS, RATE, ENOUGH = 6, 0.6, 0.8
"""Of the search for targets: at most so many steps, of this length, until the answer has this probability."""
SAME = 0.5
"""An earlier key this close to a new one, as a cosine under C^-1, is of the same subject, and is not held."""
PREFIXES = 1
"""Each wording is also read behind so many unrelated beginnings."""
TOGETHER = 32
"""Facts whose targets are searched for in one batch."""


@dataclass(frozen=True)
class Bench:
    """What a method works with: a model in standard mode, with the edits that it has."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    parts: Sequence[LayerParts]
    """the layers that may change"""
    sites: Sequence[Site]
    whitening: Whitening
    text: Tensor
    """ordinary text [N, T]"""
    held: Mapping[Place, Tensor]
    """keys of earlier edits [n, d_in]"""
    injector: Injector | None
    """the network that method `learned` asks, where the model has one"""
    unedited: Callable[[], AbstractContextManager[None]]
    """while it lasts, the model has none of its edits"""

    def prefixes(self, count: int) -> list[list[int]]:
        """Beginnings of unrelated texts, four to ten tokens long."""
        return [self.text[i % len(self.text), 1 : 5 + (3 * i) % 7].tolist() for i in range(count)]


@dataclass(frozen=True)
class Solution:
    """What a method found for one fact."""

    factors: dict[Place, Factors]
    keys: dict[Place, Tensor]
    """the keys [n, d_in] that the factors answer to, kept so that later edits leave them alone"""
    figures: dict[str, float]
    """for the edit's report"""
    rho: float | None = None
    """strength of the joint solution with other edits, for one that is solved together with them"""


def ridge_factor(keys: Tensor, whitened: Tensor) -> Tensor:
    """G = (I + K Z)^-1 Z^T. keys K [n, d_in], whitened Z^T = (lambda C)^-1 K [n, d_in] -> [n, d_in]."""
    gram = keys @ whitened.T
    return torch.linalg.solve(gram + torch.eye(len(keys), dtype=gram.dtype, device=gram.device), whitened)


def consolidate(
    bench: Bench,
    facts: Sequence[Fact],
    keep: Sequence[str] = (),
    strength: float = STRENGTH,
    steps: int = STEPS,
    progress: Progress | None = None,
) -> list[Solution]:
    """One solution per fact; together they are the joint one. Touches no weight."""
    prefixes = bench.prefixes(PREFIXES)
    targets: list[Targets] = []
    owners: list[int] = []
    solutions = [Solution({}, {}, {}) for _ in facts]
    for chosen in batches_by_topic(facts):
        rows, owner = rows_of(bench.tokenizer, [facts[i] for i in chosen], prefixes)
        check_length(bench.model, rows)
        reader = Reader(bench.model, bench.parts, bench.sites, rows)
        targets.append(find_targets(reader, owner, steps, RATE, ENOUGH))
        for i, probability in zip(chosen, targets[-1].probability, strict=True):
            solutions[i].figures.update(steps=targets[-1].steps, sought_probability=probability)
        owners += [chosen[o] for o in owner]
        if progress is not None:
            progress(len(set(owners)), len(facts))
    found = [torch.tensor([i for i, o in enumerate(owners) if o == f]) for f in range(len(facts))]
    kept = read_keys(bench, keep)
    peers = torch.eye(len(owners))
    for about_one in _slots_by_topic(facts, owners).values():
        at = torch.tensor(about_one)
        peers[at[:, None], at] = 1
    for place in targets[0].keys:
        K = torch.cat([t.keys[place] for t in targets])
        R = torch.cat([t.deltas[place] for t in targets])
        held = [k[place] for k in (bench.held, kept) if place in k]
        G = solve_keys(bench.whitening, place, K, held, strength)
        G = peers.to(G) @ G  # what is wanted at one key is what all facts about its subject write there
        for slots, solution in zip(found, solutions, strict=True):
            solution.factors[place] = Factors(G[slots], R[slots].T)
            solution.keys[place] = K[slots]
    return solutions


def batches_by_topic(facts: Sequence[Fact]) -> Iterator[list[int]]:
    """The numbers of facts in batches of about TOGETHER, those about one subject in the same one."""
    by_topic: dict[str, list[int]] = {}
    for i, fact in enumerate(facts):
        by_topic.setdefault(topic_of(fact, i), []).append(i)
    chosen: list[int] = []
    for numbers in by_topic.values():
        chosen += numbers
        if len(chosen) >= TOGETHER:
            yield chosen
            chosen = []
    if chosen:
        yield chosen


def _slots_by_topic(facts: Sequence[Fact], owners: Sequence[int]) -> dict[str, list[int]]:
    """The slots of facts whose subject is known, by subject; `owners` has the fact of each slot."""
    found: dict[str, list[int]] = {}
    for slot, fact in enumerate(owners):
        if facts[fact].subject is not None:
            found.setdefault(topic_of(facts[fact], fact), []).append(slot)
    return found


def solve_keys(
    whitening: Whitening,
    place: Place,
    keys: Tensor,
    held: Sequence[Tensor] = (),
    strength: float = STRENGTH,
) -> Tensor:
    """The rows of G that belong to `keys` [n, d_in], with those in `held` beside them -> [n, d_in].

    Held keys of a subject that is taught now are left out: they would ask for no change where one is wanted.
    """
    others = torch.cat([h.to(keys) for h in held]) if held else keys[:0]
    if len(others):
        white, white_others = (whitening.solve(*place, k).to(keys) for k in (keys, others))
        norms = (keys * white).sum(1).sqrt()[:, None] * (others * white_others).sum(1).sqrt()
        others = others[(keys @ white_others.T / norms).amax(0) < SAME]
    every = torch.cat([keys, others])
    return ridge_factor(every, whitening.solve(*place, every).to(keys) / strength)[: len(keys)]


@torch.no_grad()
def read_keys(bench: Bench, sentences: Sequence[str]) -> dict[Place, Tensor]:
    """What each projection reads at every token of some sentences [n, d_in]; nothing for no sentences."""
    if not sentences:
        return {}
    ids, mask = batch([[start_token(bench.tokenizer), *encode(bench.tokenizer, s)] for s in sentences], pad=0)
    ids, mask = ids.to(bench.model.device), mask.to(bench.model.device)
    chosen = mask.bool()
    chosen[:, 0] = False  # the start token is an attention sink
    found: dict[Place, Tensor] = {}

    def keep(place: Place, z: Tensor, output: Tensor) -> None:
        found[place] = z[chosen]

    linears = {(p.index, site): projection(p.mlp, site) for p in bench.parts for site in bench.sites}
    read_until(bench.model, linears, keep, input_ids=ids, attention_mask=mask)
    return found


def check_length(model: PreTrainedModel, rows: Sequence[Row]) -> None:
    """Raises NPTError where a row does not fit into the model's context."""
    longest, room = max(len(r.ids) for r in rows), context_length(model)
    if longest > room:
        raise NPTError(
            f"the statement is too long: behind unrelated text it takes {longest} tokens, and the model reads at "
            f"most {room}"
        )
