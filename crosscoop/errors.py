"""The exception for errors that users can cause."""


class CrosscoopError(ValueError):
    """An error in the user's input; the message states what was found, what was expected, and the remedy.

    The command line prints the message without a stack trace and exits with code 2.
    """
