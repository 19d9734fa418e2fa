"""The one exception that a user is meant to read, the exit status with which a command tells it,
interruptions, and messages without API keys and without what an address may hold of a secret."""

import _thread
import contextlib
import dataclasses
import io
import logging
import os
import re
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

MARK = "[key]"  # stands in place of a key
SHORT = 8  # characters; a shorter key is taken out only where it stands as a word of its own
SHORTEST = 4  # characters; shorter ones are part of ordinary words

_USER = re.compile(r"(?<=://)[^\s'\"<>]*@")
# Punctuation behind an address belongs to the sentence.
_QUERY = re.compile(
    r"(?i)(\b[a-z][a-z0-9+.-]*://[^\s'\"<>?#]*)[?#][^\s'\"<>]*?(?=[:.,;!)\]]*(?:[\s'\"<>]|$))"
)

# All but tab and line feed of C0 and C1; marks of direction and of invisible order.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

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

    0: done. 1: interrupted by Ctrl-C or a scheduler's SIGTERM (`interruptible`), told in one sentence, or
    failed, told by a traceback. 2: a user's mistake or a full disk, told in one sentence. All of it goes to
    standard error, without API keys and passwords. 141, without a word: the reader of the output has closed
    it, as `head` does; a shell knows this status. A terminal that lacks a character gets a replacement.
    """
    status = Status()
    replace_unprintable()
    with interruptible(), _scrubbed_logs():
        try:
            yield status
            sys.stdout.flush()
            stop_if_asked()
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


class _Interruption:
    """State of the wish that this process ends.

    The first signal only notes the wish, since an exception out of a signal handler may be lost: it is when
    Python is collecting garbage, in JAX's own part of that. Loops look at the note (`stop_if_asked`). Where
    none does, because the process waits, a thread raises KeyboardInterrupt in the main thread, again and
    again, but not into the cleaning up after the last one. Where that too is of no use, because the main
    thread is compiling, the thread saves what is finished and ends the process.
    """

    def __init__(self):
        self.since: float | None = None  # when the first signal came
        self.handled = False  # the first signal was seen by the main thread, which may compute meanwhile
        self.raising = False  # the next signal is the thread's own
        self.over = threading.Event()
        self.pipe = os.pipe()
        os.set_blocking(self.pipe[1], False)

    def on_signal(self, *_: object) -> None:
        now = time.monotonic()
        self.since = self.since or now
        if self.raising:
            self.raising, self.handled = False, True
            if not _is_unwinding():
                raise KeyboardInterrupt
        elif not self.handled:
            self.handled = True
        elif now - self.since > TWICE_SECONDS:
            _end_at_once()

    def watch(self) -> None:
        """Waits for the first signal, whose number Python writes into the pipe when it comes."""
        main, number = threading.main_thread().ident, os.read(self.pipe[0], 1)
        if main is None or not number:
            return
        self.since = since = self.since or time.monotonic()
        while not self.over.wait(1.0):
            waited = time.monotonic() - since
            if waited > END_SECONDS:
                _end_at_once()
            if waited > RAISE_SECONDS:
                self.raising = True
                signal.pthread_kill(main, number[0])  # unlike _thread.interrupt_main, it ends a system call


RAISE_SECONDS = 1.9  # after a signal, in which loops may come to an end by themselves
END_SECONDS = 9.0  # after which the process is ended, whatever it does
SAVE_SECONDS = 2.0  # for what is not on disk yet; the main thread may hold its lock
TWICE_SECONDS = 1.0  # in which a second signal is the first one again: `timeout` sends one to its group too
INTERRUPTED = "interrupted; the same command resumes"

_interruption: _Interruption | None = None  # that of the innermost `interruptible`
_unsaved: set[Callable[[], object]] = set()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Has Ctrl-C and SIGTERM raise KeyboardInterrupt within the block, at the next `stop_if_asked` or after
    two seconds.

    A second signal ends the process at once, and ten seconds after the first one it ends in any case; the
    work of `saved_at_end` is done before. A signal that is ignored, as Ctrl-C in the background, stays so.
    """
    global _interruption
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return
    outer = _interruption
    mine = _interruption = _Interruption()
    before = {
        number: signal.signal(number, mine.on_signal)
        for number in (signal.SIGTERM, signal.SIGINT)
        if signal.getsignal(number) != signal.SIG_IGN
    }
    awake = signal.set_wakeup_fd(mine.pipe[1], warn_on_full_buffer=False)
    tell = sys.unraisablehook

    def unraisable(dropped: Any) -> None:  # by a garbage collection or a destructor; it comes again
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            tell(dropped)

    sys.unraisablehook = unraisable
    threading.Thread(target=mine.watch, daemon=True).start()
    try:
        yield
    finally:
        mine.over.set()
        sys.unraisablehook = tell
        signal.set_wakeup_fd(awake)
        os.close(mine.pipe[1])  # which ends the thread
        _interruption = outer
        for number, handler in before.items():
            signal.signal(number, handler)


def interruption_asked() -> bool:
    """Returns True where a signal has asked this process to end."""
    return _interruption is not None and _interruption.since is not None


def stop_if_asked() -> None:
    """Raises KeyboardInterrupt where a signal has asked this process to end; for loops, between two pieces of
    work. Does nothing in other threads than the main one."""
    if interruption_asked() and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


def interrupt_main() -> None:
    """Raises KeyboardInterrupt in the main thread from another one, as soon as it runs Python."""
    if _interruption is None:
        _thread.interrupt_main()
        return
    _interruption.since = _interruption.since or time.monotonic()
    _interruption.raising = True
    _thread.interrupt_main(signal.SIGTERM)  # a process in the background may ignore Ctrl-C


@contextlib.contextmanager
def saved_at_end(save: Callable[[], object]) -> Iterator[None]:
    """Has `save` called, from another thread, before a process that does not react to a signal is ended."""
    _unsaved.add(save)
    try:
        yield
    finally:
        _unsaved.discard(save)


def _is_unwinding() -> bool:
    error = sys.exception()
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _end_at_once() -> None:
    def save_all() -> None:
        for save in list(_unsaved):
            with contextlib.suppress(Exception):
                save()

    saving = threading.Thread(target=save_all, daemon=True)
    saving.start()
    saving.join(SAVE_SECONDS)
    with contextlib.suppress(OSError):
        os.write(2, f"{INTERRUPTED}\n".encode())  # a stream may be locked by the main thread
    os._exit(1)


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


def told(text: str) -> str:
    """Returns the text as a terminal may get it: without secrets, its control characters as text."""
    return visible(scrub(text))


def visible(text: str) -> str:
    """Returns the text with escapes in place of characters that a terminal obeys, or that turn its reading.

    A manifest's row could otherwise clear the screen, or show another name than it has.
    """
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def shown_address(written: str) -> str:
    """Returns an address as messages show it, also one that is written wrongly."""
    scheme, mark, rest = written.rpartition("://")
    return scrub(scheme + mark + re.split(r"[?#]", rest.rpartition("@")[2])[0])
