"""The edits of a workspace as files: `edits/NAME.safetensors`, and those taken back in `edits/undone/`.

An edit is undone by moving its file. Two locks keep processes apart: `.lock` from the plan of a change to its end, for
minutes maybe, and `.files.lock` while files are moved or read, for an instant. Nothing here loads a model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..console import note
from ..editing.edit import Edit
from ..editing.replacement import Replacements
from ..errors import NPTError
from ..files import sync_folder
from .settings import read_settings


class EditFiles:
    """Those of one workspace folder, whose edits belong to the base with this content hash."""

    def __init__(self, path: Path, base: str):
        self.path, self.base = path, base

    @property
    def active(self) -> list[Path]:
        return edit_files(self.path / "edits")

    @property
    def undone(self) -> tuple[str, ...]:
        """Names of the edits that were taken back."""
        return tuple(sorted(f.stem for f in self._undone_files))

    @property
    def reserved(self) -> set[str]:
        """Names of all edits, active and undone."""
        return {f.stem for f in self._all()}

    @property
    def replacements(self) -> dict[str, tuple[str, ...]]:
        """For the id of each undone edit, the ids of those that it had replaced; without files that are damaged."""
        found = {}
        for file in self._undone_files:
            about = read_edit_header(file)
            report = about.get("report")
            known = about.get("id", about.get("seal"))
            if isinstance(known, str) and isinstance(report, dict):
                found[known] = tuple(report.get("replaced_ids", ()))
        return found

    def next_sequence(self) -> int:
        return 1 + max((read_edit_sequence(f) for f in self._all()), default=0)

    def read(self, file: Path) -> Edit:
        """Raises NPTError if the file is damaged, was renamed, or its edit is one of another base."""
        edit = Edit.load(file)
        if edit.base != self.base:
            raise NPTError(f"{file} is an edit of another base model ({edit.base[:12]}, not {self.base[:12]})")
        if edit.name != file.stem:
            raise NPTError(f"{file} holds the edit {edit.name!r}; give the file its own name back")
        return edit

    def read_undone(self, name: str) -> Edit:
        return self.read(self._undone(self._known_undone(name)))

    def read_active(self, check: Callable[[Edit], None]) -> tuple[list[Edit], dict[str, str]]:
        """The active edits that pass a check, which raises NPTError, and why the others are left out, by name.

        An edit beside the one that replaced it, as a kill in the middle of a change can leave it, becomes undone. What
        is left out or undone is named in a note.
        """
        readable: list[Edit] = []
        refused: dict[str, str] = {}
        with self._still():
            for file in self.active:
                try:
                    edit = self.read(file)
                    check(edit)
                    readable.append(edit)
                except NPTError as e:
                    refused[file.stem] = str(e)
                    note(f"npt: this edit is left out: {e}")
            left = Replacements(readable, self.replacements).replaced(readable, by=readable)
            for edit in left:
                note(f"npt: the edit {edit.name!r} is undone: another active one has replaced it")
            if left:
                self._move(retire=left)
        return [e for e in readable if e not in left], refused

    def readable(self) -> tuple[list[Edit], list[Edit]]:
        """The active and the undone edits, each in order. Those that cannot be read are left out, with a note."""
        with self._still():
            return self._readable(self.active), self._readable(self._undone_files)

    def readable_undone(self) -> list[Edit]:
        """The undone ones of them."""
        with self._still():
            return self._readable(self._undone_files)

    def _readable(self, files: Sequence[Path]) -> list[Edit]:
        found = []
        for file in files:
            try:
                found.append(self.read(file))
            except NPTError as e:
                note(f"npt: this edit is left out: {e}")
        return sorted(found, key=lambda e: (e.sequence, e.name))

    def change(self, write: Sequence[Edit] = (), revive: Sequence[Edit] = (), retire: Sequence[Edit] = ()) -> None:
        """New edits, undone ones that become active, and active ones that become undone; all or nothing.

        New files are written where no reader looks, and then renamed: a kill before that leaves nothing changed. One
        between two renames, which follow each other at once, leaves whole edits, but the first of them only; or both an
        edit and the one that it replaces active, which opening the workspace mends.
        """
        if not (write or revive or retire):
            return
        new = self.path / "edits/.new"
        try:
            for edit in write:
                edit.save(new / f"{edit.name}.safetensors")
            with self._still():
                self._move([new / f"{edit.name}.safetensors" for edit in write], revive, retire)
        finally:
            if write:
                shutil.rmtree(new, ignore_errors=True)

    def _move(self, new: Sequence[Path] = (), revive: Sequence[Edit] = (), retire: Sequence[Edit] = ()) -> None:
        """New files to the active ones, undone ones too, and active ones to the undone; all or none of them."""
        takes_back: list[Callable[[], object]] = []

        def move(source: Path, target: Path) -> None:
            if target.exists():
                raise NPTError(f"{target} is there already, and would be lost; move it away or give it another name")
            source.rename(target)
            takes_back.append(lambda: target.rename(source))

        try:
            for file in new:
                move(file, self._active(file.stem))
            for edit in revive:
                self._known_undone(edit.name)
                move(self._undone(edit.name), self._active(edit.name))
            for edit in retire:
                if not self._active(edit.name).exists():
                    raise NPTError(
                        f"the file of edit {edit.name!r} is gone: another process has undone it; open the workspace "
                        "again"
                    )
                move(self._active(edit.name), self._undone(edit.name))
            for folder in (self.path / "edits", self.path / "edits/undone"):
                sync_folder(folder)
        except BaseException:
            for take_back in reversed(takes_back):
                take_back()
            raise

    def drop(self, name: str) -> None:
        with self._still():
            self._undone(self._known_undone(name)).unlink()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time changes the folder; another one waits."""
        from filelock import FileLock

        with FileLock(self.path / ".lock"):
            yield

    @contextmanager
    def _still(self) -> Iterator[None]:
        """No other process moves a file meanwhile. A folder that cannot be written to is read without a lock."""
        from filelock import FileLock

        lock = FileLock(self.path / ".files.lock")
        with suppress(OSError, NotImplementedError):
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _active(self, name: str) -> Path:
        return self.path / "edits" / f"{name}.safetensors"

    def _undone(self, name: str) -> Path:
        return self.path / "edits/undone" / f"{name}.safetensors"

    def _known_undone(self, name: str) -> str:
        if name not in self.undone:
            hint = " (it is active; undo it first)" if name in self.reserved else ""
            raise NPTError(f"there is no undone edit {name!r}{hint}; undone are: {', '.join(self.undone) or 'none'}")
        return name

    def _all(self) -> list[Path]:
        return self.active + self._undone_files

    @property
    def _undone_files(self) -> list[Path]:
        return edit_files(self.path / "edits/undone")


def list_edits(path: Path) -> tuple[list[Edit], list[Edit]]:
    """The active and the undone edits of a workspace folder, each in order; those that opening the workspace would
    refuse for their file or their base are left out, with a note."""
    base, _ = read_settings(path)
    return EditFiles(path, base.sha256).readable()


def edit_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!.]*.safetensors"))


def read_edit_sequence(file: Path) -> int:
    """An edit's place in the order, from its file's header alone; 0 if the file is damaged, which takes no place.

    Damaged files are named when they are opened or redone; they must not stand in the way of new edits.
    """
    sequence = read_edit_header(file).get("sequence")
    return sequence if isinstance(sequence, int) else 0


def read_edit_header(file: Path) -> dict[str, Any]:
    """What an edit's file says of it, without its tensors; nothing if the file is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as f:
            about = json.loads((f.metadata() or {})["npt"])
    except (SafetensorError, OSError, KeyError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}
