"""Safetensors files: whole ones, which carry the sum of their content, and a model's shards as memory maps.

Four things the package (0.8) does not do, hence the header and the memory map here: its NumPy reader copies
every slice into memory before it can go to a device, and knows no float8; it does not say at which byte a
tensor lies, which the merged export needs to copy everything else as it is; it writes tensors that are all
in memory at once, and metadata in no order.
"""

import dataclasses
import functools
import itertools
import json
import math
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, TypeGuard

import ml_dtypes
import numpy as np
import safetensors

from rrs_jax.errors import Damaged, UserError
from rrs_jax.files import SUM, Named, content_hash, parse_json, read_json, reason_of
from rrs_jax.progress import say

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
LONGEST_HEADER = 100_000_000  # bytes, as in the safetensors package
MOST_AXES = 32  # of an array, in NumPy
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """The place of one tensor: file, byte range in it, dtype, shape."""

    file: Path
    start: int
    end: int
    dtype: np.dtype
    shape: tuple[int, ...]

    def array(self) -> np.ndarray:
        """A read-only view of the file; nothing is read until it is used."""
        return np.memmap(self.file, self.dtype, "r", self.start, self.shape) if self.shape else self._scalar()

    def _scalar(self) -> np.ndarray:
        return np.frombuffer(self.raw(), self.dtype).reshape(())

    def raw(self) -> bytes:
        """The tensor's bytes."""
        with self.file.open("rb") as file:
            file.seek(self.start)
            return file.read(self.end - self.start)


def read_header(file: Path, advice: str = "download it again") -> tuple[Named[TensorEntry], dict[str, str]]:
    """The tensors and the metadata of one shard. Raises UserError with the advice where the file is damaged,
    cut short or lacks a tensor."""
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size - 8:
                raise ValueError("its header is longer than the file")
            if length > LONGEST_HEADER:
                raise ValueError(f"its header of {length} bytes is longer than that of any model")
            header = parse_json(stream.read(length).decode())
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("its metadata are no texts")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); {advice}.") from error
    except (struct.error, ValueError) as error:
        raise UserError(f"{file}: is no safetensors file ({error}); {advice}.") from error
    entries, problems = {}, []
    for name, value in header.items():
        if problem := _entry_problem(name, value, size - 8 - length):
            problems.append(problem)
            continue
        start, end = (offset + 8 + length for offset in value["data_offsets"])
        entries[name] = TensorEntry(file, start, end, DTYPES[value["dtype"]], tuple(value["shape"]))
    in_order = sorted(entries.items(), key=lambda item: (item[1].start, item[1].end))
    for (one, before), (other, behind) in itertools.pairwise(in_order):
        if behind.start < before.end:
            problems.append(f"the tensors {one} and {other} lie over one another")
    if problems:
        raise UserError(f"{file}: {some_of(problems)}; {advice}.")
    return Named(entries, file, advice), metadata


def _entry_problem(name: str, value: object, size: int) -> str | None:
    """Says what is wrong with one tensor's entry in a header; None for a sound one. `size`: all data's."""
    if not isinstance(value, dict):
        return f"tensor {name} has no entry"
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"tensor {name} has the offsets {str(offsets)[:60]}, not two places in order"
    if not _are_sizes(shape):
        return f"tensor {name} has the shape {str(shape)[:60]}"
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"tensor {name} has the dtype {str(dtype)[:60]}, which is not supported"
    if offsets[1] > size:
        return f"is cut short, tensor {name} ends at byte {offsets[1]} of {size} bytes of data"
    size = offsets[1] - offsets[0]
    if size != math.prod(shape) * DTYPES[dtype].itemsize:
        return f"tensor {name} has {size} bytes, which its shape {tuple(shape)} in {dtype} does not have"
    return None


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and len(value) <= MOST_AXES
        and all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in value)
    )


def some_of(problems: list[str]) -> str:
    """The first eight of a list of problems, and how many more there are."""
    return "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")


WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def shard_files(folder: Path) -> list[Path]:
    """The folder's weights in transformers' order: one whole file before the shards that an index names.

    A folder with neither gives all of its files. Tells an index and shards that are left aside. Raises
    UserError where there are none or one is missing.
    """
    whole, index = folder / WHOLE, folder / INDEX
    if whole.is_file():
        if index.is_file():
            _say_once(f"{folder}: {WHOLE} is read, as by transformers; {INDEX} and its shards are left aside")
        return [whole]
    if index.is_file():
        names = shard_names(index)
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise UserError(
                f"{folder}: the shards {', '.join(missing)} are missing; download the folder again."
            )
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{folder}: holds no *.safetensors file; give a Hugging Face model folder in that format."
        )
    return files


