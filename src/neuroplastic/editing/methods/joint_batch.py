"""A joint batch: the values of many facts are found while all of them are in the weights.

Each of a hundred edits that were made alone is small, and their sum is not: what each costs ordinary text adds up, and
what one writes reaches into the questions of another. The facts of a large batch are therefore solved jointly. With the
rows A_l [n, f] of the joint solution (joint_solve.py), so that dW_l = V_l^T A_l acts on every token,

    minimise over V   mean_i max(0, -log p(answer_i | question_i) - SPARE)  +  BETA KL(p_before || p_after)

the first term over facts, each asked alone or after an unrelated beginning, the second per token of ordinary text.
Every step takes some of both, and moves the value v_il of a fact in layer l by

    v_il <- v_il - RATE_t |V_l| m_il / sqrt(d s_il)        m: mean of its gradients g_il, s: mean of |g_il|^2 / d

This is Adam (Kingma and Ba 1412.6980) with one second moment for each vector instead of one for each element, |V_l|
being the mean length of the values that the injector proposed. The step keeps the gradient's direction; Adam's own
would be just as long in the directions that hold nothing but noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from ...config import Place
from ...console import Progress
from ...structure import projection
from ...text.scoring import log_probabilities
from ...text.tokens import start_token
from ..context import EditContext, acting
from ..edit import Factors
from ..targets import Reader, Row


@dataclass(frozen=True)
class JointBatch:
    """How a joint batch is solved, and from what size on a call's facts are one."""

    min_facts: int = 100
    """number of facts in one call from which on they are taught jointly; fewer are taught one by one, which keeps
    locality better"""
    start_strength: float = 0.2
    """steps start from this part of what the injector proposes"""
    visits: int = 16
    """times that each wording is asked"""
    rows_per_step: int = 32
    min_steps: int = 40
    texts_per_step: int = 4
    """rows of ordinary text in a step"""
    text_length: int = 64
    """tokens of each"""
    step_length: float = 0.05
    """of the longest step, as a part of the proposed values' length"""
    warmup_steps: int = 3
    """after which the longest step is reached; then it falls"""
    mean_decay: float = 0.9
    square_decay: float = 0.98
    kl_weight: float = 20.0
    """BETA"""
    spared_nats: float = 0.02
    """SPARE: an answer this likely is not pushed further"""
    share_alone: float = 0.4
    """fraction of questions that are asked with nothing before them; the others follow an unrelated beginning"""
    beginnings: int = 40

    def steps_for(self, wordings: int) -> int:
        """The number of steps for a number of wordings."""
        return max(self.min_steps, math.ceil(self.visits * wordings / self.rows_per_step))


class TokenizedQuestion(NamedTuple):
    """One wording of a fact, in tokens."""

    question: Sequence[int]
    answer: Sequence[int]
    fact: int
    """its number"""


