"""Where edits are kept beyond the weights: in memory alone, or in a workspace's folder (edit_files.py)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from ..errors import NPTError
from .edit import Edit


class EditStore(Protocol):
    """What the engine asks of a store. Active edits are in the ledger; a store remembers them, and the undone ones."""

    @property
    def reserved(self) -> set[str]:
        """Names that no new edit may have."""

    @property
    def undone(self) -> tuple[str, ...]:
        """Names of the edits that were taken back and can be redone."""

    @property
    def replacements(self) -> dict[str, tuple[str, ...]]:
        """For the id of each undone edit, the ids of those that it had replaced."""

    def locked(self) -> AbstractContextManager[None]:
        """One process at a time changes a store."""

    def next_sequence(self) -> int:
        """A number above that of every edit in the store."""

    def read_undone(self, name: str) -> Edit:
        """Raises NPTError if there is no such edit, or it cannot be read."""

    def change(self, write: Sequence[Edit] = (), revive: Sequence[Edit] = (), retire: Sequence[Edit] = ()) -> None:
        """New edits, undone ones that become active, and active ones that become undone; all or nothing."""

    def drop(self, name: str) -> None:
        """Forgets an undone edit for good. Raises NPTError if there is no such edit."""


class MemoryStore:
    """Edits of a model without a workspace. An undone one is kept until another one takes its name."""

    def __init__(self) -> None:
        self._undone: dict[str, Edit] = {}
        self._last = 0

    @property
    def reserved(self) -> set[str]:
        return set()

    @property
    def undone(self) -> tuple[str, ...]:
        return tuple(sorted(self._undone))

    @property
    def replacements(self) -> dict[str, tuple[str, ...]]:
        return {e.id: e.replaced_ids for e in self._undone.values()}

    def locked(self) -> AbstractContextManager[None]:
        return nullcontext()

    def next_sequence(self) -> int:
        return self._last + 1

    def read_undone(self, name: str) -> Edit:
        if name not in self._undone:
            raise NPTError(f"there is no undone edit {name!r}; undone are: {', '.join(self.undone) or 'none'}")
        return self._undone[name]

    def change(self, write: Sequence[Edit] = (), revive: Sequence[Edit] = (), retire: Sequence[Edit] = ()) -> None:
        undone = {n: e for n, e in self._undone.items() if n not in {e.name for e in (*write, *revive)}}
        self._undone = undone | {e.name: e for e in retire}
        self._last = max(self._last, *(e.sequence for e in (*write, *revive)), 0)

    def drop(self, name: str) -> None:
        self.read_undone(name)
        self._undone = {n: e for n, e in self._undone.items() if n != name}
