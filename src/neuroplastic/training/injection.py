"""Training an injector: its edits must answer their questions later, as single edits and in joint batches.

The injector reads the statement of each lesson and proposes dW. With it applied, and no context, the frozen model is
asked:

    L =   mean over questions of  max(0, log enough - log p(answer) / tokens)    reliability, and in other wordings
                                                                                 generality
        + beta_near KL(base || edited)  on a neighbour's answer,                 locality,
                                        and on what follows this answer          and no repetition of the answer
        + beta_text KL(base || edited)  on ordinary text                         ordinary text stays as it is,
        + beta_drift 100 D                                                       also with a hundred edits, as predicted
        + beta_key  (- log alpha at the subject's last token)                    if the lesson gives a subject

with D what one edit costs ordinary text to second order, in nats per token: 1/2 sum_l (a_l^T C_l a_l) (v_l^T F_l v_l),
F_l the Fisher information of what the projection gives (calibration/sensitivity.py). It is smaller than the cost
measured on text, because the tokens that answer most are the most sensitive ones, but it has no noise, and shows which
directions are cheap.

In every second step the batch is not applied one edit at a time, but solved jointly with up to some hundred proposals
from earlier steps, as the ledger does (editing/joint_solve.py): edits that are never trained jointly do not compose.
Gradients reach the batch's own values alone. As they are a small part of what disturbs ordinary text, the KL there is
weighted by (all edits) / (edits of the batch), which makes its gradient that of all edits, up to a bound. The joint
batches grow in the course of training.

Nothing is ever added to a weight in training: v (a . z) is added to what the down projections give.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.functional import kl_div

from ..calibration.sensitivity import fisher_information
from ..capture import adding
from ..console import progress
from ..editing.engine import EditableModel
from ..editing.injector import Injector, Proposal, Subject, read_statements
from ..editing.joint_solve import joint_rows
from ..structure import projection
from ..surgery import mode
from ..text.scoring import batches_of_like_length
from ..text.tokens import batch, encode_pair, start_token, tokens_through
from .lessons import Lesson, Lessons, Topic
from .settings import InjectionSettings

Added = Callable[[int, Tensor], Tensor]
"""(index of an edited layer, what its down projection reads [R, T, f]) -> what is added to its output [R, T, d]"""
Applied = Callable[[Sequence[int]], Added]
"""(the owners of a batch's R rows) -> what is added while they are read"""
LARGEST_SHARE = 8.0
"""Largest weight of a joint batch's KL on ordinary text"""
PREDICTED_EDITS = 100
"""Number of edits whose predicted cost on ordinary text is kept small"""
FISHER_ROWS, FISHER_LENGTH = 112, 64
"""Rows of text that it is predicted from, and tokens of each"""
LARGEST_LOSS = 15.0
"""nats; a token that is less likely than that pulls no harder"""


@dataclass(frozen=True)
class Row:
    """A sequence to read, and the positions whose predictions count."""

    ids: list[int]
    at: list[int]
    owner: int
    """the edit that acts on it, if each acts alone"""
    wanted: tuple[int, ...] = ()
    """the tokens that should follow at these positions; none if the base's predictions should stay"""


class Injection:
    """The task: an injector for the model of `engine`."""

    name = "injector"

    def __init__(
        self,
        engine: EditableModel,
        injector: Injector,
        lessons: Lessons,
        held: Sequence[Topic],
        texts: Sequence[Sequence[int]],
        settings: InjectionSettings,
        seed: int,
    ):
        """`held` are topics to measure on; `texts` ordinary text in tokens, without a start token."""
        self.engine, self.injector = engine, injector
        self.module: nn.Module = injector
        self.lessons, self.held, self.texts, self.settings, self.seed = lessons, held, texts, settings, seed
        self.model, self.tokenizer = engine.model, engine.tokenizer
        self.start = start_token(self.tokenizer)
        c = injector.config
        downs = {i: projection(engine.parts[i].mlp, "down") for i in c.layers}
        self.fisher = None
        if settings.beta_drift > 0:
            with mode(self.model, "standard"), progress("measuring how sensitive ordinary text is") as see:
                F = fisher_information(self.model, downs, engine.text[0][:FISHER_ROWS, :FISHER_LENGTH], see, seed)
            self.fisher = torch.stack([F[i] for i in c.layers])
        self.earlier = _EarlierEdits(max(settings.crowds) + settings.batch_size, len(c.layers), c.d_ffn, c.d_model)
        self._made: list[_Made] = []

    # --- a step ------------------------------------------------------------------------------------------------------

    def losses(self, module: nn.Module, step: int, part: int, parts: int) -> dict[str, Tensor]:
        s, rng = self.settings, random.Random(f"{self.seed}/{step}/{part}")
        lessons = self.lessons.batch(step, s.batch_size * parts)[part::parts]
        with mode(self.model, "standard"):
            found = self._propose(module, lessons)
            self._made.append(_Made(found.K.detach().cpu(), found.V.detach().cpu(), [x.subject for x in lessons]))
            if step < s.keys_first:
                key = self._key(lessons, found)
                return {"loss": key + 0 * found.V.sum(), "key": key}  # every parameter has a gradient
            joint = step >= s.alone_first and step % s.crowd_every == s.crowd_every - 1
            others = None
            if joint:
                drawn = self.earlier.draw(rng, rng.choice(s.crowds_at(step)), [x.subject for x in lessons])
                others = None if drawn is None else [t.to(found.V) for t in drawn]
            asked = [self._question(q, x.answer, i, rng) for i, x in enumerate(lessons) for q in x.asked]
            near = [self._kept(*x.neighbour, i) for i, x in enumerate(lessons) if x.neighbour is not None]
            near = rng.sample(near, min(len(near), s.near_rows))
            chosen = rng.sample(range(len(lessons)), min(len(lessons), s.behind_rows))
            near += [self._after_answer(lessons[i].asked[-1], lessons[i].answer, i) for i in chosen]
            texts = [self._text(rng, i % len(lessons)) for i in range(s.text_rows)]
            size = len(lessons) + (0 if others is None else len(others[0]))
            with torch.no_grad():
                before = self._read([*near, *texts])
            applied = alone(found) if others is None else self._jointly(found, *others)
            logprobs = self._read([*asked, *near, *texts], applied)
        losses = {"answer": _unlikely(asked, logprobs, s.enough), "key": self._key(lessons, found)}
        n = sum(len(r.at) for r in asked)
        kl = kl_div(logprobs[n:], before, log_target=True, reduction="none").sum(-1)
        split = sum(len(r.at) for r in near)
        share = size / len(lessons)
        losses["near"] = kl[:split].mean() if near else logprobs.new_zeros(())
        losses["loss"] = losses["answer"] + s.beta_key * losses["key"] + s.beta_near * min(share, 4.0) * losses["near"]
        losses["text"] = kl[split:].mean()
        losses["loss"] = losses["loss"] + s.beta_text * min(share, LARGEST_SHARE) * losses["text"]
        if self.fisher is not None:
            losses["drift"] = PREDICTED_EDITS * self._drift(found)
            losses["loss"] = losses["loss"] + s.beta_drift * losses["drift"]
        in_place = found.V.new_tensor(size if joint else 0)
        return losses | {"crowd": in_place, "norm": found.V.norm(dim=-1).mean()}

    def after(self, step: int) -> None:
        made, self._made = self._made, []
        if step >= self.settings.keys_first:
            for some in gather_object(made):  # every process has the same earlier edits
                self.earlier.add(*some)

    def kept(self) -> dict[str, Tensor]:
        return self.earlier.state()

    def restore(self, kept: dict[str, Tensor]) -> None:
        self.earlier.load(kept)

    # --- measured ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, step: int) -> dict[str, Any]:
        """On held-out topics: share of the answers of which every token is the likeliest, for the statement's wording
        (`told`) and another one (`asked`), each edit alone and in one joint batch; and the KL divergences, in nats."""
        if not self.held:
            return {}
        rng = random.Random(self.seed)
        lessons = [
            Lesson(t.wordings[0], t.answer, (t.wordings * 2)[:2], (*t.neighbours, None)[0], t.subject)
            for t in self.held
        ]
        with mode(self.model, "standard"):
            parts = [self._propose(self.module, lessons[i : i + 32]) for i in range(0, len(lessons), 32)]
            found = Proposal(*(_joined(ts) for ts in zip(*parts, strict=True)))
            asked = [self._question(q, x.answer, i, None) for i, x in enumerate(lessons) for q in x.asked]
            near = [self._kept(*x.neighbour, i) for i, x in enumerate(lessons) if x.neighbour is not None]
            texts = [self._text(rng, i % len(lessons)) for i in range(16)]
            before = self._read([*near, *texts])
            result: dict[str, Any] = {"facts": len(lessons)}
            for name, applied in (("alone", alone(found)), ("together", self._jointly(found))):
                logprobs = self._read([*asked, *near, *texts], applied)
                n, split = sum(len(r.at) for r in asked), sum(len(r.at) for r in near)
                right = [s.argmax(-1).tolist() for s in torch.split(logprobs[:n], [len(r.at) for r in asked])]
                right_rows = [w == list(r.wanted) for r, w in zip(asked, right, strict=True)]
                kl = kl_div(logprobs[n:], before, log_target=True, reduction="none").sum(-1)
                result[name] = {
                    "told": sum(right_rows[::2]) / len(right_rows[::2]),
                    "asked": sum(right_rows[1::2]) / len(right_rows[1::2]),
                    **({"near_kl": kl[:split].mean().item()} if near else {}),
                    "text_kl": kl[split:].mean().item(),
                }
        return result

    # --- parts -------------------------------------------------------------------------------------------------------

    def _statement(self, lesson: Lesson) -> tuple[list[int], list[int]]:
        return encode_pair(self.tokenizer, lesson.statement, lesson.answer)

    def _propose(self, module: nn.Module, lessons: Sequence[Lesson]) -> Proposal:
        """The updates that the injector proposes, through a module that may be wrapped."""
        statements = [self._statement(x) for x in lessons]
        reading = read_statements(self.model, self.tokenizer, self.injector.config, statements)
        # a key at a token that is everywhere would be most of what disturbs ordinary text
        subjects = [None if at is None else Subject(at, at, True) for at in map(self._subject, lessons)]
        return self.injector.propose(reading, self.engine.whitening, module, subjects)

    def _key(self, lessons: Sequence[Lesson], found: Proposal) -> Tensor:
        """- log alpha at the last token of each subject that is in its lesson's statement; 0 if none is."""
        known = [(i, at) for i, at in enumerate(map(self._subject, lessons)) if at is not None]
        if not known:
            return found.V.new_zeros(())
        row, column = torch.tensor(known, device=found.V.device).T
        return -found.attention[row, :, column].clamp_min(1e-6).log().mean()

    def _drift(self, found: Proposal) -> Tensor:
        """D, the mean over edits; for a = C^-1 k / (rho + d),  a^T C a = d / (rho + d)^2 = (a . k)(1 - a . k) / rho."""
        assert self.fisher is not None
        answered = (found.A * found.K).sum(-1).detach()
        acts = answered * (1 - answered) / self.injector.config.ridge  # [n, L]
        costs = torch.einsum("nld,lde,nle->nl", found.V, self.fisher, found.V)
        return 0.5 * (acts * costs).sum(1).mean()

    def _subject(self, lesson: Lesson) -> int | None:
        """The position of the subject's last token; None if it is unknown or not in the statement."""
        begins = -1 if lesson.subject is None else lesson.statement.rfind(lesson.subject)
        if begins < 0 or lesson.subject is None:
            return None
        last = tokens_through(self.tokenizer, lesson.statement, begins + len(lesson.subject))
        return min(last, len(self._statement(lesson)[0]))

    def _question(self, question: str, answer: str, owner: int, rng: random.Random | None) -> Row:
        """A question, sometimes after unrelated text, whose answer should follow."""
        prefix: list[int] = []
        if rng is not None and rng.random() < self.settings.prefixes:
            prefix = list(rng.choice(self.texts)[: rng.randint(3, 8)])
        asked, wanted = encode_pair(self.tokenizer, question, answer)
        asked = [self.start, *prefix, *asked]
        at = list(range(len(asked) - 1, len(asked) - 1 + len(wanted)))
        return Row(asked + wanted[:-1], at, owner, tuple(wanted))

    def _kept(self, question: str, answer: str, owner: int) -> Row:
        """A question whose answer should stay as likely as it was."""
        row = self._question(question, answer, owner, None)
        return Row(row.ids, row.at, owner)

    def _after_answer(self, question: str, answer: str, owner: int) -> Row:
        """A question and its answer, after which the base's predictions should stay."""
        asked, wanted = encode_pair(self.tokenizer, question, answer)
        ids = [self.start, *asked, *wanted]
        return Row(ids, [len(ids) - 1], owner)

    def _text(self, rng: random.Random, owner: int) -> Row:
        ids = [self.start, *rng.choice(self.texts)[: self.settings.text_length - 1]]
        return Row(ids, list(range(1, len(ids))), owner)

    def _jointly(self, found: Proposal, K: Tensor | None = None, V: Tensor | None = None) -> Applied:
        """What all of these edits add, solved jointly; K [n, L, f] and V [n, L, d] are those of earlier ones."""
        with torch.no_grad():
            keys = found.K if K is None else torch.cat([K, found.K])
            rows = found.A if K is None else torch.cat([self.injector.rows(K, self.engine.whitening), found.A])
            ridge = self.injector.config.ridge
            G = [joint_rows(rows[:, i], keys[:, i], ridge) for i in range(keys.shape[1])]
            n = 0 if K is None else len(K)
            dense = [G[i][:n].T @ V[:, i] for i in range(keys.shape[1])] if V is not None else None

        def added(i: int, z: Tensor) -> Tensor:
            z = z.to(G[i])
            own = (z @ G[i][n:].T) @ found.V[:, i]
            return own if dense is None else own + z @ dense[i]

        return lambda owners: added

    def _read(self, rows: Sequence[Row], applied: Applied | None = None) -> Tensor:
        """Log-probabilities [sum of positions, vocabulary] of what follows, in the order of the rows; read in batches
        of like length."""
        found: dict[int, Tensor] = {}
        for some in batches_of_like_length([len(r.ids) for r in rows]):
            ids, mask = batch([rows[i].ids for i in some], self.start, self.model.device)
            here = None if applied is None else applied([rows[i].owner for i in some])
            with self._adding(here):
                states = self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
            at = torch.tensor([(j, p) for j, i in enumerate(some) for p in rows[i].at], device=ids.device)
            # the vocabulary is large: only the positions that count get logits
            logits = self.model.get_output_embeddings()(states[at[:, 0], at[:, 1]]).float()
            parts = torch.split(logits.log_softmax(-1), [len(rows[i].at) for i in some])
            found |= zip(some, parts, strict=True)
        return torch.cat([found[i] for i in range(len(rows))])

    def _adding(self, added: Added | None) -> AbstractContextManager[None]:
        if added is None:
            return nullcontext()
        downs = [projection(self.engine.parts[layer].mlp, "down") for layer in self.injector.config.layers]
        return adding({down: partial(added, i) for i, down in enumerate(downs)})


def alone(found: Proposal) -> Applied:
    """For rows of these owners: each row is touched by its own edit, v_i (a_i . z)."""

    def of(owners: Sequence[int]) -> Added:
        own = torch.tensor(owners, device=found.V.device)

        def added(i: int, z: Tensor) -> Tensor:
            return torch.einsum("rtf,rf->rt", z.to(found.A), found.A[own, i])[..., None] * found.V[own, i][:, None]

        return added

    return of


def _unlikely(asked: Sequence[Row], logprobs: Tensor, enough: float) -> Tensor:
    """max(0, log enough - log p) of the wanted answers, log p a mean over tokens; the mean over rows."""
    wanted = torch.tensor([t for r in asked for t in r.wanted], device=logprobs.device)
    each_token = torch.arange(len(wanted), device=logprobs.device)
    nll = -logprobs[: len(wanted)][each_token, wanted].clamp_min(-LARGEST_LOSS)
    each = torch.stack([part.mean() for part in torch.split(nll, [len(r.wanted) for r in asked])])
    return (each + math.log(enough)).clamp_min(0).mean()


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenated; the attentions, of several lengths, padded first."""
    width = max(t.shape[-1] for t in tensors)
    return torch.cat([torch.nn.functional.pad(t, (0, width - t.shape[-1])) for t in tensors])


class _Made(NamedTuple):
    """What one batch proposed."""

    K: Tensor
    V: Tensor
    subjects: list[str | None]


class _EarlierEdits:
    """The last edits that were proposed, in half precision: keys [n, L, f], values [n, L, d], and whose they are."""

    def __init__(self, most: int, layers: int, d_ffn: int, d_model: int):
        self.most = most
        self.K, self.V = (torch.zeros(0, layers, d, dtype=torch.float16, device="cpu") for d in (d_ffn, d_model))
        self.subject = _hashed([])

    def add(self, K: Tensor, V: Tensor, subjects: Sequence[str | None]) -> None:
        self.K, self.V = (torch.cat([old, new.half()])[-self.most :] for old, new in ((self.K, K), (self.V, V)))
        self.subject = torch.cat([self.subject, _hashed(subjects)])[-self.most :]

    def draw(self, rng: random.Random, count: int, without: Sequence[str | None]) -> tuple[Tensor, Tensor] | None:
        """Up to `count` of them about other subjects; None if there is none."""
        free = (~torch.isin(self.subject, _hashed(without))).nonzero()[:, 0].tolist()
        chosen = sorted(rng.sample(free, min(count, len(free))))
        return (self.K[chosen], self.V[chosen]) if chosen else None

    def state(self) -> dict[str, Tensor]:
        return {"crowd.K": self.K, "crowd.V": self.V, "crowd.subject": self.subject}

    def load(self, kept: dict[str, Tensor]) -> None:
        self.K, self.V, self.subject = (kept[f"crowd.{n}"] for n in ("K", "V", "subject"))


def _hashed(subjects: Sequence[str | None]) -> Tensor:
    """A number per subject; a lesson without one shares its number with no subject."""
    numbers = [-1 if s is None else zlib.crc32(s.encode()) for s in subjects]
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")
