"""Many facts told together: their values are sought while all of them are in the weights.

Each of a hundred edits that were made alone is small, and the hundred are not: what one costs ordinary text adds up,
and what one writes reaches into the questions of another. Told together, they are taught together. With the rows A_l
[n, f] of the joint solution (together.py), so that dW_l = V_l^T A_l acts on every token,

    minimise over V   mean_i max(0, -log p(answer_i | question_i) - SPARE)  +  BETA KL(p_before || p_after)

the first term over facts, each asked alone or behind an unrelated beginning, the second per token of ordinary text.
Every step takes some of both, and moves the value v_il of a fact in layer l by

    v_il <- v_il - RATE_t |V_l| m_il / sqrt(d s_il)        m: mean of its gradients g_il, s: mean of |g_il|^2 / d

Adam (Kingma and Ba 1412.6980) with one second moment for each vector instead of one for each element, |V_l| the mean
length of the values that the injector proposed: the step keeps the gradient's direction, where Adam's own would be as
long in the directions that hold nothing but noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from ..config import Site
from ..console import Progress
from ..structure import projection
from ..text import start_token
from .consolidate import Bench
from .edit import Factors
from .refine import acting
from .targets import Reader, Row

CROWD = 100
"""So many facts told together are taught together; fewer are taught one by one, which is kinder to neighbours."""
FROM = 0.2
"""Steps start from this part of what the injector proposes."""
VISITS, ROWS, LEAST_STEPS = 16, 32, 40
"""Each wording is asked so often, so many of them in a step; never fewer steps."""
TEXTS, TEXT_LENGTH = 4, 64
"""Rows of ordinary text in a step, and tokens of each."""
RATE, WARMUP = 0.05, 3
"""Length of the longest step, in parts of the proposed values' length, reached after so many steps; then it falls."""
BETAS = (0.9, 0.98)
BETA, SPARE = 20.0, 0.02
ALONE, BEGINNINGS = 0.4, 40
"""How often a question is asked with nothing in front of it, else behind one of so many beginnings."""


class Asked(NamedTuple):
    """One wording of a fact, in tokens."""

    question: Sequence[int]
    answer: Sequence[int]
    fact: int
    """its number"""


def taught_together(facts: int, quick: bool) -> bool:
    """Whether so many facts told in one call are taught together."""
    return facts >= CROWD and not quick


def steps_for(wordings: int) -> int:
    """How many steps so many wordings take."""
    return max(LEAST_STEPS, math.ceil(VISITS * wordings / ROWS))


@torch.no_grad()
def teach_together(
    bench: Bench,
    layers: Sequence[int],
    asked: Sequence[Asked],
    A: Tensor,
    proposed: Tensor,
    progress: Progress | None = None,
) -> Tensor:
    """Values [n, L, d] for rows A [n, L, f] of the joint solution, from the injector's, `proposed` [n, L, d].

    The model must be in standard mode and without edits. Deterministic; touches no weight.
    """
    places: list[tuple[int, Site]] = [(layer, "down") for layer in layers]
    by_index = {p.index: p for p in bench.parts}
    linears = {place: projection(by_index[place[0]].mlp, place[1]) for place in places}
    factors = {place: Factors(A[:, i].to(proposed), proposed[:, i].T) for i, place in enumerate(places)}
    rng = torch.Generator().manual_seed(0)
    opening, beginnings = start_token(bench.tokenizer), bench.prefixes(BEGINNINGS)
    ordinary = _OrdinaryText(bench, rng)
    V, unit = FROM * proposed, proposed.norm(dim=-1, keepdim=True).mean(0)  # [L, 1]
    first, second = torch.zeros_like(V), torch.zeros_like(V[..., :1])
    waiting: list[int] = []
    steps = steps_for(len(asked))
    for t in range(1, steps + 1):
        if len(waiting) < min(ROWS, len(asked)):
            waiting += torch.randperm(len(asked), generator=rng).tolist()
        taken, waiting = waiting[:ROWS], waiting[ROWS:]
        rows = [
            Row([opening, *_beginning(beginnings, rng), *a.question, *a.answer[:-1]], list(a.answer), [(0, 0)])
            for a in (asked[i] for i in taken)
        ]
        reader = Reader(bench.model, (), (), rows)
        texts = ordinary.some()
        with torch.enable_grad():
            given = V.clone().requires_grad_()
            with acting(linears, factors, {place: given[:, i].T for i, place in enumerate(places)}):
                missing = (-reader.of_answers(reader.read()) - SPARE).clamp_min(0).mean()
                loss = missing + BETA * texts()
            (g,) = torch.autograd.grad(loss, given)
        first.lerp_(g, 1 - BETAS[0])
        second.lerp_(g.square().mean(-1, keepdim=True), 1 - BETAS[1])
        length = RATE * min(1.0, t / WARMUP) * (1 - (t - 1) / steps) * unit / math.sqrt(V.shape[-1])
        mean, square = first / (1 - BETAS[0] ** t), second / (1 - BETAS[1] ** t)
        V = V - length * mean / square.sqrt().clamp_min(torch.finfo(V.dtype).tiny)
        if progress is not None:
            progress(t, steps)
    return V


def _beginning(beginnings: Sequence[list[int]], rng: torch.Generator) -> list[int]:
    alone, which = torch.rand((), generator=rng).item() < ALONE, torch.randint(len(beginnings), (), generator=rng)
    return [] if alone else beginnings[int(which)]


def cut(text: Tensor, length: int) -> Tensor:
    """Rows [N, T] cut into shorter ones [M, length], each opened by the start token; what is left over is dropped."""
    pieces = [text[:, i : i + length].clone() for i in range(0, max(1, text.shape[1] - length + 1), length)]
    for piece in pieces:
        piece[:, 0] = text[:, 0]
    return torch.cat(pieces)


class _OrdinaryText:
    """KL divergence on rows of ordinary text, from the model as it was; what it said then is read once for each row."""

    def __init__(self, bench: Bench, rng: torch.Generator):
        self._model, self._rng = bench.model, rng
        self._text = cut(bench.text, TEXT_LENGTH)
        self._before: dict[int, Tensor] = {}

    def some(self) -> Callable[[], Tensor]:
        """To be called on the model as it was; what it gives, on the model as taught: nats per token."""
        chosen = torch.randint(len(self._text), (TEXTS,), generator=self._rng).tolist()
        if new := [i for i in dict.fromkeys(chosen) if i not in self._before]:
            self._before |= dict(zip(new, self._states(new), strict=True))
        head = self._model.get_output_embeddings()

        def divergence() -> Tensor:
            then, now = torch.stack([self._before[i] for i in chosen]), self._states(chosen)
            wide = torch.promote_types(now.dtype, torch.float32)
            p, q = (head(states).to(wide).log_softmax(-1) for states in (then, now))
            return kl_div(q, p, reduction="sum", log_target=True) / q[..., 0].numel()

        return divergence

    def _states(self, rows: Sequence[int]) -> Tensor:
        """The last hidden states behind every token but the start token [rows, T - 1, d]."""
        states: Tensor = self._model.base_model(input_ids=self._text[list(rows)], use_cache=False)[0]
        return states[:, 1:]
