"""Frames of an MPEG audio file (MP3), counted one by one.

An MP3 file has no length of its own: readers believe a first frame that states one (Xing, Info, VBRI), or
guess from the first bit rate. Both are wrong for files that are cut, joined, or of variable rate without such
a frame.
"""

import dataclasses

KILOBITS = {  # by version 1 or 2 and layer
    (1, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES = (44_100, 48_000, 32_000)
RATE_DIVISORS = {3: 1, 2: 2, 0: 4}  # by the header's version bits: MPEG 1, 2, 2.5
SAMPLES = {(1, 1): 384, (1, 2): 1152, (1, 3): 1152, (2, 1): 384, (2, 2): 1152, (2, 3): 576}
FILLED_KILOBITS = 9  # index of a bit rate whose frame holds the fields of a Xing frame at every sampling rate


@dataclasses.dataclass(frozen=True)
class Header:
    """A frame's four bytes read: `length` in bytes, `samples` a channel, `rate` in Hz."""

    version: int
    layer: int
    rate: int
    mono: bool
    kilobits: int
    length: int

    @property
    def samples(self) -> int:
        return SAMPLES[self.version, self.layer]

    @property
    def side_bytes(self) -> int:
        """Bytes between the header and the fields of a Xing frame, in layer III."""
        return (17 if self.mono else 32) if self.version == 1 else (9 if self.mono else 17)


@dataclasses.dataclass(frozen=True)
class Frames:
    """Attributes:
    spans: first byte and length of each frame that holds sound.
    header: the first one's.
    promised: number of frames that the file's first frame states; None where none does.
    constant: all frames have one bit rate.
    is_cut: the last frame has fewer bytes than its header says.
    changes: the sampling rate or the number of channels changes on the way.
    """

    spans: tuple[tuple[int, int], ...]
    header: Header
    promised: int | None
    constant: bool
    is_cut: bool
    changes: bool

    @property
    def seconds(self) -> float:
        return len(self.spans) * self.header.samples / self.header.rate


def read_frames(data) -> Frames | None:
    """Counts the frames of a file's bytes; None where they are no MPEG audio, or of free bit rate."""
    position = _behind_tags(data, 0)
    first = read_header(data, position)
    if first is None:
        return None
    spans, promised, rates, is_cut, changes = [], None, set(), False, False
    while (found := _next_frame(data, position)) is not None:
        position, header = found
        if position + header.length > len(data):
            is_cut = True
            break
        stated = _stated_frames(data, position, header)
        if stated is None:
            spans.append((position, header.length))
            rates.add(header.kilobits)
            changes |= (header.rate, header.mono) != (first.rate, first.mono)
        elif not spans and promised is None:
            promised = stated
        position += header.length
    if not spans:
        return None
    return Frames(tuple(spans), first, promised, len(rates) == 1, is_cut, changes)


def with_true_length(data, frames: Frames) -> bytes:
    """Returns the file's frames behind a Xing frame that states their number, as decoders need it."""
    sound = b"".join(bytes(data[start : start + length]) for start, length in frames.spans)
    start = frames.spans[0][0]
    head = bytearray(data[start : start + 4])
    head[1] |= 1  # no checksum
    head[2] = FILLED_KILOBITS << 4 | head[2] & 0x0C  # the sampling rate stays, no padding
    header = read_header(head, 0)
    size = header.length + len(sound)
    fields = b"Xing" + b"".join(number.to_bytes(4, "big") for number in (3, len(frames.spans), size))
    return (bytes(head) + bytes(header.side_bytes) + fields).ljust(header.length, b"\0") + sound


def read_header(data, position: int) -> Header | None:
    """Reads a frame's header at a byte; None where there is none."""
    if position + 4 > len(data):
        return None
    bits = int.from_bytes(data[position : position + 4], "big")
    version_bits, layer_bits = bits >> 19 & 3, bits >> 17 & 3
    kilobits, rate, padding = bits >> 12 & 15, bits >> 10 & 3, bits >> 9 & 1
    if bits >> 21 != 0x7FF or version_bits == 1 or not layer_bits or kilobits in (0, 15) or rate == 3:
        return None
    version, layer = 1 if version_bits == 3 else 2, 4 - layer_bits
    kilobits, rate = KILOBITS[version, layer][kilobits], RATES[rate] // RATE_DIVISORS[version_bits]
    slot = 4 if layer == 1 else 1  # bytes
    length = (SAMPLES[version, layer] // 8 // slot * kilobits * 1000 // rate + padding) * slot
    return Header(version, layer, rate, bits >> 6 & 3 == 3, kilobits, length)


def _next_frame(data, position: int) -> tuple[int, Header] | None:
    """The frame at a byte, or the next one behind tags and what else lies between two files."""
    position = _behind_tags(data, position)
    if (header := read_header(data, position)) is not None:
        return position, header
    while (position := data.find(b"\xff", position + 1)) >= 0:
        header = read_header(data, position)
        # Two bytes look like a header by chance, two headers one frame apart do not.
        if header is not None and read_header(data, position + header.length) is not None:
            return position, header
    return None


def _behind_tags(data, position: int) -> int:
    while data[position : position + 3] == b"ID3" and position + 10 <= len(data):
        seven_bits = data[position + 6 : position + 10]
        size = sum(byte << shift for byte, shift in zip(seven_bits, (21, 14, 7, 0), strict=True))
        position += 10 + size + (10 if data[position + 5] & 0x10 else 0)
    if data[position : position + 3] == b"TAG":
        position += 128
    return position


def _stated_frames(data, position: int, header: Header) -> int | None:
    """Number of frames that a frame without sound states, 0 where it leaves it out; None for sound."""
    place = position + 4 + header.side_bytes
    if data[place : place + 4] in (b"Xing", b"Info"):
        has_frames = data[place + 7] & 1
        return int.from_bytes(data[place + 8 : place + 12], "big") if has_frames else 0
    if data[position + 36 : position + 40] == b"VBRI":
        return int.from_bytes(data[position + 50 : position + 54], "big")
    return None
