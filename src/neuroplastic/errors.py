"""The exceptions that users are meant to see."""

from __future__ import annotations

from collections.abc import Sequence


class NPTError(Exception):
    """Bad input or an unmet precondition. The message is one line: the cause, and the way out.

    The command line prints it without a traceback and exits with 2.
    """


class CheckFailed(Exception):
    """A check that the program made of its own work did not hold; what it had done so far was taken back.

    The command line prints it without a traceback and exits with 1.
    """


class NotTeachable(NPTError):
    """Some of the facts of a call cannot be taught in the way that was asked for; nothing was changed."""

    def __init__(self, message: str, facts: Sequence[int]):
        super().__init__(message)
        self.facts = list(facts)
        """their numbers in the call, from 0"""
