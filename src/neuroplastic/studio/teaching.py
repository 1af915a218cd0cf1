"""Teach: a fact goes into the weights, stage by stage, and what it changed is measured around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ..console import progress
from ..editing.fact import Fact, asked, fact_of
from ..editing.inject_options import InjectOptions
from ..editing.recall import Query
from ..errors import NPTError
from ..files import lines_of
from ..text.tokens import context_length
from .edit_table import details
from .jobs import Tell

if TYPE_CHECKING:
    from ..workspace.workspace import Workspace

NEIGHBOUR_TOKENS = 8
"""Length of what a neighbour says."""


@dataclass(frozen=True)
class Teach(InjectOptions):
    """A statement, or a question and its answer; several statements, one a line, become an edit each."""

    statement: str | None = None
    question: str | None = None
    answer: str | None = None
    wordings: tuple[str, ...] = ()
    """other wordings of the fact, taught with it"""
    subject: str | None = None
    name: str | None = None
    paraphrases: tuple[str, ...] = ()
    """asked before and after, not taught: beginnings of sentences that the answer should follow, or these whole"""
    neighbours: tuple[str, ...] = ()
    """asked before and after: beginnings of sentences about something else, that should stay as they are"""

    @property
    def options(self) -> InjectOptions:
        return InjectOptions(**{f.name: getattr(self, f.name) for f in fields(InjectOptions)})

    @property
    def facts(self) -> list[Fact]:
        """Raises NPTError if the fields do not go together."""
        if (self.statement is None) == (self.question is None):
            raise NPTError("give a statement, or a question and its answer")
        if self.question is not None:
            if self.answer is None:
                raise NPTError("a question goes with its answer")
            return [asked(self.question, self.answer, self.wordings, self.subject)]
        assert self.statement is not None
        lines = [line.strip() for line in lines_of(self.statement) if line.strip()]
        if len(lines) > 1:
            own = ("answer", "wordings", "subject", "name", "paraphrases", "neighbours")
            if used := [o for o in own if getattr(self, o)]:
                raise NPTError(f"{used[0]} belongs to one fact, and there are {len(lines)} statements")
        if not lines:
            raise NPTError("the statement is empty; give a sentence such as 'The Eiffel Tower is in Rome.'")
        return [fact_of(line, self.wordings, self.subject, self.answer) for line in lines]


def teach(ws: Workspace, form: Teach, tell: Tell) -> dict[str, Any]:
    """Raises as `Workspace.inject_all`; whatever ends it early, Stopped too, nothing has changed."""
    facts, options = form.facts, form.options
    around = Around(ws, facts[0].answer, form.paraphrases, form.neighbours)
    before, active = around.ask(), {e.id for e in ws.edits}
    made = ws.inject_all(facts, options, [form.name] * len(facts))
    try:
        after = around.ask()
        return {
            "edits": [{**details(e, "active", plot=len(made) == 1), "changed": e.id not in active} for e in made],
            "paraphrases": _beside(before["paraphrases"], after["paraphrases"]),
            "neighbours": _beside(before["neighbours"], after["neighbours"]),
        }
    except BaseException:
        for edit in made:
            if edit.id not in active and edit.active:
                ws.undo(edit)
                ws.drop(edit.name)
        raise


@dataclass(frozen=True)
class Around:
    """What is asked about a fact beyond its own statement, in standard mode."""

    ws: Workspace
    answer: str
    paraphrases: Sequence[str]
    neighbours: Sequence[str]

    def ask(self) -> dict[str, list[dict[str, Any]]]:
        if not (self.paraphrases or self.neighbours):
            return {"paraphrases": [], "neighbours": []}
        questions = [self._question(p) for p in (*self.paraphrases, *self.neighbours)]
        recalled = self.ws.engine.recall([Query(q + self.answer, q, self.answer) for q in questions])
        found: list[dict[str, Any]] = []
        with progress("asking paraphrases and neighbours") as step:
            for q, r in zip(questions, recalled, strict=True):
                step(len(found), len(questions))
                says = self.ws.ask(q, "standard", NEIGHBOUR_TOKENS)
                found.append({"prompt": q, "says": says, "probability": r.answer_probability})
        return {"paraphrases": found[: len(self.paraphrases)], "neighbours": found[len(self.paraphrases) :]}

    def _question(self, line: str) -> str:
        """What comes before the answer, if the line ends with it; else the line."""
        if not line.strip():
            raise NPTError("a paraphrase or neighbour is empty")
        stated = line.rstrip().rstrip(".!?")
        question = stated.removesuffix(self.answer) if stated.endswith(self.answer) else line.rstrip()
        length = len(self.ws.tokens(question + self.answer)) + NEIGHBOUR_TOKENS
        if length > (room := context_length(self.ws.model)):
            raise NPTError(f"a paraphrase or neighbour and its answer have {length} tokens; the model reads {room}")
        return question


def _beside(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"prompt": b["prompt"], "before": _without_prompt(b), "after": _without_prompt(a)}
        for b, a in zip(before, after, strict=True)
    ]


def _without_prompt(found: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in found.items() if k != "prompt"}