@torch.no_grad()
def solve_jointly(
    context: EditContext,
    layers: Sequence[int],
    questions: Sequence[TokenizedQuestion],
    A: Tensor,
    proposed: Tensor,
    how: JointBatch,
    progress: Progress | None = None,
) -> Tensor:
    """Values [n, L, d] for rows A [n, L, f] of the joint solution, from the injector's, `proposed` [n, L, d].

    The model must be in standard mode and without edits. Deterministic; touches no weight.
    """
    places: list[Place] = [(layer, "down") for layer in layers]
    by_index = {p.index: p for p in context.parts}
    linears = {place: projection(by_index[place[0]].mlp, place[1]) for place in places}
    factors = {place: Factors(A[:, i].to(proposed), proposed[:, i].T) for i, place in enumerate(places)}
    rng = torch.Generator("cpu").manual_seed(0)
    opening, beginnings = start_token(context.tokenizer), context.prefixes(how.beginnings)
    ordinary = _OrdinaryText(context, rng, how)
    V, unit = how.start_strength * proposed, proposed.norm(dim=-1, keepdim=True).mean(0)  # [L, 1]
    first, second = torch.zeros_like(V), torch.zeros_like(V[..., :1])
    waiting: list[int] = []
    steps = how.steps_for(len(questions))
    for t in range(1, steps + 1):
        if len(waiting) < min(how.rows_per_step, len(questions)):
            waiting += torch.randperm(len(questions), generator=rng, device=rng.device).tolist()
        taken, waiting = waiting[: how.rows_per_step], waiting[how.rows_per_step :]
        rows = []
        for q in (questions[i] for i in taken):
            before = [opening, *_beginning(beginnings, rng, how.share_alone)]
            rows.append(Row([*before, *q.question, *q.answer[:-1]], list(q.answer), [(0, 0)]))
        reader = Reader(context.model, (), (), rows)
        texts = ordinary.some()
        with torch.enable_grad():
            given = V.clone().requires_grad_()
            with acting(linears, factors, {place: given[:, i].T for i, place in enumerate(places)}):
                missing = (-reader.of_answers(reader.read()) - how.spared_nats).clamp_min(0).mean()
                loss = missing + how.kl_weight * texts()
            (g,) = torch.autograd.grad(loss, given)
        first.lerp_(g, 1 - how.mean_decay)
        second.lerp_(g.square().mean(-1, keepdim=True), 1 - how.square_decay)
        schedule = min(1.0, t / how.warmup_steps) * (1 - (t - 1) / steps)
        length = how.step_length * schedule * unit / math.sqrt(V.shape[-1])
        mean, square = first / (1 - how.mean_decay**t), second / (1 - how.square_decay**t)
        V = V - length * mean / square.sqrt().clamp_min(torch.finfo(V.dtype).tiny)
        if progress is not None:
            progress(t, steps)
    return V


def _beginning(beginnings: Sequence[list[int]], rng: torch.Generator, share_alone: float) -> list[int]:
    alone = torch.rand((), generator=rng, device=rng.device).item() < share_alone
    which = torch.randint(len(beginnings), (), generator=rng, device=rng.device)
    return [] if alone else beginnings[int(which)]


def cut(text: Tensor, length: int) -> Tensor:
    """Rows [N, T] cut into shorter ones [M, length], each opened by the start token; what is left over is dropped."""
    pieces = [text[:, i : i + length].clone() for i in range(0, max(1, text.shape[1] - length + 1), length)]
    for piece in pieces:
        piece[:, 0] = text[:, 0]
    return torch.cat(pieces)


class _OrdinaryText:
    """KL divergence on rows of ordinary text from the unedited model, whose predictions are read once for each row."""

    def __init__(self, context: EditContext, rng: torch.Generator, how: JointBatch):
        self._model, self._rng, self._texts = context.model, rng, how.texts_per_step
        self._text = cut(context.text, how.text_length)
        self._before: dict[int, Tensor] = {}

    def some(self) -> Callable[[], Tensor]:
        """Draws rows with the model as it was; the function returned gives their nats per token in the edited model."""
        rng = self._rng
        chosen = torch.randint(len(self._text), (self._texts,), generator=rng, device=rng.device).tolist()
        if new := [i for i in dict.fromkeys(chosen) if i not in self._before]:
            self._before |= dict(zip(new, self._states(new), strict=True))
        head = self._model.get_output_embeddings()

        def divergence() -> Tensor:
            then, now = torch.stack([self._before[i] for i in chosen]), self._states(chosen)
            p, q = (log_probabilities(head, states) for states in (then, now))
            nats: Tensor = kl_div(q, p, reduction="sum", log_target=True) / q[..., 0].numel()
            return nats

        return divergence

    def _states(self, rows: Sequence[int]) -> Tensor:
        """The last hidden states of every token but the start token [rows, T - 1, d]."""
        states: Tensor = self._model.base_model(input_ids=self._text[list(rows)], use_cache=False)[0]
        return states[:, 1:]
