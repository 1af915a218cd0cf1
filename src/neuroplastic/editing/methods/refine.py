"""Method `refine`: a few gradient steps on the factors of an edit, with what should not change held in place.

Starting from another method's dW = B A, with A kept as it is (the keys that the edit listens to):

    minimise over B    - mean_r log p(answer | row r)  +  beta mean_p KL(p_before || p_after)

r over the wordings of the fact, alone and after unrelated text; p over the positions of the sentences to keep:
neighbours (the same question about other names), ordinary text, and the user's own. Unlike `consolidate`, which moves
outputs at the subject only, the real edit acts here on every token of every row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from ...config import Place
from ...console import Progress
from ...structure import LayerParts, projection
from ...text.scoring import log_probabilities
from ...text.self_text import random_words
from ...text.tokens import batch, encode, start_token, tokens_through
from ..context import ChecksFacts, EditContext, EditMethod, Solution, acting, check_facts_with_prefixes, check_length
from ..edit import Factors
from ..fact import Fact
from ..joint_solve import joint_rows
from ..optimise import optimise
from ..targets import Row, rows_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..injector import Injector


@dataclass(frozen=True)
class HeldRow:
    """A sequence whose predictions should stay as they are, from position `first` on."""

    ids: list[int]
    first: int = 1


@dataclass(frozen=True, eq=False)
class Refined:
    B: dict[Place, Tensor]
    probability: float
    """of the answer, per token (geometric mean), in its worst row"""
    kl: float
    """nats per kept position"""
    steps: int


@dataclass(frozen=True)
class Refine:
    """How `refine` improves the solutions of another method."""

    start: EditMethod
    """the method that it starts from"""
    max_steps: int = 4
    step_length: float = 0.1
    """of each, in units of B's own root mean square"""
    target_probability: float = 0.9
    """of the answer in every row, at which the steps end"""
    kl_weight: float = 1.0
    """beta"""
    num_prefixes: int = 3
    """unrelated beginnings after which each wording is also read"""
    neighbours_per_question: int = 4
    """other names that each question is asked about"""
    max_neighbours: int = 32
    """of all such neighbours, the number that is held in place"""
    text_rows: int = 2
    text_length: int = 16
    """rows of ordinary text that are held in place, and tokens of each"""
    keep: tuple[str, ...] = ()
    """sentences that should be read as before"""

    def check(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        injector: Injector | None,
    ) -> None:
        """Raises NPTError for what the method that it starts from refuses, for a fact without a question, and for one
        that is too long."""
        if isinstance(self.start, ChecksFacts):
            self.start.check(model, tokenizer, facts, injector)
        check_facts_with_prefixes(model, tokenizer, facts, self.num_prefixes)

    def solve(self, context: EditContext, facts: Sequence[Fact], progress: Progress | None = None) -> list[Solution]:
        """The solutions of all facts, improved jointly. Touches no weight."""
        return self.improve(context, facts, self.start.solve(context, facts, progress))

    def improve(self, context: EditContext, facts: Sequence[Fact], found: Sequence[Solution]) -> list[Solution]:
        """Better solutions than `found`, one per fact."""
        rows, _ = rows_of(context.tokenizer, facts, context.prefixes(self.num_prefixes))
        check_length(context.model, rows)
        kept = [
            *neighbours(context, facts, self.neighbours_per_question, self.max_neighbours),
            *(HeldRow(r[: self.text_length]) for r in context.text[-self.text_rows :].tolist()),
            *(HeldRow([start_token(context.tokenizer), *encode(context.tokenizer, s)]) for s in self.keep),
        ]
        places = sorted({place for s in found for place in s.factors})
        parts_of = {place: [s.factors[place] for s in found if place in s.factors] for place in places}
        joint = {place: _joint(place, [s for s in found if place in s.factors]) for place in places}
        refined = refine_factors(
            context.model,
            context.parts,
            joint,
            rows,
            kept,
            self.max_steps,
            self.step_length,
            self.target_probability,
            self.kl_weight,
        )
        figures = {"steps": refined.steps, "sought_probability": refined.probability, "kept_kl": refined.kl}
        solutions = [replace(s, factors={}, figures={**s.figures, **figures}) for s in found]
        for place in places:
            owners = [i for i, s in enumerate(found) if place in s.factors]
            columns = torch.split(refined.B[place], [len(f.A) for f in parts_of[place]], 1)
            for i, f, B in zip(owners, parts_of[place], columns, strict=True):
                solutions[i].factors[place] = Factors(f.A, B)
        return solutions


