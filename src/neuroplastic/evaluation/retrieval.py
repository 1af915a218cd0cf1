"""Statements looked up by a question: a BM25 index of all of them, as a user would have it instead of edits."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import NPTError
from ..extras import need_extra
from .strict import normalise


class Index:
    """Made once of all statements. BM25 is that of the library bm25s, over the words that `normalise` leaves."""

    def __init__(self, statements: Sequence[str]):
        """Raises NPTError if there is no statement, or the library is not installed."""
        if not statements:
            raise NPTError("there is no statement to look up")
        need_extra("eval", "bm25s", reason="retrieval")
        import bm25s

        self.statements = [s for s in dict.fromkeys(statements) if _words(s)]
        if not self.statements:
            raise NPTError("no statement has a word to look up")
        self._bm25 = bm25s.BM25()
        self._bm25.index([_words(s) for s in self.statements], show_progress=False)

    def best(self, question: str) -> str | None:
        """The statement that matches a question best; None if it has no word in common with any."""
        words = _words(question)
        if not words:
            return None
        found = self._bm25.retrieve([words], k=1, show_progress=False)
        if not float(found.scores[0, 0]) > 0:
            return None
        return self.statements[int(found.documents[0, 0])]


def _words(text: str) -> list[str]:
    return normalise(text).split()
