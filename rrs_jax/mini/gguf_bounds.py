"""Counts, lengths and places that a GGUF file states, against the bytes that it has.

The package gguf believes them: it loops over a count of 2^60, and reads beyond the end of the file.
Layout, little-endian: "GGUF", version (uint32), number of tensors and of fields (uint64 each); a field each:
name (string), kind (uint32), value; a tensor each: name, number of axes (uint32), sizes (uint64 each), type
(uint32), place behind the header (uint64). A string is its length (uint64) and its bytes; an array its kind
(uint32), length (uint64) and values.
"""

import math
import mmap
import struct
from pathlib import Path

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes by kind
STRING, ARRAY, UINT32 = 8, 9, 4
LEAST_FIELD, LEAST_TENSOR = 8 + 4 + 1, 8 + 4 + 4 + 8  # bytes
MOST_AXES = 4
ALIGNMENT = 32


class _Walk:
    """Steps through a file; raises ValueError where it would leave it."""

    def __init__(self, data: mmap.mmap):
        self.data, self.position = data, 0

    def skip(self, size: int) -> int:
        """Returns the place before the step."""
        if size > len(self.data) - self.position:
            raise ValueError(f"it is cut short at byte {self.position}")
        self.position += size
        return self.position - size

    def number(self, code: str = "Q") -> int:
        return struct.unpack_from("<" + code, self.data, self.skip(struct.calcsize(code)))[0]

    def count(self, what: str, least: int) -> int:
        """Reads how many things of at least `least` bytes follow."""
        number = self.number()
        if number * least > len(self.data) - self.position:
            raise ValueError(f"it states {number} {what}, for which it is too short")
        return number

    def string(self) -> bytes:
        size = self.number()
        start = self.skip(size)
        return self.data[start : start + size]

    def value(self, kind: int) -> int | None:
        """Steps over a value; returns it where it is a uint32."""
        if kind == UINT32:
            return self.number("I")
        if kind == STRING:
            self.string()
        elif kind in SIZES:
            self.skip(SIZES[kind])
        elif kind == ARRAY:
            inner = self.number("I")
            if inner == STRING:
                for _ in range(self.count("texts", 8)):
                    self.skip(self.number())
            elif inner in SIZES:
                self.skip(self.count("values", SIZES[inner]) * SIZES[inner])
            else:
                raise ValueError(f"a list of kind {inner} is not known")
        else:
            raise ValueError(f"a field of kind {kind} is not known")
        return None


def check_bounds(path: Path, block_sizes: dict[int, tuple[int, int]]) -> None:
    """Raises ValueError where the file states more than it holds, and OSError where it cannot be read.

    block_sizes: values and bytes of a block, by a tensor's type.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        walk = _Walk(data)
        if data[:4] != b"GGUF":
            raise ValueError("its first bytes are not GGUF")
        walk.skip(4)
        if (version := walk.number("I")) not in (2, 3):
            raise ValueError(f"its version is {version}, not 2 or 3")
        tensors, fields = walk.number(), walk.number()
        if tensors * LEAST_TENSOR + fields * LEAST_FIELD > len(data):
            raise ValueError(f"it states {tensors} tensors and {fields} fields, for which it is too short")
        alignment = ALIGNMENT
        for _ in range(fields):
            name = walk.string()
            value = walk.value(walk.number("I"))
            if name == b"general.alignment":
                alignment = value or 0
        if not alignment or alignment & (alignment - 1):
            raise ValueError(f"its alignment {alignment} is no power of two")
        placed = [_tensor(walk, block_sizes) for _ in range(tensors)]
        start = -(-walk.position // alignment) * alignment
        for name, place, size in placed:
            if start + place + size > len(data):
                raise ValueError(f"it is cut short, the tensor {name} ends at byte {start + place + size}")


def _tensor(walk: _Walk, block_sizes: dict[int, tuple[int, int]]) -> tuple[str, int, int]:
    """Name, place behind the header, and number of bytes of the next tensor."""
    name = walk.string().decode()
    axes = walk.number("I")
    if not 0 < axes <= MOST_AXES:
        raise ValueError(f"the tensor {name[:80]} has {axes} axes")
    shape = [walk.number() for _ in range(axes)]
    kind, place = walk.number("I"), walk.number()
    if kind not in block_sizes:
        raise ValueError(f"the tensor {name[:80]} has the type {kind}, which is not known")
    values, size = block_sizes[kind]
    if not all(shape) or shape[0] % values:
        raise ValueError(f"the tensor {name[:80]} has the shape {shape}, which its type cannot have")
    return name, place, math.prod(shape) // values * size