def _joint(place: Place, solutions: Sequence[Solution]) -> Factors:
    """The change of all of them at one place, as one pair of factors: their own, stacked, with the rows of the joint
    solution if the ledger will solve them jointly."""
    factors, rho = [s.factors[place] for s in solutions], solutions[0].rho
    A, B = torch.cat([f.A for f in factors]), torch.cat([f.B for f in factors], 1)
    return Factors(A if rho is None else joint_rows(A, torch.cat([s.keys[place] for s in solutions]), rho), B)


def neighbours(context: EditContext, facts: Sequence[Fact], names_each: int, most: int) -> list[HeldRow]:
    """The facts' questions about other names: words with a capital, drawn at random from the vocabulary."""
    names = random_words(context.tokenizer, names_each, pattern=r" [A-Z][a-z]{3,}")
    found = []
    for fact in facts[: max(1, most // names_each)]:
        question, span = fact.question, fact.wordings[0].subject
        if span is None:
            continue
        for name in names:
            before = question[: span[0]] + context.tokenizer.decode([name]).strip()
            text = before + question[span[1] :]
            ids, first = encode(context.tokenizer, text), tokens_through(context.tokenizer, text, len(before))
            found.append(HeldRow([start_token(context.tokenizer), *ids], first))
    return found


def refine_factors(
    model: PreTrainedModel,
    parts: Sequence[LayerParts],
    factors: Mapping[Place, Factors],
    rows: Sequence[Row],
    kept: Sequence[HeldRow],
    steps: int,
    rate: float,
    enough: float,
    beta: float,
) -> Refined:
    """Adam on B until the answer's probability reaches `enough` in every row, for at most `steps` steps.

    `rate` is the length of a step in units of B's own root mean square. Touches no weight.
    """
    by_index = {p.index: p for p in parts}
    linears = {place: projection(by_index[place[0]].mlp, place[1]) for place in factors}
    ids, mask = batch([*(r.ids for r in rows), *(k.ids for k in kept)], 0, model.device)
    n = len(rows)

    def index(entries: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        row, column = torch.tensor(entries, device=ids.device).reshape(-1, 2).T
        return row, column

    answering = index([(i, at) for i, r in enumerate(rows) for at in r.answer_positions])
    holding = index([(n + i, at) for i, k in enumerate(kept) for at in range(k.first, len(k.ids))])
    wanted = torch.tensor([t for r in rows for t in r.answer], device=ids.device)
    lengths = torch.tensor([len(r.answer) for r in rows], device=ids.device)
    head = model.get_output_embeddings()

    def read(B: Mapping[Place, Tensor]) -> tuple[Tensor, Tensor]:
        """(mean log-probability of each row's answer [R], log-probabilities at the kept positions [P, vocab])."""
        with acting(linears, factors, B):
            states = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
        logits = log_probabilities(head, torch.cat([states[answering], states[holding]]))
        logprobs = logits[torch.arange(len(wanted), device=ids.device), wanted]
        return logprobs.new_zeros(n).index_add(0, answering[0], logprobs) / lengths, logits[len(wanted) :]

    B = {place: f.B.clone() for place, f in factors.items()}
    step = {place: rate * b.square().mean(0, keepdim=True).sqrt() for place, b in B.items()}
    with torch.no_grad():
        before = read({})[1]

    def look() -> tuple[Tensor, tuple[float, float], dict[Place, Tensor] | None]:
        logprobs, now = read(B)
        kl = kl_div(now, before, reduction="sum", log_target=True) / max(1, len(before))
        worst = logprobs.detach().min().exp().item()
        return -logprobs.mean() + beta * kl, (worst, kl.item()), step if worst < enough else None

    (worst, kl), taken = optimise(B, look, steps)
    return Refined(B, worst, kl, taken)
