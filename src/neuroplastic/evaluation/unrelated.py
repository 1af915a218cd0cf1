"""Questions about something else, which an edit should leave alone: those of another record of the same file."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace

from .records import Record
from .strict import normalise

LETTERS = 4
"""Two statements with a word in common that is at least as long may be related."""
MOST = 4
"""Number of unrelated questions of a record, at most."""


def with_unrelated(records: Sequence[Record], topics: Sequence[Set[str]], figures: Sequence[str]) -> list[Record]:
    """Each record with the questions of the next one in the file that has no topic in common with it, of those that
    count for `figures`. `topics` has a set for each record. One that is related to all others gets none."""
    found = []
    for i, record in enumerate(records):
        others = ((i + step) % len(records) for step in range(1, len(records)))
        chosen = next((j for j in others if not topics[i] & topics[j]), None)
        asked = records[chosen].questions if chosen is not None else ()
        unrelated = [q._replace(figure="kept", answers=(), against=()) for q in asked if q.figure in figures]
        found.append(replace(record, unrelated=tuple(unrelated[:MOST])))
    return found


def long_words(record: Record) -> set[str]:
    """The words of LETTERS letters or more in the sentences that a record teaches."""
    return {w for claim in record.claims for w in normalise(claim.statement).split() if len(w) >= LETTERS}
