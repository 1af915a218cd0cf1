"""A folder that keeps a run's results as they are made, so that an interrupted run continues after the last one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..errors import NPTError
from ..files import whole_file

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


class ResultStore(Generic[T]):
    """A file in a folder: the run's settings, then one line for every result, which are dataclasses `kind`."""

    def __init__(self, folder: Path, settings: dict[str, Any], kind: type[T], name: str = "rows.jsonl"):
        """Raises NPTError if the folder belongs to a run with other settings, or its results are damaged."""
        self.folder, self.file = folder, folder / name
        self.done: list[T] = []
        head = json.dumps({"settings": settings}) + "\n"
        if not self.file.exists():
            with whole_file(self.file) as path:
                path.write_text(head, encoding="utf-8")
            return
        first, *lines = self.file.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
        if first != head:
            raise NPTError(f"{folder} holds the report of another run: {first.strip()}; choose another folder")
        whole = [line for line in lines if line.endswith("\n")]  # a run that was killed may have cut its last line
        if len(whole) < len(lines):
            with whole_file(self.file) as path:
                path.write_text(first + "".join(whole), encoding="utf-8")
        try:
            self.done = [kind(**json.loads(line)) for line in whole]
        except (ValueError, TypeError) as e:
            raise NPTError(f"{self.file} is damaged: {e}; delete it to begin again") from None

    def keep(self, result: T) -> None:
        with self.file.open("a", encoding="utf-8") as f:
            f.write(json.dumps(asdict(result)) + "\n")
