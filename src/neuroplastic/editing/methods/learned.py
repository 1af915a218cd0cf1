"""Method `learned`: a trained injector reads the fact once and predicts its weight update.

An injector's values V give the answer at once, but they are long, and most of their length is the same for all facts:
locality and ordinary text suffer from it, and all the more with every further edit. From `start_strength` V, a few
gradient steps (correction.py) reach the answer, alone and after unrelated beginnings, with a third of the harm. If one
call has `min_facts` facts or more, what they cost would add up, and they are solved as a joint batch (joint_batch.py).

`quick` avoids the steps if it can: each update is tried at several strengths, in one batch, and the smallest is taken
that gives the answer to its own question `quick_probability`; with the largest, the model would repeat the answer of an
easy fact without end. Steps follow only if no strength reaches `least_probability`, as for answers unlike all that the
injector was trained on.

Updates are tried by adding v (a . z) to what projections give, from the key's token on. They would change little at the
tokens before it, which are not read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from ...capture import adding
from ...config import Place
from ...console import Progress
from ...errors import NotTeachable, NPTError
from ...modulation import gate_response
from ...structure import projection
from ...text.tokens import encode_after, start_token, tokens_through
from ..context import EditContext, EditMethod, Solution
from ..edit import Factors
from ..fact import Fact, Wording
from ..injector import Injector, Reading, Subject, at_the_end, check_statements, read_statements
from ..joint_solve import joint_rows
from ..targets import Past, Reader, Row
from ..thresholds import Gates, Gating, Name, closed, find_gates
from ..units import Units
from .correction import AnswerScores, Corrected, GradientSteps, correct
from .joint_batch import JointBatch, TokenizedQuestion, solve_jointly
from .refine import Refine

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NO_INJECTOR = "there is no injector for this model: train one with npt train-injector, or use --method consolidate"


class TokenizedFact(NamedTuple):
    """One wording of a fact, in tokens."""

    question: list[int]
    answer: list[int]
    subject: Subject | None


def is_gated(method: EditMethod) -> bool:
    """Whether a method makes gated units."""
    return isinstance(method, Learned) and method.gated


def is_joint(method: EditMethod) -> bool:
    """Whether a method, or the one that it starts from, teaches its facts with all of them in place."""
    while isinstance(method, Refine):
        method = method.start
    return isinstance(method, Learned) and method.joint


@dataclass(frozen=True)
class Learned:
    """How `learned` solves."""

    quick: bool = False
    """take the injector's update as it is, with gradient steps only if it does not give the answer"""
    joint: bool = False
    """teach the facts with all of them in place, not one by one"""
    start_strength: float = 0.5
    """gradient steps start from this part of the proposed values"""
    target_probability: float = 0.98
    """of the answer, alone and after unrelated beginnings, at which the steps end"""
    num_prefixes: int = 3
    """of such beginnings"""
    quick_strengths: tuple[float, ...] = (0.6, 0.8, 1.0, 1.2)
    """parts of the proposed values that a quick edit tries"""
    quick_probability: float = 0.95
    """of the answer, per token, for which a quick edit needs no more strength"""
    gated_strengths: tuple[float, ...] = (0.5, 0.65, 0.8, 1.0, 1.4)
    """the same parts for a gated edit, which a value acts in fully"""
    gated_probability: float = 0.97
    """the same probability for a gated edit"""
    least_probability: float = 0.8
    """if no strength gives the answer this probability, a quick edit takes gradient steps, too"""
    batch_size: int = 32
    """wordings read at once"""
    gated: bool = True
    """make gated units: with them, each fact is taught as with `quick`, and alone"""
    gating: Gating = field(default_factory=Gating)
    steps: GradientSteps = field(default_factory=GradientSteps)
    joint_batch: JointBatch = field(default_factory=JointBatch)

    def decided(self, num_facts: int, quick: bool, gated: bool) -> Learned:
        """For a number of facts in one call: gated or not, and without gates jointly or one by one, quick or not."""
        joint = num_facts >= self.joint_batch.min_facts and not (quick or gated)
        return replace(self, quick=quick or gated, joint=joint, gated=gated)

    def check(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        injector: Injector | None,
    ) -> None:
        """Raises NPTError if the model has no injector, and for a statement that is too long for it."""
        wordings = (w for fact in facts for w in fact.wordings)
        statements = [encode_after(tokenizer, w.question, w.answer) for w in wordings]
        check_statements(tokenizer, _needed(injector).config, statements)

    @torch.no_grad()
    def solve(self, context: EditContext, facts: Sequence[Fact], progress: Progress | None = None) -> list[Solution]:
        """One solution per fact, whose factors the ledger solves jointly with those of all other learned edits. Touches
        no weight.

        Statements are read by the unedited base: an edit does not depend on those made before it. Of a fact with
        several wordings, keys and proposed values are the means over them, and the answer must follow in each. Raises
        NPTError if the model has no injector, and for a statement that is too long for it; NotTeachable for facts whose
        subjects cannot be separated from ordinary text.
        """
        injector = _needed(context.injector)
        config = injector.config
        tokenized = [[_tokenized(context, w) for w in fact.wordings] for fact in facts]
        check_statements(context.tokenizer, config, [(t.question, t.answer) for ts in tokenized for t in ts])
        keys, values = (
            torch.zeros(len(facts), len(config.layers), d, device=context.model.device)
            for d in (config.d_ffn, config.d_model)
        )
        strength, steps = (torch.zeros(len(facts), dtype=t, device="cpu") for t in (torch.float64, torch.long))
        done = 0
        units: list[dict[int, Units]] = [{} for _ in facts]
        without: list[int] = []
        with context.unedited():
            for some in _batches(tokenized, self.batch_size):
                n, w = len(some), len(tokenized[some[0]])
                wordings = [tokenized[i][j] for j in range(w) for i in some]
                statements = [(t.question, t.answer) for t in wordings]
                reading = read_statements(context.model, context.tokenizer, config, statements)
                subjects = [t.subject for t in wordings]
                found = injector.propose(reading, context.whitening, subjects=subjects)
                K, V = (torch.unflatten(t, 0, (w, n)).mean(0) for t in (found.K, found.V))
                keys[some], values[some] = K, V
                if not self.joint:
                    at = at_the_end(found.attention, subjects)[:, 0].argmax(-1).tolist()
                    gates = None
                    if self.gated:
                        gates = self._gates(context, [facts[i] for i in some], wordings, at, V)
                        context = context.beside(gates.keys)
                        without += [some[j] for j in closed(gates, self.gating)]
                    if without:
                        continue  # the call is refused: what is left is to name all such facts
                    trial = _Trial(self, context, wordings, at, injector.rows(K, context.whitening), gates)
                    values[some], strength[some], steps[some] = trial.solved(V, reading)
                    if gates is not None:
                        for j, i in enumerate(some):
                            units[i] = gates.units(j, values[i])
                done += n
                if progress is not None:
                    progress(done, len(facts))
            rows = injector.rows(keys, context.whitening)
            if self.joint:
                joint = [joint_rows(rows[:, i], keys[:, i], config.ridge) for i in range(len(config.layers))]
                questions = [TokenizedQuestion(t.question, t.answer, i) for i, ts in enumerate(tokenized) for t in ts]
                how = self.joint_batch
                values = solve_jointly(context, config.layers, questions, torch.stack(joint, 1), values, how, progress)
                strength, steps = strength + how.start_strength, steps + how.steps_for(len(questions))
        if without:
            _refuse(facts, sorted(without))
        places: list[Place] = [(layer, "down") for layer in config.layers]
        return [
            Solution(
                {place: Factors(A[i : i + 1], V[i][:, None]) for i, place in enumerate(places)},
                {place: K[i : i + 1] for i, place in enumerate(places)},
                {"strength": s, "steps": n},
                config.ridge,
                own,
            )
            for A, K, V, s, n, own in zip(
                rows.cpu(), keys.cpu(), values.cpu(), strength.tolist(), steps.tolist(), units, strict=True
            )
        ]

    def _gates(
        self,
        context: EditContext,
        facts: Sequence[Fact],
        wordings: Sequence[TokenizedFact],
        at: Sequence[int],
        V: Tensor,
    ) -> Gates:
        """The gates of n facts; `wordings` and `at` as `_Trial` has them."""
        n, layers = len(facts), _needed(context.injector).config.layers
        names = [[_name(context, wordings[j], at[j]) for j in range(i, len(wordings), n)] for i in range(n)]
        gates = find_gates(context, layers, names, V, self.gating)
        return gates


