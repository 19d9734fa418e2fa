"""Retries for every remote service: judges, endpoints that answer, rewriters and voices.

Calls run side by side. One that may succeed later is repeated after a growing pause, and where the service
asks for a pause all calls keep it.
"""

import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import TypeVar

from rrs_jax.errors import UserError

Item, Result = TypeVar("Item"), TypeVar("Result")

UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


class Busy(Exception):
    """A try failed and the same call may succeed later.

    Attributes:
      seconds: how long the service asks to wait; None where it does not say.
      everyone: other calls would fail as well until then.
    """

    def __init__(self, reason: str, seconds: float | None = None, everyone: bool = False):
        super().__init__(reason)
        self.seconds, self.everyone = seconds, everyone


class Refused(Exception):
    """A call will never succeed; others may. `reason` is what the service said."""

    def __init__(self, message: str, reason: str | None = None):
        super().__init__(message)
        self.reason = reason or message


class GaveUp(Refused):
    """All tries of a call are used up; `reason` is that of the last one."""


class Stopped(Refused):
    """The work ended while this call waited for its next try."""


class ServiceDown(UserError):
    """So many calls in a row failed that the service counts as down; `reason` is that of the last one."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


class Service:
    """Repeats and paces the calls to one service, whose `name` stands in messages.

    A call has `tries` tries and waits between them, first about `first_wait` seconds, then twice as long each
    time. `each` gives up after `down_after` calls in a row that failed with `down_by`.
    """

    longest_wait = 60.0  # seconds

    def __init__(
        self,
        name: str,
        *,
        concurrency: int = 8,
        tries: int = 6,
        first_wait: float = 1.0,
        down_after: int = 5,
        down_by: type[Refused] = GaveUp,
    ):
        self.name, self.concurrency, self.tries, self.first_wait = name, concurrency, tries, first_wait
        self.down_after, self.down_by = down_after, down_by
        self._open_again = 0.0  # time.monotonic() before which no call starts
        self._stop = threading.Event()

    def call(self, function: Callable[[], Result]) -> Result:
        """Returns the function's result.

        The function raises Busy to be called again; other exceptions pass through. Raises GaveUp after the
        last try and Stopped where the work ends meanwhile.
        """
        for attempt in range(self.tries):
            self._wait_until(self._open_again)
            try:
                return function()
            except Busy as busy:
                reason = str(busy)
                doubled = self.first_wait * 2**attempt * random.uniform(0.75, 1.25)  # not all again at once
                seconds = min(doubled if busy.seconds is None else busy.seconds, self.longest_wait)
                if busy.everyone:
                    self.pause(seconds)
                if attempt + 1 < self.tries:
                    self._wait_until(time.monotonic() + seconds)
        raise GaveUp(f"{self.name} gave no answer in {self.tries} tries, at last: {reason}", reason)

    def pause(self, seconds: float) -> None:
        """Lets no call start in the next seconds."""
        self._open_again = max(self._open_again, time.monotonic() + min(seconds, self.longest_wait))

    def each(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[Item, Result | Refused]]:
        """Yields every item with its result, or with why it was refused, in the order in which they finish.

        `function` itself keeps what it paid for: on an error or an interruption the calls in flight are
        finished before it passes on. Raises ServiceDown where too many items in a row failed.
        """
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix=self.name)
        waiting, running, failed = iter(items), {}, 0
        try:
            while True:
                while len(running) < self.concurrency and (item := next(waiting, None)) is not None:
                    running[pool.submit(function, item)] = item
                if not running:
                    return
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    item = running.pop(future)
                    try:
                        result = future.result()
                    except Refused as refused:
                        result = refused
                    failed = failed + 1 if isinstance(result, self.down_by) else 0
                    if failed == self.down_after:
                        raise ServiceDown(
                            f"{result}. What was answered is kept; the same command goes on from there.",
                            result.reason,
                        )
                    yield item, result
        finally:
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            self._stop.clear()

    def _wait_until(self, moment: float) -> None:
        if self._stop.wait(max(moment - time.monotonic(), 0.0)):
            raise Stopped(f"{self.name}: stopped")


def seconds_of(text: str | None) -> float | None:
    """Returns the seconds that a header asks for: "2", "1.5", "20ms", "6m0s"; None for anything else.

    A date, which few servers send, is among the rest.
    """
    text = (text or "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not re.fullmatch(r"(\d+(\.\d+)?(ms|h|m|s))+", text):
        return None
    return sum(
        float(number) * UNITS[unit] for number, _, unit in re.findall(r"(\d+(\.\d+)?)(ms|h|m|s)", text)
    )
