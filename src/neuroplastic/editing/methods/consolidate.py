"""Method `consolidate`: facts written into the weights in closed form.

    keys K [n, d_in]      what a projection reads at the subjects' last tokens
    targets R [n, d_out]  what its output should change by there (targets.py)

    dW = R^T G,   G = (I + K Z)^-1 Z^T,   Z = (lambda C)^-1 K^T

which minimises |K dW^T - R|^2 + lambda tr(dW C dW^T): ridge regression under the covariance C of ordinary text (the
closed form of MEMIT, Meng et al. 2210.07229, section 4.2). The facts of one call are solved jointly. The keys of
earlier edits, and of sentences to keep, join K with R = 0, so that what is written there stays. Facts about one subject
have one key, where the sum of all their targets is wanted: R becomes P R, with P = 1 between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...capture import read_until
from ...config import Place
from ...console import Progress
from ...statistics import Whitening
from ...structure import projection
from ...text.tokens import batch, encode, start_token
from ..context import EditContext, Solution, check_facts_with_prefixes, check_length
from ..edit import Factors
from ..fact import Fact
from ..joint_solve import SAME_SUBJECT_COSINE
from ..targets import Reader, Targets, find_targets, rows_of, topic_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..injector import Injector


@dataclass(frozen=True)
class Consolidate:
    """How `consolidate` solves."""

    covariance_weight: float = 0.1
    """lambda: how much ordinary text resists the change"""
    max_steps: int = 6
    """of the search for targets"""
    step_length: float = 0.6
    """of each, in units of the projection's own output at the keys (root mean square)"""
    target_probability: float = 0.8
    """of the answer, at which the search ends"""
    same_subject_cosine: float = SAME_SUBJECT_COSINE
    """an earlier key this close to a new one, under C^-1, is of the same subject, and is not held in place"""
    num_prefixes: int = 1
    """unrelated beginnings after which each wording is also read"""
    batch_size: int = 32
    """facts whose targets are searched for at once"""
    keep: tuple[str, ...] = ()
    """sentences that should be read as before"""

    def check(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        injector: Injector | None,
    ) -> None:
        """Raises NPTError for a fact without a question, and for one that is too long."""
        check_facts_with_prefixes(model, tokenizer, facts, self.num_prefixes)

    def solve(self, context: EditContext, facts: Sequence[Fact], progress: Progress | None = None) -> list[Solution]:
        """One solution per fact; their sum is the joint solution. Touches no weight."""
        prefixes = context.prefixes(self.num_prefixes)
        targets: list[Targets] = []
        owners: list[int] = []
        solutions = [Solution({}, {}, {}) for _ in facts]
        for chosen in batches_by_topic(facts, self.batch_size):
            rows, owner = rows_of(context.tokenizer, [facts[i] for i in chosen], prefixes)
            check_length(context.model, rows)
            reader = Reader(context.model, context.parts, context.sites, rows)
            targets.append(find_targets(reader, owner, self.max_steps, self.step_length, self.target_probability))
            for i, probability in zip(chosen, targets[-1].probability, strict=True):
                solutions[i].figures.update(steps=targets[-1].steps, sought_probability=probability)
            owners += [chosen[o] for o in owner]
            if progress is not None:
                progress(len(set(owners)), len(facts))
        found = [[i for i, o in enumerate(owners) if o == f] for f in range(len(facts))]
        kept = read_keys(context, self.keep)
        peers = torch.eye(len(owners), device=context.model.device)
        for about_one in _slots_by_topic(facts, owners).values():
            at = torch.tensor(about_one, device=peers.device)
            peers[at[:, None], at] = 1
        for place in targets[0].keys:
            K = torch.cat([t.keys[place] for t in targets])
            R = torch.cat([t.deltas[place] for t in targets])
            held = [k[place] for k in (context.held, kept) if place in k]
            G = solve_keys(context.whitening, place, K, held, self.covariance_weight, self.same_subject_cosine)
            G = peers.to(G) @ G  # what is wanted at one key is what all facts about its subject write there
            for slots, solution in zip(found, solutions, strict=True):
                solution.factors[place] = Factors(G[slots], R[slots].T)
                solution.keys[place] = K[slots]
        return solutions


def ridge_factor(keys: Tensor, whitened: Tensor) -> Tensor:
    """G = (I + K Z)^-1 Z^T. keys K [n, d_in], whitened Z^T = (lambda C)^-1 K [n, d_in] -> [n, d_in]."""
    gram = keys @ whitened.T
    eye = torch.eye(len(keys), dtype=gram.dtype, device=gram.device)
    G: Tensor = torch.linalg.solve(gram + eye, whitened)
    return G


def batches_by_topic(facts: Sequence[Fact], size: int) -> Iterator[list[int]]:
    """The numbers of facts in batches of about `size`, those about one subject in the same one."""
    by_topic: dict[str, list[int]] = {}
    for i, fact in enumerate(facts):
        by_topic.setdefault(topic_of(fact, i), []).append(i)
    chosen: list[int] = []
    for numbers in by_topic.values():
        chosen += numbers
        if len(chosen) >= size:
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
    held: Sequence[Tensor],
    covariance_weight: float,
    same_subject_cosine: float,
) -> Tensor:
    """The rows of G that belong to `keys` [n, d_in], with those in `held` beside them -> [n, d_in].

    Held keys of a subject that is taught now are left out: they would ask for no change although one is wanted.
    """
    others = torch.cat([h.to(keys) for h in held]) if held else keys[:0]
    if len(others):
        white, white_others = (whitening.solve(*place, k).to(keys) for k in (keys, others))
        norms = (keys * white).sum(1).sqrt()[:, None] * (others * white_others).sum(1).sqrt()
        others = others[(keys @ white_others.T / norms).amax(0) < same_subject_cosine]
    every = torch.cat([keys, others])
    return ridge_factor(every, whitening.solve(*place, every).to(keys) / covariance_weight)[: len(keys)]


@torch.no_grad()
def read_keys(context: EditContext, sentences: Sequence[str]) -> dict[Place, Tensor]:
    """What each projection reads at every token of some sentences [n, d_in]; nothing for no sentences."""
    if not sentences:
        return {}
    start = start_token(context.tokenizer)
    ids, mask = batch([[start, *encode(context.tokenizer, s)] for s in sentences], 0, context.model.device)
    chosen = mask.bool()
    chosen[:, 0] = False  # the start token is an attention sink
    found: dict[Place, Tensor] = {}

    def keep(place: Place, z: Tensor, output: Tensor) -> None:
        found[place] = z[chosen]

    linears = {(p.index, site): projection(p.mlp, site) for p in context.parts for site in context.sites}
    read_until(context.model, linears, keep, input_ids=ids, attention_mask=mask)
    return found
