"""The identity of a model folder: what its files hold, under whatever path they lie.

Files that describe the model (configs, tokenizer, chat template) and small weights are read whole. Of large
weights the header, the size and some bytes of every tensor are, which takes less than a second for 16 GB;
`whole` reads all of them.
"""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rrs_jax.files import content_hash, file_digest, read_json
from rrs_jax.weights.safetensors_io import read_header, shard_files

DESCRIBING = ("*.json", "*.txt", "*.jinja", "*.tiktoken")
READ_WHOLE = 2**26  # bytes of weights up to which all of a file are read
SAMPLE = 4096  # bytes at the beginning, in the middle and at the end of each tensor
READERS = 4

Identity = dict[str, dict[str, object]]


def folder_identity(folder: Path, whole: bool = False) -> Identity:
    """Returns by file name: `digest`, and for a file of which samples were read `modified`, its time in
    nanoseconds; with `whole` also `whole`, the digest of all bytes.

    Raises UserError where the folder holds no weights or a file cannot be read.
    """
    described = sorted({file for pattern in DESCRIBING for file in folder.glob(pattern) if file.is_file()})
    found: Identity = {file.name: {"digest": _of_description(file)} for file in described}
    with ThreadPoolExecutor(READERS) as pool:
        shards = shard_files(folder)
        of_shards = pool.map(_of_weights, shards, itertools.repeat(whole))
        found |= {file.name: identity for file, identity in zip(shards, of_shards, strict=True)}
    return found


def identity_digest(identity: Identity) -> str:
    """Returns one digest of all files' digests; times do not count."""
    return content_hash({name: file["digest"] for name, file in identity.items()})


def changed_files(before: Identity, now: Identity) -> list[str]:
    """Returns the names of the files that are not what they were, ascending."""
    names = sorted(before.keys() | now.keys())
    return [name for name in names if not _same(before.get(name), now.get(name))]


def written_since(before: Identity, now: Identity) -> list[str]:
    """Returns the names of large files that were written in between, though what was read is the same."""
    return [
        name
        for name, file in now.items()
        if name in before
        and before[name].get("modified") != file.get("modified")
        and not (file.get("whole") and before[name].get("whole"))
    ]


def _same(before: dict | None, now: dict | None) -> bool:
    if before is None or now is None or before["digest"] != now["digest"]:
        return False
    return None in (before.get("whole"), now.get("whole")) or before["whole"] == now["whole"]


def _of_description(file: Path) -> str:
    """Returns a file's digest; that of config.json leaves out the name that the model has elsewhere."""
    if file.name != "config.json":
        return file_digest(file)
    return content_hash({name: value for name, value in read_json(file).items() if name != "_name_or_path"})


def _of_weights(file: Path, whole: bool) -> dict[str, object]:
    stat = file.stat()
    if stat.st_size <= READ_WHOLE:
        return {"digest": file_digest(file)}
    found = {"digest": file_digest(file, _places(file)), "modified": stat.st_mtime_ns}
    return found | ({"whole": file_digest(file)} if whole else {})


def _places(file: Path) -> Iterator[tuple[int, int]]:
    """Yields the header's bytes and each tensor's samples as (start, length), ascending."""
    entries = sorted(read_header(file)[0].values(), key=lambda entry: entry.start)
    yield 0, entries[0].start if entries else READ_WHOLE
    for entry in entries:
        size = entry.end - entry.start
        if size <= 3 * SAMPLE:
            yield entry.start, size
        else:
            yield from ((entry.start + at, SAMPLE) for at in (0, (size - SAMPLE) // 2, size - SAMPLE))
