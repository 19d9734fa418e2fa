"""The one exception that a user is meant to read, and its kinds."""


class UserError(Exception):
    """A mistake in the input. The message names the file or field, what is wrong, and what to do.

    A command prints the message as one sentence and ends with exit status 2 (`exit_status`).
    """


class Damaged(UserError):
    """A file of the program's own that does not hold what was written."""


class SpeechFault(UserError):
    """One text that a voice cannot speak; others it can."""
