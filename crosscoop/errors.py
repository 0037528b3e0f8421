"""The one exception that a user's input can cause."""


class CrosscoopError(ValueError):
    """Something the user gave does not fit; the message says what was got, what was expected, and the remedy.

    The command line prints it as one message without a stack trace and exits with code 2.
    """
