"""The one exception that a user is meant to read, the exit status with which a command tells it, and messages
without API keys and without what an address may hold of a secret."""

import contextlib
import dataclasses
import io
import os
import re
import select
import signal
import sys
import threading
import traceback
from collections.abc import Iterator

MARK = "[key]"  # stands in place of a key
SHORT = 8  # characters; a shorter key is taken out only where it stands as a word of its own
SHORTEST = 4  # characters; shorter ones are part of ordinary words

_USER = re.compile(r"(?<=://)[^\s'\"<>]*@")
# Punctuation behind an address belongs to the sentence.
_QUERY = re.compile(
    r"(?i)(\b[a-z][a-z0-9+.-]*://[^\s'\"<>?#]*)[?#][^\s'\"<>]*?(?=[:.,;!)\]]*(?:[\s'\"<>]|$))"
)

_keys: set[str] = set()  # that this process has used


class UserError(Exception):
    """A mistake in the input. The message names the file or field, what is wrong, and what to do.

    A command prints the message as one sentence and ends with exit status 2 (`exit_status`).
    """


class Damaged(UserError):
    """A file of the program's own that does not hold what was written."""


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
    traceback. 2: a user's mistake or a full disk, told in one sentence. All of it goes to standard error,
    without API keys and passwords. 141, without a word: the reader of the output has closed it, as `head`
    does; a shell knows this status. A terminal that lacks a character gets a replacement for it.
    """
    status = Status()
    replace_unprintable()
    with _termination_as_interruption():
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
            status.code = _tell("interrupted; the same command resumes", 1)
        except Exception as error:
            if "No space left on device" in str(error):
                where = getattr(error, "filename", None) or "the run folder's disk"
                status.code = _tell(f"{where}: no space is left; free some, and the same command resumes.", 2)
            else:
                tell_traceback()
                status.code = 1


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
    print(scrub(sentence), file=sys.stderr, flush=True)
    return code


def tell_traceback() -> None:
    """Prints the traceback of the exception that is being handled."""
    print(scrub(traceback.format_exc()), file=sys.stderr, end="", flush=True)


def replace_unprintable() -> None:
    """Has both standard streams write a replacement for what their encoding lacks, in place of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


def keep_secret(key: str) -> None:
    """Has `scrub` take this key out of every text from now on."""
    if len(key) >= SHORTEST:
        _keys.add(key)


def scrub(text: str) -> str:
    """Returns the text without keys, and its addresses without user, password, query and fragment.

    An address that holds none of these comes back as it is.
    """
    for key in sorted(_keys, key=len, reverse=True):  # a key may begin with another one
        pattern = re.escape(key)
        text = re.sub(pattern if len(key) >= SHORT else rf"(?<!\w){pattern}(?!\w)", MARK, text)
    return _QUERY.sub(r"\1", _USER.sub("", text))


def shown_address(written: str) -> str:
    """Returns an address as messages show it, also one that is written wrongly."""
    scheme, mark, rest = written.rpartition("://")
    return scrub(scheme + mark + re.split(r"[?#]", rest.rpartition("@")[2])[0])
