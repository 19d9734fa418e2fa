"""Host and device at work at the same time."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def one_behind(items: Iterable[Item]) -> Iterator[Item]:
    """Yields every item after the next one has been made: where making one starts the device, the host reads
    a result while the device computes the next."""
    held: list[Item] = []
    for item in items:
        held.append(item)
        if len(held) > 1:
            yield held.pop(0)
    yield from held
