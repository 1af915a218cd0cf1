"""The one exception that users are meant to see."""


class NPTError(Exception):
    """Bad input or an unmet precondition. The message is one line: the cause, and the way out.

    The command line prints it without a traceback and exits with 2.
    """
