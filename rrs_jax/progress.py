"""Progress of long work: a bar on a terminal, otherwise one line every ten seconds, and messages meanwhile.

Only the first of a run's processes talks.
"""

import contextlib
import contextvars
import sys
import time
from collections.abc import Iterator

from tqdm import tqdm

from rrs_jax.distributed import processes
from rrs_jax.errors import stop_if_asked, told, visible

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} {unit}{postfix}"


class Progress:
    """Counts finished items and shows pace and time left on standard error.

    with Progress(len(rows), "speaking", unit="clips") as progress:
        for row in rows: ...; progress.update(1, voice=row["voice"])
    """

    LINE_EVERY_SECONDS = 10.0

    def __init__(self, total: int, what: str, unit: str = "items"):
        self.total, self.what, self.unit = total, what, unit
        self.done, self.start = 0, time.monotonic()
        self.last_line, self.pace = self.start, Pace()
        bar = processes.is_first() and sys.stderr.isatty()
        self.bar = (
            tqdm(total=total, desc=what, unit=unit, dynamic_ncols=True, bar_format=BAR) if bar else None
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.done:
            self._last_line()

    def update(self, n: int = 1, **fields) -> None:
        """Counts `n` more items as finished; `fields` are shown beside them.

        Raises KeyboardInterrupt where a signal has asked the process to end.
        """
        self.done += n
        now = time.monotonic()
        self.pace.add(n, now)
        if self.bar is not None:
            self.bar.set_postfix_str(", ".join([*self._estimates(), *_shown(fields)]), refresh=False)
            self.bar.update(n)
        elif now - self.last_line > self.LINE_EVERY_SECONDS and self.done < self.total:
            self.last_line = now
            counted = f"{self.what}: {self.done} of {self.total} {self.unit}"
            self._print(", ".join([counted, *self._estimates(), *_shown(fields)]))
        stop_if_asked()

    def _estimates(self) -> list[str]:
        rate = self.pace.rate()
        if not rate:
            return []
        left = (self.total - self.done) / rate
        return [f"{rate:.3g} a second", f"about {duration(left)} left"]

    def _last_line(self) -> None:
        seconds = duration(time.monotonic() - self.start)
        counted = f"{self.done}" if self.done >= self.total else f"stopped at {self.done} of {self.total}"
        self._print(f"{self.what}: {counted} {self.unit} in {seconds}")

    @staticmethod
    def _print(line: str) -> None:
        if processes.is_first():
            print(visible(line), file=sys.stderr, flush=True)


class Pace:
    """Items a second, known when enough of them have been seen.

    The first items wait for compilation, and items come in bursts where a batch of them is computed at once.
    So the clock starts behind the first burst, and one item behind it says nothing: it may be the first of a
    burst, for all of which it has waited.
    """

    BURST_SECONDS = 0.5
    ENOUGH_SECONDS = 4.0
    ENOUGH_ITEMS = 2

    def __init__(self):
        self.begun: float | None = None  # when the first burst ended
        self.last = 0.0
        self.since = 0  # items since then

    def add(self, items: int, now: float) -> None:
        """Counts items that are finished at the time `now`, in seconds."""
        if self.begun is None or (not self.since and now - self.begun < self.BURST_SECONDS):
            self.begun = now
        else:
            self.since += items
        self.last = now

    def rate(self) -> float | None:
        """Returns the items a second; None as long as too few have been seen for an estimate."""
        if self.since < self.ENOUGH_ITEMS or self.last - self.begun < self.ENOUGH_SECONDS:
            return None
        return self.since / (self.last - self.begun)


def duration(seconds: float) -> str:
    """Writes a time for people: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if seconds < 1:
        return "less than 1 s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


_is_silent = contextvars.ContextVar("is_silent", default=False)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Has `say` say nothing, where something is tried that will be done, and told, later."""
    token = _is_silent.set(True)
    try:
        yield
    finally:
        _is_silent.reset(token)


def say(text: str) -> None:
    """Tells the user something that is no result, in a line on standard error."""
    if _is_silent.get():
        return
    if processes.is_first():
        print(told(text), file=sys.stderr, flush=True)


def _shown(fields: dict[str, object]) -> list[str]:
    return [visible(f"{name} {value}") for name, value in fields.items()]
