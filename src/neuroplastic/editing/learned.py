"""Method `learned`: a trained injector reads the fact once and says which update it asks for.

An injector's values V answer at once, but they are long, and most of their length is the same for all facts: neighbours
and ordinary text pay for it, and the more edits there are the more. From FROM V, which opens the way, a few gradient
steps (correction.py) reach the answer alone and behind unrelated beginnings with a third of the harm. CROWD facts or
more told in one call are taught together instead (crowd.py), or what they cost would add up.

`quick` does without them where it can: each update is tried at a few strengths, in one batch, and the smallest is
taken at which its own question is answered with probability ENOUGH; for an easy fact the largest would say the answer
again and again. Steps follow only where no strength reaches LEAST, as for answers unlike all that the injector was
trained on.

Updates are tried by adding v (a . z) to what projections give, from the key's token on. What they would do to the
tokens before it is little, and left out: those are not read again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from ..capture import adding
from ..config import Site
from ..console import Progress
from ..errors import NPTError
from ..structure import projection
from ..text import encode_after, start_token, tokens_through
from . import crowd
from .consolidate import Bench, Solution
from .correction import Corrected, Said, correct
from .edit import Factors
from .fact import Fact, Wording
from .injector import Injector, Reading, Subject, at_the_end, check_statements, read_statements
from .targets import Past, Reader, Row
from .together import solve_together

INJECTOR_FILE = "injector.safetensors"
"""of a workspace; where it has none, one that comes with the package serves the model it was trained for"""
PACKAGED = Path(__file__).parent.parent / "injectors"
TOGETHER = 32
"""Wordings read in one batch."""
STRENGTHS = (0.6, 0.8, 1.0, 1.2)
ENOUGH = 0.95
"""Probability of the answer, per token, that a quick update needs no more strength for."""
LEAST = 0.8
"""Where no strength gives it this probability, a quick edit takes gradient steps, too."""
FROM, PREFIXES, SURE = 0.5, 3, 0.98
"""Steps start from this part of the values, and end where the answer has this probability, alone and behind so many
unrelated beginnings."""


class Told(NamedTuple):
    """One wording of a fact, in tokens."""

    question: list[int]
    answer: list[int]
    subject: Subject | None


def find_injector(base: str, folder: Path | None) -> Injector | None:
    """The injector of a workspace's folder, else a packaged one for the base with this content hash, else None.

    Raises NPTError where the workspace's own file is damaged or belongs to another base.
    """
    if folder is not None and (folder / INJECTOR_FILE).exists():
        return Injector.load(folder / INJECTOR_FILE, base)[0]
    for file in sorted(PACKAGED.glob("*.safetensors")):
        if _base_of(file) == base:
            return Injector.load(file, base)[0]
    return None


def _base_of(file: Path) -> str | None:
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as f:
        return json.loads((f.metadata() or {}).get("npt", "{}")).get("base")


@torch.no_grad()
def learned(
    bench: Bench, facts: Sequence[Fact], quick: bool = False, progress: Progress | None = None
) -> list[Solution]:
    """One solution per fact, to be solved together with all other learned ones. Touches no weight.

    Statements are read by the unedited base, so that an edit does not depend on those made before it. Of a fact with
    several wordings, keys and proposed values are the means over them, and the answer is to follow in each. Raises
    NPTError where the model has no injector, and for a statement that is too long for it.
    """
    injector = bench.injector
    if injector is None:
        raise NPTError(
            "there is no injector for this model: train one with npt train-injector, or use --method consolidate"
        )
    config = injector.config
    told = [[_told(bench, w) for w in fact.wordings] for fact in facts]
    check_statements(bench.tokenizer, config, [(t.question, t.answer) for ts in told for t in ts])
    keys, values = (
        torch.zeros(len(facts), len(config.layers), d, device=bench.model.device)
        for d in (config.d_ffn, config.d_model)
    )
    strength, steps = torch.zeros(len(facts), dtype=torch.float64), torch.zeros(len(facts), dtype=torch.long)
    together, done = crowd.taught_together(len(facts), quick), 0
    with bench.unedited():
        for some in _batches(told):
            n, w = len(some), len(told[some[0]])
            wordings = [told[i][j] for j in range(w) for i in some]
            statements = [(t.question, t.answer) for t in wordings]
            reading = read_statements(bench.model, bench.tokenizer, config, statements)
            subjects = [t.subject for t in wordings]
            found = injector.propose(reading, bench.whitening, subjects=subjects)
            K, V = (t.unflatten(0, (w, n)).mean(0) for t in (found.K, found.V))
            keys[some], values[some] = K, V
            if not together:
                at = at_the_end(found.attention, subjects)[:, 0].argmax(-1).tolist()
                trial = _Trial(bench, config.layers, wordings, at, injector.rows(K, bench.whitening))
                values[some], strength[some], steps[some] = _alone(trial, V, reading, quick)
            done += n
            if progress is not None:
                progress(done, len(facts))
        rows = injector.rows(keys, bench.whitening)
        if together:
            joint = [solve_together(rows[:, i], keys[:, i], config.ridge) for i in range(len(config.layers))]
            asked = [crowd.Asked(t.question, t.answer, i) for i, ts in enumerate(told) for t in ts]
            values = crowd.teach_together(bench, config.layers, asked, torch.stack(joint, 1), values, progress)
            strength, steps = strength + crowd.FROM, steps + crowd.steps_for(len(asked))
    places: list[tuple[int, Site]] = [(layer, "down") for layer in config.layers]
    return [
        Solution(
            {place: Factors(A[i : i + 1], V[i][:, None]) for i, place in enumerate(places)},
            {place: K[i : i + 1] for i, place in enumerate(places)},
            {"strength": s, "steps": n},
            config.ridge,
        )
        for A, K, V, s, n in zip(rows.cpu(), keys.cpu(), values.cpu(), strength.tolist(), steps.tolist(), strict=True)
    ]


def _told(bench: Bench, wording: Wording) -> Told:
    question, answer = encode_after(bench.tokenizer, wording.question, wording.answer)
    return Told(question, answer, _subject(bench, wording, len(question)))


def _batches(told: Sequence[Sequence[Told]]) -> Iterator[list[int]]:
    """Facts with as many wordings, in batches of about TOGETHER wordings; those of like length waste little on
    padding."""

    def length(i: int) -> int:
        return max(len(t.question) + len(t.answer) for t in told[i])

    for w in sorted({len(ts) for ts in told}):
        order = sorted((i for i, ts in enumerate(told) if len(ts) == w), key=length)
        size = max(1, TOGETHER // w)
        yield from (order[i : i + size] for i in range(0, len(order), size))


def _alone(trial: _Trial, proposed: Tensor, reading: Reading, quick: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Of facts that are each taught alone: values [n, L, d], the part of the proposed ones that they start from
    [n], and the steps from there [n]."""
    n = len(proposed)
    taken = torch.zeros(n, dtype=torch.long, device=proposed.device)
    if quick:
        strengths, probability = trial.strengths(proposed, reading)
        short = (probability < LEAST).nonzero()[:, 0]
    else:
        strengths = torch.full_like(taken, FROM, dtype=torch.float64)
        short = torch.arange(n, device=proposed.device)
    strengths[short] = FROM
    V = proposed * strengths[:, None, None].to(proposed)
    if len(short):
        corrected, taken[short] = trial.corrected(V, short.tolist())
        V[short] = corrected.to(V)  # the injector's values are float32, steps in a wider model as wide as it
    return V, strengths.cpu(), taken.cpu()


