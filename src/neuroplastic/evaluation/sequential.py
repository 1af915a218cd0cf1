"""The edit suite with sequential edits: each stays while the next is made, and all are asked again at checkpoints."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

from ..console import Progress
from ..errors import NPTError
from .evaluator import Evaluator
from .methods import EditingMethod
from .records import Record
from .result_store import ResultStore
from .suite import Suite
from .summary import Interval, mean_interval, summary

CHECKPOINTS = (1, 3, 10, 30, 100, 300, 1000)
"""Numbers of edits after which those made so far are asked again, as they are at the end."""
MOST_ASKED = 200
"""If more edits are in place, a seeded sample of this size is asked, because each costs about a second."""
FIRST = 100
"""If more edits are in place at the end, the first ones of this number are asked again."""


@dataclass(frozen=True)
class Step:
    """One checkpoint of one method."""

    method: str
    edits: int
    asked: int
    """the number of them that were asked"""
    figures: dict[str, Interval]
    """over the records asked; `seconds` is over all edits made so far"""
    perplexity: float
    """relative rise on ordinary text since the first edit"""
    kl: float
    """nats per token on ordinary text"""
    refused: dict[str, str] = field(default_factory=dict)
    """of the records until then, those that the method could not teach, and why; they are asked all the same"""
    untaught: dict[str, str] = field(default_factory=dict)
    """of those records, what the method left out of some, and why"""
    first: bool = False
    """whether those asked are the first ones that were taught, not all or a sample of all"""
    perplexity_text: float | None = None
    kl_text: float | None = None
    """the same two on a text that was given"""


def label(step: Mapping[str, Any]) -> str:
    """What a table calls a step: its method, and which edits were asked if these are the first ones."""
    return f"{step['method']}, first {step['asked']} of {step['edits']}" if step["first"] else step["method"]


def samples(records: Sequence[Record], seed: int) -> dict[int, list[Record]]:
    """By checkpoint, which of the records taught until then are asked."""
    found = {}
    for n in sorted({*(c for c in CHECKPOINTS if c < len(records)), len(records)}):
        taught = list(records[:n])
        found[n] = taught if n <= MOST_ASKED else random.Random(f"{seed} {n}").sample(taught, MOST_ASKED)
    return found


def in_a_row(
    evaluator: Evaluator,
    records: Sequence[Record],
    method: str,
    teach: EditingMethod,
    store: ResultStore[Step] | None = None,
    progress: Progress | None = None,
) -> list[Step]:
    """The records taught one after another, and what is left of them at the checkpoints.

    Steps in `store` are not asked again, and new ones are added to it; edits are made again up to the last step that is
    missing. A record that the method cannot teach is named in the steps. Raises NPTError for a method that changes no
    weights.
    """
    suite = evaluator.suite
    steps = {(s.edits, s.first): s for s in (store.done if store is not None else ()) if s.method == method}
    asked = {(n, False): some for n, some in samples(records, evaluator.seed).items()}
    if len(records) > FIRST:
        asked[len(records), True] = list(records[:FIRST])
    missing = [at for at in asked if at not in steps]
    if missing:
        evaluator.remember([r for at in missing for r in asked[at]])
        ordinary = evaluator.ordinary()
    seconds: list[float] = []
    refused: dict[str, str] = {}
    untaught: dict[str, str] = {}
    with ExitStack() as stack:
        for number, record in enumerate(records[: max((n for n, _ in missing), default=0)], 1):
            try:
                taught = stack.enter_context(teach(evaluator.engine, record))
            except NPTError as e:
                refused[record.id] = str(e)
            else:
                if not taught.weights:
                    raise NPTError(f"{method!r} makes no edits to keep")
                seconds.append(taught.seconds)
                untaught |= taught.untaught
            rows: dict[str, dict[str, float]] = {}  # a record may be in the sample and among the first ones
            for at in (at for at in missing if at[0] == number):
                rows |= {r.id: evaluator.ask(r) for r in asked[at] if r.id not in rows}
                own = [rows[r.id] for r in asked[at]]
                figures = summary(own, suite.parts_of_s, evaluator.seed, suite.shares)
                if seconds:
                    figures |= {"seconds": mean_interval(seconds, evaluator.seed)}
                drift, unable = ordinary.drift(), (dict(refused), dict(untaught))
                moved = (drift["perplexity"], drift["kl"])
                on_text = (drift.get("perplexity_text"), drift.get("kl_text"))
                steps[at] = Step(method, number, len(own), figures, *moved, *unable, at[1], *on_text)
                if store is not None:
                    store.keep(steps[at])
            if progress is not None:
                progress(number, len(records))
    return [steps[n] for n in sorted(steps)]


def summarise_steps(steps: Sequence[Step], records: Sequence[Record], suite: Suite, seed: int = 0) -> dict[str, Any]:
    """As `summarise` does for single edits."""
    return {
        "suite": suite.name,
        "parts_of_s": suite.parts_of_s,
        "shares": list(suite.shares),
        "seed": seed,
        "records": [r.id for r in records],
        "steps": [asdict(s) for s in steps],
    }
