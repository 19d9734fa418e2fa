"""Calls to a paid service: several side by side, repeated where that may help, one pause for all where it
asks for one."""

import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import TypeVar

from rrs_jax.errors import UserError

Item, Result = TypeVar("Item"), TypeVar("Result")

GIVEN_UP_IN_A_ROW = 5  # items after which the service counts as down
UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


class Busy(Exception):
    """The same call may succeed later. `seconds`: how long the service asks to wait, None where it does not
    say; `everyone`: until then other calls would fail as well."""

    def __init__(self, reason: str, seconds: float | None = None, everyone: bool = False):
        super().__init__(reason)
        self.seconds, self.everyone = seconds, everyone


class Refused(Exception):
    """This call will never succeed, others may."""


class GaveUp(Refused):
    """All tries of a call were used up."""


class Stopped(Refused):
    """The work ended while this call waited for its next try."""


class Service:
    """`name` stands in messages. A call has `tries` tries, between them waits that double from `first_wait`
    seconds."""

    def __init__(
        self,
        name: str,
        *,
        concurrency: int = 8,
        tries: int = 6,
        first_wait: float = 1.0,
        longest_wait: float = 60.0,
    ):
        self.name, self.concurrency, self.tries = name, concurrency, tries
        self.first_wait, self.longest_wait = first_wait, longest_wait
        self._open_again = 0.0  # time.monotonic() before which nobody calls
        self._stop = threading.Event()

    def call(self, function: Callable[[], Result]) -> Result:
        """The function's result. It raises Busy to be called again; other exceptions go through. Raises
        Refused."""
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
        raise GaveUp(f"{self.name} gave no answer in {self.tries} tries, at last: {reason}")

    def pause(self, seconds: float) -> None:
        """No call starts in the next seconds."""
        self._open_again = max(self._open_again, time.monotonic() + min(seconds, self.longest_wait))

    def each(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[Item, Result | Refused]]:
        """Every item with its result, or with why it was refused, as they come.

        `function` itself keeps what it paid for: on an error or an interruption the calls under way are
        finished, then it goes on. Raises UserError where several items in a row were given up.
        """
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix=self.name)
        waiting, running, given_up = iter(items), {}, 0
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
                    given_up = given_up + 1 if isinstance(result, GaveUp) else 0
                    if given_up == GIVEN_UP_IN_A_ROW:
                        raise UserError(
                            f"{result}. What was answered is kept; the same command goes on from there."
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
    """The seconds that a header asks for: "2", "1.5", "20ms", "6m0s"; None for anything else, dates among
    them."""
    text = (text or "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not re.fullmatch(r"(\d+(\.\d+)?(ms|h|m|s))+", text):
        return None
    return sum(
        float(number) * UNITS[unit] for number, _, unit in re.findall(r"(\d+(\.\d+)?)(ms|h|m|s)", text)
    )