class _Trial:
    """Facts to be tried with the updates v a^T that they ask for."""

    def __init__(self, bench: Bench, layers: Sequence[int], told: Sequence[Told], at: Sequence[int], A: Tensor):
        """`told` is the first wording of each of n facts, then the second of each, and so on; `at` is where the key of
        each stands, counted with the start token; A [n, L, f]."""
        self.bench, self.layers, self.told, self.at, self.A = bench, layers, told, at, A
        self.wordings = len(told) // len(A)
        self.parts = [p for p in bench.parts if p.index in layers]

    @torch.no_grad()
    def strengths(self, V: Tensor, reading: Reading) -> tuple[Tensor, Tensor]:
        """For each fact's values V [n, L, d] the smallest of STRENGTHS at which its answer has the probability ENOUGH
        in each wording, else the largest; and the probability there [n]."""
        k, n, w = len(STRENGTHS), len(V), self.wordings
        rows = [self._row(t) for _ in range(k) for t in range(w * n)]
        at = torch.tensor(self.at, device=V.device)
        before = (torch.arange(reading.told.shape[1], device=V.device) < at[:, None]).long()
        longest = max(len(r.ids) - r.first for r in rows)
        reader = Reader(self.bench.model, self.parts, ("down",), rows, Past.of(reading.cache, before, longest, k))
        scaled = (V.new_tensor(STRENGTHS)[:, None, None, None] * V.repeat(w, 1, 1)).flatten(0, 1)
        with self._adding(self.A.repeat(k * w, 1, 1), scaled):
            probability = reader.of_answers(reader.read()).view(k, w, n).amin(1).exp()
        enough = probability >= ENOUGH
        enough[-1] = True
        smallest = enough.int().argmax(0)
        chosen = torch.tensor(STRENGTHS, dtype=torch.float64, device=V.device)[smallest]
        return chosen, probability[smallest, torch.arange(n, device=V.device)]

    def corrected(self, V: Tensor, which: list[int]) -> Corrected:
        """The values, of V [n, L, d], of some facts, after gradient steps."""
        beginnings: list[list[int]] = [[], *self.bench.prefixes(PREFIXES)]
        n, w = len(V), self.wordings
        rows = [self._row(j * n + i, b, whole=True) for b in beginnings for j in range(w) for i in which]
        reader, k = Reader(self.bench.model, self.parts, ("down",), rows), len(beginnings) * w
        A = self.A[which].repeat(k, 1, 1)
        with torch.no_grad():
            before = reader.read_on()[1]

        def said(V: Tensor) -> Said:
            with self._adding(A, V.repeat(k, 1, 1)):
                answers, after = reader.read_on()
            strayed = kl_div(after, before, reduction="none", log_target=True).sum(-1)
            return Said(reader.of_answers(answers).view(k, -1), strayed.view(k, -1))

        return correct(said, V[which], SURE)

    def _row(self, which: int, beginning: Sequence[int] = (), whole: bool = False) -> Row:
        t = self.told[which]
        answer = t.answer if whole else t.answer[:-1]
        ids = [start_token(self.bench.tokenizer), *beginning, *t.question, *answer]
        return Row(ids, t.answer, [(len(beginning) + self.at[which], 0)], whole)

    def _adding(self, A: Tensor, V: Tensor) -> AbstractContextManager[None]:
        """While it lasts, each row has its own update: A [R, L, f], V [R, L, d]."""

        def term(i: int, z: Tensor) -> Tensor:
            answered = torch.einsum("rtf,rf->rt", z.to(A), A[:, i])
            return answered[..., None] * V[:, i, None]

        parts = {p.index: p for p in self.parts}
        downs = [projection(parts[layer].mlp, "down") for layer in self.layers]
        return adding({down: partial(term, i) for i, down in enumerate(downs)})


def _subject(bench: Bench, wording: Wording, length: int) -> Subject | None:
    """Where the subject stands in a statement whose question has `length` tokens, counted with the start token."""
    if wording.subject is None:
        return None
    before, through = (tokens_through(bench.tokenizer, wording.question, at) for at in wording.subject)
    last = min(through, length)
    return Subject(min(before + 1, last), last, wording.subject_given)
