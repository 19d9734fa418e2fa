"""The one exception that a user is meant to read, and how a command ends with it."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator


class UserError(Exception):
    """A mistake in the input. The message names the file or field, what is wrong, and what to do.

    `launch.py` prints the message as one sentence and ends with exit status 2.
    """


class SpeechFault(UserError):
    """One text that a voice cannot speak; others it can."""


@dataclasses.dataclass
class Status:
    """A command's exit status."""

    code: int = 0


@contextlib.contextmanager
def exit_status() -> Iterator[Status]:
    """Around a command's work: for a user's mistake the status becomes 2 and the sentence goes to standard
    error."""
    status = Status()
    try:
        yield status
    except UserError as error:
        print(error, file=sys.stderr)
        status.code = 2
