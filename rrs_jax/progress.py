"""Progress of long work: a bar on a terminal, otherwise one line every ten seconds, and messages meanwhile.

Only the first of a run's processes talks.
"""

import sys
import time

from tqdm import tqdm

from rrs_jax.distributed import processes
from rrs_jax.scrub import scrub


class Progress:
    """Counts finished items and shows rate and time left on standard error.

    with Progress(len(rows), "speaking", unit="clips") as progress:
        for row in rows: ...; progress.update(1, voice=row["voice"])
    """

    LINE_EVERY_SECONDS = 10.0

    def __init__(self, total: int, what: str, unit: str = "it"):
        self.total, self.what, self.unit = total, what, unit
        self.done, self.start = 0, time.monotonic()
        self.last_line = self.start
        bar = processes.is_first() and sys.stderr.isatty()
        self.bar = tqdm(total=total, desc=what, unit=unit, dynamic_ncols=True) if bar else None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.done:
            self._line()

    def update(self, n: int = 1, **fields) -> None:
        self.done += n
        if self.bar is not None:
            if fields:
                self.bar.set_postfix(fields, refresh=False)
            self.bar.update(n)
        elif time.monotonic() - self.last_line > self.LINE_EVERY_SECONDS:
            self._line(**fields)

    def _line(self, **fields) -> None:
        now = time.monotonic()
        self.last_line = now
        if not processes.is_first():
            return
        rate = self.done / max(now - self.start, 1e-9)
        left = (self.total - self.done) / rate if rate else float("inf")
        extra = "".join(f", {name} {value}" for name, value in fields.items())
        print(
            f"{self.what}: {self.done}/{self.total} {self.unit}, {rate:.2f} {self.unit}/s, {left:.0f} s"
            f" left{extra}",
            file=sys.stderr,
            flush=True,
        )


def say(text: str) -> None:
    """Tells the user something that is no result, in a line on standard error."""
    if processes.is_first():
        print(scrub(text), file=sys.stderr, flush=True)
