"""One model that can be edited: its ledger, its structure, and what is known of it on ordinary text.

A workspace has one; so has every plain model that was edited in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config import parse_layers
from ..console import progress, stage
from ..errors import CheckFailed, NPTError
from ..evaluation.fidelity import perplexity
from ..statistics import Whitening
from ..structure import LayerParts, decoder_layers, inspect_layers
from ..surgery import mode
from ..text import calibration_text, self_text
from .consolidate import Bench
from .crowd import taught_together
from .edit import Edit
from .fact import Fact
from .inject import relative_norms, solve
from .injector import Injector
from .learned import find_injector
from .ledger import Ledger
from .options import InjectOptions
from .recall import Asked, Recall, recall
from .targets import Place

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


DRIFT_ROWS = 4
"""Rows of held-out text, about five hundred tokens, on which drift is measured."""
ELSEWHERE = 2
"""A question is also asked behind so many unrelated texts."""


def contradict(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """The same question, which is not empty, and another answer."""
    (q, a), (p, b) = one, other
    return bool(q.split()) and q.split() == p.split() and a.split() != b.split()


class Editor:
    """Makes edits and keeps them in the weights. `sha256` is the content hash of the unedited base."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sha256: str, folder: Path | None = None
    ):
        """`folder` is where an injector may lie, trained for this model."""
        self.model, self.tokenizer, self.sha256, self.folder = model, tokenizer, sha256, folder
        self.ledger = Ledger(model)
        self._perplexity: tuple[tuple[Edit, ...], float] | None = None

    def make(self, facts: Sequence[Fact], options: InjectOptions, names: Sequence[str]) -> list[Edit]:
        """The edits that the facts ask for, solved together, not yet in the weights.

        Raises NPTError for bad input, and CheckFailed, where they should be `consistent`, for a contradiction.
        """
        if not facts:
            raise NPTError("there is no statement to inject")
        told = dict(zip(names, ((f.question, f.answer) for f in facts), strict=True))
        contradicted = self._contradicted(told)
        if options.consistent:
            _refuse_contradiction(told, contradicted)
        injector = self.injector if options.asks_injector else None  # a damaged one stands in no other method's way
        options = options.resolved(injector is not None)
        chosen = parse_layers(options.chosen_layers, len(self.parts)) if injector is None else injector.config.layers
        parts = [p for p in self.parts if p.index in chosen]
        together = options.source == "learned" and taught_together(len(facts), options.quick)
        # once per model, so not part of the edits' time
        whitening, text = self.whitening, self.more_text if together else self.text[0]
        bench = Bench(
            self.model,
            self.tokenizer,
            parts,
            options.chosen_sites,
            whitening,
            text,
            _keys(self.ledger.active),
            injector,
            self.ledger.unedited,
        )
        stage("solving for the change of the weights")
        began = time.perf_counter()
        with progress("solving") if len(facts) > 1 else nullcontext() as step:
            solutions = solve(bench, facts, options, step)
        seconds = (time.perf_counter() - began) / len(facts)
        stage("asking the model as it is")
        before = self.recall([Asked(f.statement, f.question, f.answer) for f in facts])
        now = datetime.now(UTC).isoformat(timespec="seconds")
        edits: list[Edit] = []
        for name, fact, solution, known in zip(names, facts, solutions, before, strict=True):
            report: dict[str, Any] = {
                "question": fact.question,
                "answer": fact.answer.strip(),
                "subject": fact.subject,
                "seconds": seconds,
                "told_together": len(facts),
                **solution.figures,
                "relative_norm": relative_norms(parts, solution.factors),
                **_recalled(known, "before"),
                "contradicts": contradicted[name],
            }
            made = (name, fact.statement, options.chosen_method, options.strength, self.sha256, 0, now)
            edits.append(Edit(*made, solution.factors, report, solution.keys, solution.rho))
        return edits

    def apply(
        self,
        edits: Sequence[Edit],
        keep: Callable[[Sequence[Edit]], None] = lambda edits: None,
        max_drift: float | None = None,
        require: bool = False,
    ) -> list[Edit]:
        """Puts new edits behind the active ones, measures what they did, and gives them to `keep`; all or nothing.

        Raises CheckFailed where perplexity on held-out ordinary text rises by more than `max_drift` (0.05 is 5 %), and,
        if `require`, where some edit's answer is not the likeliest one afterwards.
        """
        active = self.ledger.active
        stage("measuring perplexity on ordinary text")
        before = self.perplexity()
        try:
            self.ledger.set_active((*active, *edits))
            drift = self.perplexity() / before - 1
            if max_drift is not None and not drift <= max_drift:
                raise CheckFailed(
                    f"refused: perplexity on ordinary text would rise by {drift:.1%}, more than {max_drift:.1%}; "
                    "nothing was changed (a smaller alpha or fewer layers disturb less)"
                )
            stage("asking the model with the edit in its weights")
            measured = self._measured(edits, drift)
            if require and (failed := [e for e in measured if e.report.get("holds") is False]):
                raise CheckFailed(
                    f"refused: the answer of {', '.join(repr(e.name) for e in failed)} would not be the likeliest one "
                    f"(probability {failed[0].report['answer_probability_after']:.1%}); nothing was changed (another "
                    "method, alpha or wording may do)"
                )
            keep(measured)
            after = self._perplexity
            self.ledger.set_active((*active, *measured))
            if after is not None:
                self._perplexity = (self.ledger.active, after[1])
        except BaseException:
            self.ledger.set_active(active)
            raise
        return measured

    def _contradicted(self, told: Mapping[str, tuple[str, str]]) -> dict[str, list[str]]:
        """For each new edit's question and answer, by its name, the active and the earlier new edits that have another
        answer."""
        known = [(e.name, e.asked) for e in self.ledger.active if e.asked is not None]
        found: dict[str, list[str]] = {}
        for name, new in told.items():
            found[name] = [other for other, asked in known if contradict(asked, new)]
            known.append((name, new))
        return found

    def _measured(self, edits: Sequence[Edit], drift: float) -> list[Edit]:
        """The edits, with what they did, all of them together, in their reports."""
        asked = {e.name: Asked(e.statement, *e.asked) for e in edits if e.asked is not None}
        recalled = dict(zip(asked, self.recall(list(asked.values())), strict=True)) if asked else {}
        measured = []
        for e in edits:
            after: dict[str, Any] = {}
            if (now := recalled.get(e.name)) is not None:
                after = {**_recalled(now, "after"), "holds": now.holds}
            measured.append(replace(e, report={**e.report, "perplexity_drift": drift, **after}))
        return measured

    def recall(self, asked: Sequence[Asked]) -> list[Recall]:
        """How the model continues statements now, in standard mode."""
        held_out = self.text[1]
        elsewhere = [held_out[i, 1:9].tolist() for i in range(min(ELSEWHERE, len(held_out)))]
        with mode(self.model, "standard"):
            return recall(self.model, self.tokenizer, asked, elsewhere)

    def perplexity(self) -> float:
        """Perplexity of the model as it is now, in standard mode, on some held-out ordinary text."""
        active = self.ledger.active
        known = self._perplexity
        if known is None or [id(e) for e in known[0]] != [id(e) for e in active]:
            with mode(self.model, "standard"):
                known = (active, perplexity(self.model, self.text[1][:DRIFT_ROWS]))
            self._perplexity = known
        return known[1]

    @contextmanager
    def only(self, edits: Sequence[Edit]) -> Iterator[None]:
        """Exactly these edits in the weights, while it lasts; with none, the pristine base."""
        if not edits:
            with self.ledger.unedited():
                yield
            return
        active = self.ledger.active
        self.ledger.set_active(edits)
        try:
            yield
        finally:
            self.ledger.set_active(active)

    def prepare(self) -> None:
        """Does now what the first edit would wait for: a minute or more for a model never seen before, then cached."""
        _ = self.whitening
        self.perplexity()

    @cached_property
    def injector(self) -> Injector | None:
        """The network behind method `learned`, where there is one for this model. Raises NPTError for a damaged one."""
        found = find_injector(self.sha256, self.folder)
        return None if found is None else found.to(self.model.device)

    def forget_injector(self) -> None:
        """To be called when the file has changed."""
        self.__dict__.pop("injector", None)

    @cached_property
    def parts(self) -> list[LayerParts]:
        """The wiring of every layer, plastic or not."""
        with mode(self.model, "standard"):
            return inspect_layers(self.model, range(len(decoder_layers(self.model))))

    @cached_property
    def text(self) -> tuple[Tensor, Tensor]:
        """Text that the unedited model wrote: (for statistics, held out for measuring), each (N, T)."""
        with self.only(()), mode(self.model, "standard"):
            return self_text(self.model, self.tokenizer, self.sha256)

    @cached_property
    def whitening(self) -> Whitening:
        """The covariance of ordinary text: measured once per model, then cached on disk."""
        text = self.text[0]
        with self.only(()), mode(self.model, "standard"):
            return Whitening.of(self.model, self.parts, text, self.sha256)

    @cached_property
    def more_text(self) -> Tensor:
        """Three times as much of it, (N, T), for many facts taught together: their steps would learn the little there
        is by heart, and spare no other."""
        with self.only(()), mode(self.model, "standard"):
            return torch.cat([self.text[0], calibration_text(self.model, self.tokenizer, self.sha256)[0]])


def _refuse_contradiction(told: Mapping[str, tuple[str, str]], contradicted: Mapping[str, Sequence[str]]) -> None:
    for name, others in contradicted.items():
        if others:
            question, answer = told[name]
            raise CheckFailed(
                f"refused: to {question!r} the edit {', '.join(map(repr, others))} has another answer than "
                f"{answer.strip()!r}; nothing was changed (undo that edit first, or let the new one contradict it)"
            )


def _keys(edits: Sequence[Edit]) -> dict[Place, Tensor]:
    """The keys of all of them by place."""
    found: dict[Place, list[Tensor]] = {}
    for edit in edits:
        for place, keys in edit.keys.items():
            found.setdefault(place, []).append(keys)
    return {place: torch.cat(keys) for place, keys in found.items()}


def _recalled(known: Recall, when: str) -> dict[str, float]:
    """A recall as entries of a report."""
    return {
        f"statement_logprob_{when}": known.statement_logprob,
        f"answer_probability_{when}": known.answer_probability,
        f"elsewhere_probability_{when}": known.elsewhere_probability,
    }
