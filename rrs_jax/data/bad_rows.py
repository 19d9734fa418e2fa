"""Rows of a file that cannot be used: an error that lists them all, or left out, counted and listed."""

import dataclasses
from pathlib import Path

from rrs_jax.errors import UserError
from rrs_jax.progress import say

MAX_LISTED = 50


@dataclasses.dataclass(frozen=True)
class BadRow:
    """A fault of a row that a file's reader cannot give."""

    reason: str


class BadRows:
    """Collects what is wrong with the rows of a file.

    Args:
      source: the file.
      skip: leaves the rows out in place of an error (`data.bad_rows`).
    """

    def __init__(self, source: str | Path, skip: bool = False):
        self.source, self.skip = source, skip
        self.faults: list[str] = []
        self.places: set[str] = set()

    def add(self, place: str, *reasons: str) -> bool:
        """Notes what is wrong with the row at `place` ("line 3"); returns True where there is something."""
        if reasons:
            self.faults += [f"{place}: {reason}" for reason in reasons]
            self.places.add(place)
        return bool(reasons)

    def end(self, rows: int) -> None:
        """Raises UserError for the faults among so many rows, or tells which rows are left out."""
        if not self.faults:
            return
        if len(self.faults) == 1 and not self.skip:
            raise UserError(f"{self.source}, {self.faults[0].rstrip('.')}.")
        more = [f"and {len(self.faults) - MAX_LISTED} more"] if len(self.faults) > MAX_LISTED else []
        listed = "\n".join(f"  {fault}" for fault in self.faults[:MAX_LISTED] + more)
        if not self.skip:
            raise UserError(f"{self.source}: {len(self.faults)} faults to mend:\n{listed}")
        say(f"{self.source}: {len(self.places)} of {rows} rows are left out (data.bad_rows=skip):\n{listed}")
