"""The one exception that a user is meant to read, and the exit status with which a command tells it."""

import contextlib
import dataclasses
import signal
import sys
import threading
import traceback
from collections.abc import Iterator


class UserError(Exception):
    """A mistake in the input. The message names the file or field, what is wrong, and what to do.

    A command prints the message as one sentence and ends with exit status 2 (`exit_status`).
    """


class SpeechFault(UserError):
    """One text that a voice cannot speak; others it can."""


@dataclasses.dataclass
class Status:
    """A command's exit status, for `sys.exit`."""

    code: int = 0


@contextlib.contextmanager
def exit_status() -> Iterator[Status]:
    """Runs a command's work and yields its exit status, which is set when the work has ended.

    0: done. 1: interrupted by Ctrl-C or a scheduler's SIGTERM, told in one sentence, or failed, told by a
    traceback. 2: a user's mistake or a full disk, told in one sentence. All of it goes to standard error.
    """
    status = Status()
    with _termination_as_interruption():
        try:
            yield status
        except UserError as error:
            status.code = _tell(str(error), 2)
        except KeyboardInterrupt:
            status.code = _tell("interrupted; the same command resumes", 1)
        except Exception as error:
            if "No space left on device" in str(error):
                where = getattr(error, "filename", None) or "the run folder's disk"
                status.code = _tell(f"{where}: no space is left; free some, and the same command resumes.", 2)
            else:
                traceback.print_exc()
                status.code = 1


@contextlib.contextmanager
def _termination_as_interruption() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(sentence: str, code: int) -> int:
    print(sentence, file=sys.stderr, flush=True)
    return code
