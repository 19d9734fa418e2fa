"""The exit status with which a command tells how its work ended."""

import contextlib
import dataclasses
import io
import logging
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

from rrs_jax.errors.interruption import INTERRUPTED, interruptible
from rrs_jax.errors.kinds import UserError
from rrs_jax.errors.scrubbing import told


@dataclasses.dataclass
class Status:
    """A command's exit status, for `sys.exit`."""

    code: int = 0


@contextlib.contextmanager
def exit_status() -> Iterator[Status]:
    """Runs a command's work and yields its exit status, which is set when the work has ended.

    0: done, also where a signal came so late that no work was left for it to stop. 1: interrupted by Ctrl-C
    or a scheduler's SIGTERM (`interruptible`), told in one sentence, or failed, told by a traceback. 2: a
    user's mistake or a full disk, told in one sentence. All of it goes to standard error, without API keys
    and passwords. 141, without a word: the reader of the output has closed it, as `head` does; a shell knows
    this status. A terminal that lacks a character gets a replacement.
    """
    status = Status()
    replace_unprintable()
    with interruptible(), _scrubbed_logs():
        try:
            yield status
            sys.stdout.flush()
        except BrokenPipeError:
            if _output_is_closed():
                status.code = 128 + signal.SIGPIPE
            else:
                tell_traceback()
                status.code = 1
        except UserError as error:
            status.code = _tell(str(error), 2)
        except KeyboardInterrupt:
            status.code = _tell(INTERRUPTED, 1)
        except Exception as error:
            if "No space left on device" in str(error):
                where = getattr(error, "filename", None) or "the run folder's disk"
                status.code = _tell(f"{where}: no space is left; free some, and the same command resumes.", 2)
            else:
                tell_traceback()
                status.code = 1


@contextlib.contextmanager
def _scrubbed_logs() -> Iterator[None]:
    """Has libraries log without keys and passwords, and threads tell their tracebacks so.

    A library for HTTP logs the whole address of each request where a user asks for more words.
    """

    def scrubbed(*arguments: Any, **named: Any) -> logging.LogRecord:
        record = factory(*arguments, **named)
        with contextlib.suppress(Exception):  # a message that does not fit its arguments is told by logging
            record.msg, record.args = told(record.getMessage()), None
        return record

    def tell(failed: threading.ExceptHookArgs) -> None:
        lines = traceback.format_exception(failed.exc_type, failed.exc_value, failed.exc_traceback)
        print(told("".join(lines)), file=sys.stderr, end="", flush=True)

    factory, hook = logging.getLogRecordFactory(), threading.excepthook
    logging.setLogRecordFactory(scrubbed)
    threading.excepthook = tell
    try:
        yield
    finally:
        logging.setLogRecordFactory(factory)
        threading.excepthook = hook


def _output_is_closed() -> bool:
    """Returns True where nobody reads standard output; what it still holds then goes nowhere, since Python
    would fail on it when it ends."""
    asked = select.poll()
    try:
        asked.register(sys.stdout.fileno(), 0)
    except OSError:  # no file, as in a notebook
        return False
    is_closed = any(state & (select.POLLERR | select.POLLHUP) for _, state in asked.poll(0))
    if is_closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return is_closed


def _tell(sentence: str, code: int) -> int:
    print(told(sentence), file=sys.stderr, flush=True)
    return code


def tell_traceback() -> None:
    """Prints the traceback of the exception that is being handled."""
    print(told(traceback.format_exc()), file=sys.stderr, end="", flush=True)


def replace_unprintable() -> None:
    """Has both standard streams write a replacement for what their encoding lacks, in place of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")