def shard_names(index: Path) -> list[str]:
    """Returns the names of the shards that an index lists, sorted.

    Raises UserError where it lists none, or a file outside its folder.
    """
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise UserError(f"{index}: holds no weight_map; download the folder again.")
    names = sorted(set(listed.values()))
    if outside := [
        name for name in names if Path(name).name != name or "\0" in name or not 0 < len(name.encode()) < 256
    ]:
        raise UserError(f"{index}: names {outside[0]!r}, which is no file of its folder; download it again.")
    return names


@functools.cache
def _say_once(sentence: str) -> None:
    say(sentence)


def read_folder(folder: Path) -> dict[str, TensorEntry]:
    """Returns every tensor of all shards by name.

    Of a tensor that two shards of an index hold the last one counts, as in transformers, which is told.
    Raises UserError where no index says which files belong together.
    """
    entries: dict[str, TensorEntry] = {}
    problems = []
    for file in shard_files(folder):
        try:
            tensors = read_header(file)[0]
        except UserError as error:
            problems.append(str(error))
            continue
        if twice := sorted(entries.keys() & tensors.keys()):
            both = f"{some_of(twice)} stand in {entries[twice[0]].file.name} and in {file.name}"
            if (folder / INDEX).is_file():
                _say_once(f"{folder}: {both}; the last file is read, as by transformers")
            else:
                problems.append(f"{folder}: {both}; delete the files that are not of this model.")
        entries |= tensors
    if problems:
        raise UserError(" ".join(problems))
    return entries


def write_shard(
    file: Path, tensors: Iterable[tuple[str, np.dtype, tuple[int, ...], object]], metadata: dict
) -> None:
    """Writes one shard, one tensor in memory at a time.

    `tensors` yields (name, dtype, shape, make), `make()` giving the tensor's bytes or array when its turn
    comes.
    """
    tensors = list(tensors)
    with file.open("wb") as stream:
        write_header(stream, [tensor[:3] for tensor in tensors], metadata)
        for _, _, _, make in tensors:
            data = make()
            stream.write(data if isinstance(data, bytes) else _bytes(data))
            del data  # before the next one is made


def write_header(
    stream: BinaryIO, tensors: Iterable[tuple[str, np.dtype, tuple[int, ...]]], metadata: dict
) -> int:
    """Writes the header of tensors (name, dtype, shape); returns the size of the file with their data."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, dtype, shape in tensors:
        end = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format wants the data aligned
    stream.write(struct.pack("<Q", len(encoded)))
    stream.write(encoded)
    return 8 + len(encoded) + offset


def save_file(file: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Writes arrays that are in memory already, with their sum among the metadata.

    The same content gives the same bytes, which the package does not: it writes metadata in no order.

    Raises UserError where the file cannot be written, for example on a full disk.
    """
    metadata = (metadata or {}) | {SUM: _sum(tensors, metadata or {})}
    # Wide numbers first, so that all are aligned.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    try:
        write_shard(
            file,
            [(name, array.dtype, array.shape, lambda array=array: array) for name, array in ordered],
            dict(sorted(metadata.items())),
        )
    except OSError as error:
        raise UserError(
            f"{file}: cannot be written ({error.strerror}); free space or check its rights."
        ) from error


def load_file(file: Path, advice: str = "delete it and make it again") -> tuple[Named, Named]:
    """Returns every array of a file, in memory, and the file's metadata without the sum.

    Raises UserError where the file is missing, or later where a name is asked for that it lacks, and Damaged
    where it is cut or holds other numbers than its sum says; `advice` is what to do then.
    """
    try:
        with safetensors.safe_open(file, framework="np") as opened:
            tensors, metadata = opened.get_tensors(), opened.metadata() or {}
    except FileNotFoundError as error:  # safetensors' own, whose message names the file once more
        raise UserError(f"{file}: cannot be read (No such file or directory).") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({reason_of(error)}).") from error
    except safetensors.SafetensorError as error:
        raise Damaged(f"{file}: is no safetensors file ({error}); {advice}.") from error
    known = metadata.pop(SUM, None)
    if known not in (None, _sum(tensors, metadata)):
        raise Damaged(f"{file}: is damaged, its numbers are not those that were written; {advice}.")
    return Named(tensors, file, advice), Named(metadata, file, advice)


def _sum(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> str:
    """Returns the hash of arrays and metadata."""
    parts = [
        part
        for name, array in sorted(tensors.items())
        for part in ([name, str(array.dtype), list(array.shape)], _bytes(array))
    ]
    return content_hash(metadata, *parts)


def _bytes(array: np.ndarray) -> memoryview:
    """Returns an array's bytes in its own order, copied only where they do not lie in one piece."""
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
