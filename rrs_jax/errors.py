"""The one exception that a user is meant to read."""


class UserError(Exception):
    """A mistake in the input. The message names the file or field, what is wrong, and what to do.

    `launch.py` prints the message as one sentence and ends with exit status 2.
    """


class SpeechFault(UserError):
    """One text that a voice cannot speak; others it can."""
