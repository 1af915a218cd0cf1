"""Which edit took whose place, followed through chains of replacements."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from .edit import Edit


class Replacements:
    """Of some edits, each known by its id: those whose place it took, and those whose place these had taken before."""

    def __init__(self, active: Iterable[Edit], undone: Mapping[str, Collection[str]]):
        """`undone` gives, for the id of each edit that was taken back, the ids of those that it replaced."""
        self._replaced = {**undone, **{e.id: e.replaced_ids for e in active}}

    def lineage(self, edit: Edit) -> set[str]:
        """The ids of all edits that `edit` replaced, directly or through others; its own is not among them."""
        found: set[str] = set()
        waiting = list(edit.replaced_ids)
        while waiting:
            if (known := waiting.pop()) not in found:
                found.add(known)
                waiting += self._replaced.get(known, ())
        return found - {edit.id}

    def replaced(self, edits: Iterable[Edit], by: Iterable[Edit]) -> list[Edit]:
        """Those of some edits whose place others took, directly or through edits that are undone."""
        gone = set[str]().union(*(self.lineage(e) for e in by))
        return [e for e in edits if e.id in gone]

    def rivals(self, edit: Edit, among: Iterable[Edit]) -> list[Edit]:
        """Those of some edits that took the place of `edit`, or of one that `edit` had replaced: while one of them is
        active, `edit` cannot be. An edit that `edit` itself replaced is no rival."""
        own = self.lineage(edit)
        return [e for e in among if e.id not in own and not self.lineage(e).isdisjoint({edit.id, *own})]
