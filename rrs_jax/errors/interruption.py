"""Signals that ask a process to end."""

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

RAISE_SECONDS = 1.9  # after a signal, in which loops may come to an end by themselves
END_SECONDS = 9.0  # after which the process is ended, whatever it does
SAVE_SECONDS = 2.0  # for what is not on disk yet; the main thread may hold its lock
TWICE_SECONDS = 1.0  # in which a second signal is the first one again: `timeout` sends one to its group too
INTERRUPTED = "interrupted; the same command resumes"


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