def _refuse(facts: Sequence[Fact], numbers: Sequence[int]) -> None:
    listed = ", ".join(repr(facts[i].statement) for i in numbers[:3])
    more = f" and {len(numbers) - 3} more" if len(numbers) > 3 else ""
    raise NotTeachable(
        f"the subject of {listed}{more} reads like ordinary text, and the edit would act there too; give its whole "
        "name by --subject, word the statement so that the name is longer, or take --ungated",
        numbers,
    )


def _name(context: EditContext, t: TokenizedFact, at: int) -> Name:
    """The subject whose last token is at `at`, counted with the start token. What its name ends in is known where the
    subject's beginning is."""
    through, end = t.question[:at], t.question[at:at]
    if t.subject is not None and t.subject.first <= at <= t.subject.last:
        own = t.question[t.subject.first - 1 : at]
        begins = [i for i, token in enumerate(own) if context.tokenizer.decode([token]).startswith(" ")]
        end = own[-1:] if begins and 0 < begins[-1] == len(own) - 1 else []
    return Name(through, end)


def _needed(injector: Injector | None) -> Injector:
    if injector is None:
        raise NPTError(NO_INJECTOR)
    return injector


def _tokenized(context: EditContext, wording: Wording) -> TokenizedFact:
    question, answer = encode_after(context.tokenizer, wording.question, wording.answer)
    return TokenizedFact(question, answer, _subject(context, wording, len(question)))


