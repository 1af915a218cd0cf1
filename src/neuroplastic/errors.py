"""The exceptions that users are meant to see."""


class NPTError(Exception):
    """Bad input or an unmet precondition. The message is one line: the cause, and the way out.

    The command line prints it without a traceback and exits with 2.
    """


class CheckFailed(Exception):
    """A check that the program made of its own work did not hold; what it had done so far was taken back.

    The command line prints it without a traceback and exits with 1.
    """
