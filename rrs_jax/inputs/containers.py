"""Promises of the headers of audio files, against what the files hold: cut and joined files."""

import dataclasses

SLACK = 64  # bytes that careless writers state too much, such as the header's own
STREAM = 0x7F000000  # bytes: writers that do not know the length of a stream state this much or more, or 0
RIFF = {b"RIFF": "little", b"RIFX": "big", b"RF64": "little", b"BW64": "little"}
W64 = bytes.fromhex("726966662e91cf11a5d628db04c10000")
FLAC = b"fLaC"


@dataclasses.dataclass(frozen=True)
class Contents:
    """The samples' bytes in a file.

    Attributes:
      start: the first of them.
      promised: their number by the header; None where it does not say.
      joined: another file of the same format follows them.
    """

    start: int
    promised: int | None
    joined: bool = False


def fault_of(data) -> str | None:
    """Returns how a WAV, AIFF, AU or W64 file is cut or joined; None for every other file."""
    contents = contents_of(data)
    if contents is None:
        return None
    held = len(data) - contents.start
    if contents.promised is not None and contents.promised > held + SLACK:
        return f"is cut short: its header promises {contents.promised} bytes of sound, and {held} are there"
    return JOINED if contents.joined else None


JOINED = (
    "is two files joined end to end, of which readers hear the first alone; join their samples, or split it"
)


def contents_of(data) -> Contents | None:
    magic = bytes(data[:4])
    if magic in RIFF and data[8:12] == b"WAVE":
        return _chunks(data, RIFF[magic], b"data", magic in (b"RF64", b"BW64"))
    if magic == b"FORM" and data[8:12] in (b"AIFF", b"AIFC"):
        return _chunks(data, "big", b"SSND", False)
    if magic == b".snd":
        start, size = (int.from_bytes(data[place : place + 4], "big") for place in (4, 8))
        promised = None if size == 0xFFFFFFFF else size
        return Contents(start, promised, promised is not None and _begins(data, start + promised, magic))
    if data[:16] == W64:
        size = int.from_bytes(data[16:24], "little")
        return Contents(0, size, data[size : size + 16] == W64)
    return None


def without_length(data) -> bytes | None:
    """Returns a WAV file whose header states 0 bytes of sound, as a stream's does, with the number there is.

    None for every other file.
    """
    contents = contents_of(data)
    if contents is None or bytes(data[:4]) not in RIFF:
        return None
    order = RIFF[bytes(data[:4])]
    stated = int.from_bytes(data[contents.start - 4 : contents.start], order)
    held = len(data) - contents.start
    if stated or not held or _is_chunk(data, contents.start, order):
        return None
    size = min(held, 0xFFFFFFFF).to_bytes(4, order)
    return bytes(data[: contents.start - 4]) + size + bytes(data[contents.start :])


def _chunks(data, order: str, wanted: bytes, is_64_bit: bool) -> Contents | None:
    position, size_64 = 12, None
    while position + 8 <= len(data):
        name, size = (
            bytes(data[position : position + 4]),
            int.from_bytes(data[position + 4 : position + 8], order),
        )
        start = position + 8
        if name == b"ds64":
            size_64 = int.from_bytes(data[start + 8 : start + 16], order)
        if name == wanted:
            if is_64_bit and size == 0xFFFFFFFF and size_64 is not None:
                size = size_64
            elif not size or size >= STREAM:
                return Contents(start, None)
            return Contents(start, size, _begins(data, start + size + size % 2, bytes(data[:4])))
        position = start + size + size % 2
    return None


def _begins(data, position: int, magic: bytes) -> bool:
    """True where a file of the same kind begins at this byte, or further chunks end in one."""
    order = RIFF.get(magic, "big")
    while position + 12 <= len(data):
        if data[position : position + 4] == magic:
            return magic == b".snd" or data[position + 8 : position + 12] == data[8:12]
        if magic == b".snd" or not _is_chunk(data, position, order):
            return False
        size = int.from_bytes(data[position + 4 : position + 8], order)
        position += 8 + size + size % 2
    return False


def _is_chunk(data, position: int, order: str) -> bool:
    """True where a chunk with a name of letters lies here and ends within the file."""
    name = bytes(data[position : position + 4])
    size = int.from_bytes(data[position + 4 : position + 8], order)
    return (
        len(name) == 4 and name.isascii() and name.decode().isprintable() and position + 8 + size <= len(data)
    )


def ogg_parts(data) -> tuple[list[tuple[int, int]], bool]:
    """First and last byte of each stream of an Ogg file, and whether the last one's end is missing."""
    starts, position, beginning, ended = [], 0, False, False
    while (position := data.find(b"OggS", position)) >= 0:
        head = bytes(data[position : position + 27 + 255])
        if len(head) < 27:
            ended = False
            break
        flags, segments = head[5], head[26]
        size = 27 + segments + sum(head[27 : 27 + segments])
        if flags & 2 and not beginning:
            starts.append(position)
        beginning, ended = bool(flags & 2), bool(flags & 4) and position + size <= len(data)
        position += size
    ends = [*starts[1:], len(data)]
    return list(zip(starts, ends, strict=True)), not ended


def flac_problem(data) -> str | None:
    """Returns how a FLAC file is joined; a cut one is told by its decoder."""
    if data[:4] != FLAC:
        return None
    follower = data.find(FLAC, 4)
    while follower >= 0:
        if data[follower + 4] & 0x7F == 0 and data[follower + 5 : follower + 8] == b"\0\0\x22":
            return JOINED
        follower = data.find(FLAC, follower + 4)
    return None