def _batches(tokenized: Sequence[Sequence[TokenizedFact]], size: int) -> Iterator[list[int]]:
    """Batches of about `size` wordings, each of facts with the same number of wordings; facts of similar length share a
    batch, which saves padding."""

    def length(i: int) -> int:
        return max(len(t.question) + len(t.answer) for t in tokenized[i])

    for w in sorted({len(ts) for ts in tokenized}):
        order = sorted((i for i, ts in enumerate(tokenized) if len(ts) == w), key=length)
        step = max(1, size // w)
        yield from (order[i : i + step] for i in range(0, len(order), step))


class _Trial:
    """Facts to be tried with the updates v a^T that they ask for."""

    def __init__(
        self,
        how: Learned,
        context: EditContext,
        tokenized: Sequence[TokenizedFact],
        at: Sequence[int],
        A: Tensor,
        gates: Gates | None,
    ):
        """`tokenized` is the first wording of each of n facts, then the second of each, and so on; `at` is the position
        of each one's key, counted with the start token; A [n, L, f]."""
        assert context.injector is not None
        self.how, self.context, self.tokenized, self.at, self.A, self.gates = how, context, tokenized, at, A, gates
        self.tried = how.quick_strengths if gates is None else how.gated_strengths
        self.enough = how.quick_probability if gates is None else how.gated_probability
        self.layers = context.injector.config.layers
        self.wordings = len(tokenized) // len(A)
        self.parts = [p for p in context.parts if p.index in self.layers]

    def solved(self, proposed: Tensor, reading: Reading) -> tuple[Tensor, Tensor, Tensor]:
        """Of facts that are each taught alone: values [n, L, d], the part of the proposed ones that they start from
        [n], and the steps from there [n]."""
        n, how = len(proposed), self.how
        taken = torch.zeros(n, dtype=torch.long, device=proposed.device)
        if how.quick:
            strengths, probability = self.strengths(proposed, reading)
            short = (probability < how.least_probability).nonzero()[:, 0]
        else:
            strengths = torch.full_like(taken, how.start_strength, dtype=torch.float64)
            short = torch.arange(n, device=proposed.device)
        strengths[short] = how.start_strength
        V = proposed * strengths[:, None, None].to(proposed)
        if len(short):
            V[short], taken[short] = self.corrected(V, short.tolist())
        return V, strengths.cpu(), taken.cpu()

    @torch.no_grad()
    def strengths(self, V: Tensor, reading: Reading) -> tuple[Tensor, Tensor]:
        """For each fact's values V [n, L, d] the smallest of `quick_strengths` at which its answer has
        `quick_probability` in each wording, else the largest; and the probability there [n]."""
        k, n, w = len(self.tried), len(V), self.wordings
        rows = [self._row(t) for _ in range(k) for t in range(w * n)]
        at = torch.tensor(self.at, device=V.device)
        before = (torch.arange(reading.statement.shape[1], device=V.device) < at[:, None]).long()
        longest = max(len(r.ids) - r.first for r in rows)
        reader = Reader(self.context.model, self.parts, ("down",), rows, Past.of(reading.cache, before, longest, k))
        scaled = (V.new_tensor(self.tried)[:, None, None, None] * V.repeat(w, 1, 1)).flatten(0, 1)
        with self._adding(torch.arange(n, device=V.device).repeat(k * w), scaled):
            probability = reader.of_answers(reader.read()).view(k, w, n).amin(1).exp()
        enough = probability >= self.enough
        enough[-1] = True
        smallest = enough.int().argmax(0)
        chosen = torch.tensor(self.tried, dtype=torch.float64, device=V.device)[smallest]
        return chosen, probability[smallest, torch.arange(n, device=V.device)]

    def corrected(self, V: Tensor, which: list[int]) -> Corrected:
        """The values, of V [n, L, d], of some facts, after gradient steps."""
        beginnings: list[list[int]] = [[], *self.context.prefixes(self.how.num_prefixes)]
        n, w = len(V), self.wordings
        rows = [self._row(j * n + i, b, whole=True) for b in beginnings for j in range(w) for i in which]
        reader, k = Reader(self.context.model, self.parts, ("down",), rows), len(beginnings) * w
        of = torch.tensor(which, device=V.device).repeat(k)
        with torch.no_grad():
            before = reader.read_on()[1]

        def scores(V: Tensor) -> AnswerScores:
            with self._adding(of, V.repeat(k, 1, 1)):
                answers, after = reader.read_on()
            strayed = kl_div(after, before, reduction="none", log_target=True).sum(-1)
            return AnswerScores(reader.of_answers(answers).view(k, -1), strayed.view(k, -1))

        return correct(scores, V[which], self.how.target_probability, self.how.steps)

    def _row(self, which: int, beginning: Sequence[int] = (), whole: bool = False) -> Row:
        t = self.tokenized[which]
        answer = t.answer if whole else t.answer[:-1]
        ids = [start_token(self.context.tokenizer), *beginning, *t.question, *answer]
        return Row(ids, t.answer, [(len(beginning) + self.at[which], 0)], whole)

    def _adding(self, of: Tensor, V: Tensor) -> AbstractContextManager[None]:
        """While it lasts, each row has the update of its own fact: of [R] the facts' numbers, V [R, L, d]."""
        parts = {p.index: p for p in self.parts}
        A, gates = self.A[of], self.gates

        def linear(i: int, z: Tensor) -> Tensor:
            answered = torch.einsum("rtf,rf->rt", z.to(A), A[:, i])
            return answered[..., None] * V[:, i, None]

        def gated(i: int, gates: Gates, x: Tensor) -> Tensor:
            wide = x.to(gates.A)
            p = torch.einsum("rtd,rd->rt", wide, gates.A[of, i])
            phi = gate_response(p, wide @ gates.up[i], gates.width[of, i, None]) * gates.open[of, i, None]
            return phi[..., None] * (gates.gain[of, i, None] * V[:, i])[:, None]

        if gates is not None:
            return adding({parts[layer].mlp: partial(gated, i, gates) for i, layer in enumerate(self.layers)})
        downs = [projection(parts[layer].mlp, "down") for layer in self.layers]
        return adding({down: partial(linear, i) for i, down in enumerate(downs)})


def _subject(context: EditContext, wording: Wording, length: int) -> Subject | None:
    """Where the subject stands in a statement whose question has `length` tokens, counted with the start token."""
    if wording.subject is None:
        return None
    before, through = (tokens_through(context.tokenizer, wording.question, at) for at in wording.subject)
    last = min(through, length)
    return Subject(min(before + 1, last), last, wording.subject_given)
