"""Texts packed into rows: several to a row, each with its own positions, none seeing another, padding marked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import NPTError
from ..extras import need_extra


@dataclass(frozen=True, eq=False)
class Packed:
    """Rows of tokens. All (N, T).

    Attention masks need not be built: where positions begin anew, transformers begins a new sequence, with the mask
    that each layer's attention needs. A padding token is a sequence of its own, which nothing else sees.
    """

    ids: Tensor
    positions: Tensor
    """counted from 0 in each text"""
    valid: Tensor
    """bool; False for padding"""

    def __getitem__(self, at: Any) -> Packed:
        return Packed(self.ids[at], self.positions[at], self.valid[at])

    def to(self, device: torch.device) -> Packed:
        return Packed(self.ids.to(device), self.positions.to(device), self.valid.to(device))


Row = list[list[int]]
"""The pieces of texts in one row."""


def pack(texts: Iterable[Sequence[int]], start: int, length: int) -> Iterator[Row]:
    """Rows of at most `length` tokens.

    Every piece opens with `start`. A text that does not fit into the rest of a row continues in the next one.
    """
    row: Row = []
    room = length
    for text in texts:
        left = list(text)
        while left:
            if room < 2:
                yield row
                row, room = [], length
            piece, left = left[: room - 1], left[room - 1 :]
            row.append([start, *piece])
            room -= len(piece) + 1
    if row:
        yield row


def stack(rows: Sequence[Row], length: int) -> Packed:
    """Rows as tensors (N, length), padded on the right."""
    ids = torch.zeros(len(rows), length, dtype=torch.long, device="cpu")
    positions, valid = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        done = 0
        for piece in row:
            at = slice(done, done + len(piece))
            ids[i, at], positions[i, at] = ids.new_tensor(piece), torch.arange(len(piece), device=ids.device)
            valid[i, at] = True
            done += len(piece)
    return Packed(ids, positions, valid)


class Source(Protocol):
    """Rows by number: whatever was read before, the same number gives the same row."""

    def rows(self, first: int, count: int) -> Packed: ...

    def kept(self) -> dict[str, Tensor]:
        """What a checkpoint must hold to continue without reading everything again."""
        ...

    def restore(self, kept: dict[str, Tensor]) -> None: ...


class Shuffled:
    """Rows in memory, in a new order in every epoch, drawn from the seed."""

    def __init__(self, packed: Packed, seed: int):
        self.packed, self.seed = packed, seed

    def rows(self, first: int, count: int) -> Packed:
        return self.packed[[self._at(i) for i in range(first, first + count)]]

    def _at(self, number: int) -> int:
        epoch, at = divmod(number, len(self.packed.ids))
        rng = torch.Generator("cpu").manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        return int(torch.randperm(len(self.packed.ids), generator=rng, device=rng.device)[at])

    def kept(self) -> dict[str, Tensor]:
        return {}

    def restore(self, kept: dict[str, Tensor]) -> None:
        pass


class Streamed:
    """Rows of a source too large for memory, read in its own order, from the beginning again when it ends.

    `open` gives the texts after a number of them. What is kept: texts begun, and the rest of the last one.
    """

    def __init__(
        self, open: Callable[[int], Iterable[str]], encode: Callable[[str], list[int]], start: int, length: int
    ):
        self._open, self._encode, self._start, self._length = open, encode, start, length
        self._begin(0, 0, [])

    def rows(self, first: int, count: int) -> Packed:
        if first < self._row:
            self._begin(0, 0, [])
        while self._row < first:
            self._next()
        return stack([self._next() for _ in range(count)], self._length)

    def kept(self) -> dict[str, Tensor]:
        kept = {"stream": [self._row, self._texts], "rest": self._rest}
        return {name: torch.tensor(numbers, dtype=torch.long, device="cpu") for name, numbers in kept.items()}

    def restore(self, kept: dict[str, Tensor]) -> None:
        row, texts = kept["stream"].tolist()
        self._begin(row, texts, kept["rest"].tolist())

    def _begin(self, row: int, texts: int, rest: list[int]) -> None:
        self._row, self._texts, self._rest = row, texts, rest
        self._reading = iter(self._open(texts))

    def _next(self) -> Row:
        """One row: the rest of the last text, then new ones until it is full."""
        row: Row = []
        room, fruitless = self._length, 0
        while room >= 2:
            if not self._rest:
                text = next(self._reading, None)
                if text is None:
                    fruitless += 1
                    if fruitless > 1:
                        raise NPTError("the data set holds no text")
                    self._texts, self._reading = 0, iter(self._open(0))
                    continue
                self._texts += 1
                self._rest = self._encode(text)
                continue
            piece, self._rest = self._rest[: room - 1], self._rest[room - 1 :]
            row.append([self._start, *piece])
            room -= len(piece) + 1
        self._row += 1
        return row


def from_texts(texts: Iterable[Sequence[int]], start: int, length: int, seed: int) -> Shuffled:
    """Texts in memory, each a list of tokens, as rows. Raises NPTError if they hold nothing."""
    rows = list(pack(texts, start, length))
    if not rows:
        raise NPTError("the data hold no text to train on")
    return Shuffled(stack(rows, length), seed)


def from_dataset(name: str) -> Callable[[int], Iterator[str]]:
    """The texts of a data set after a number of its entries, streamed. `name` is a Hugging Face id, or a folder of
    files that `datasets` reads (parquet, jsonl, csv, text). Raises NPTError if it cannot be read, now or later."""
    need_extra("eval", "datasets", reason=f"there is no file {name!r}; to read it as a dataset")
    import datasets

    try:
        found = datasets.load_dataset(name, split="train", streaming=True)
    except Exception as e:  # the library has no common error
        raise NPTError(f"{name!r} is neither a file nor a data set that can be read: {_one_line(e)}") from None

    def following(count: int) -> Iterator[str]:
        entries = iter(found.skip(count))
        while True:
            try:
                entry = next(entries, None)
            except Exception as e:
                raise NPTError(f"the data set {name!r} cannot be read: {_one_line(e)}") from None
            if entry is None:
                return
            if not isinstance(text := entry.get("text", 0), str | None):
                raise NPTError(f"the data set {name!r} has no column text with text in it; it has {', '.join(entry)}")
            yield text or ""

    return following


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
