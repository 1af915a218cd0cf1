"""The edit suite with sequential edits: each stays while the next is made, and all are asked again at checkpoints."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from ..console import Progress
from ..errors import NPTError
from .evaluator import Evaluator
from .methods import EditingMethod
from .ordinary import OrdinaryText
from .records import Record
from .result_store import ResultStore
from .suite import Suite
from .summary import Interval, mean_interval, summary

CHECKPOINTS = (1, 3, 10, 30, 100, 300, 1000)
"""Numbers of edits after which those made so far are asked again, as they are at the end."""
MOST_ASKED = 200
"""If more edits are in place, a seeded sample of this size is asked, because each costs about a second."""


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
    missing. Raises NPTError for a method that changes no weights.
    """
    steps = {s.edits: s for s in (store.done if store is not None else ()) if s.method == method}
    asked = samples(records, evaluator.seed)
    missing = [n for n in asked if n not in steps]
    if missing:
        evaluator.remember([r for n in missing for r in asked[n]])
        ordinary = OrdinaryText(evaluator.engine)
        seconds: list[float] = []
    with ExitStack() as stack:
        for number, record in enumerate(records[: max(missing, default=0)], 1):
            taught = stack.enter_context(teach(evaluator.engine, record))
            if not taught.weights:
                raise NPTError(f"{method!r} makes no edits to keep")
            seconds.append(taught.seconds)
            if number in missing:
                rows = [evaluator.ask(r, taught.context) for r in asked[number]]
                suite = evaluator.suite
                figures = summary(rows, suite.parts_of_s, evaluator.seed, suite.shares)
                figures |= {"seconds": mean_interval(seconds, evaluator.seed)}
                steps[number] = Step(method, number, len(rows), figures, *ordinary.drift())
                if store is not None:
                    store.keep(steps[number])
            if progress is not None:
                progress(number, len(records))
    return [steps[n] for n in sorted(steps)]


def summarise_steps(steps: Sequence[Step], records: Sequence[Record], suite: Suite, seed: int = 0) -> dict[str, Any]:
    """As `summarise` does for single edits."""
    return {
        "suite": suite.name,
        "parts_of_s": suite.parts_of_s,
        "seed": seed,
        "records": [r.id for r in records],
        "steps": [asdict(s) for s in steps],
    }
