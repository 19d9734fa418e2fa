"""Changes of a file's bytes: those of a bad disk, of a bad program, and of somebody who knows the reader."""

import random
import re
import struct

ODD_VALUES = (
    b"null", b"true", b"-1", b"0", b"1e999", b"-1e999", b"NaN", b"Infinity", b"9" * 5000, b"1e-5000",
    b'""', b'"\\ud800"', b'"\\u0000"', b'"../../../../etc/passwd"', b'"/dev/zero"', b'"\\u202e\\u001b[2J"',
    b"[" * 3000 + b"]" * 3000, b'{"a":' * 3000 + b"1" + b"}" * 3000, b'"' + b"a" * 70_000 + b'"',
    b"[]", b"{}", b"[[], {}]", b'{"bytes": []}', b"0.1", b"[null, 1, true]",
    b"2147483648", b"-9223372036854775809", b"18446744073709551616", b"9" * 400, b"1e308", b"[[]]", b"[0.1]",
)  # fmt: skip
ODD_TEXTS = (
    b"\0", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\n\n", b'"', b"'", b",", b";", b"\t",
    b"\\", b"{%", b"{{ 1 }}", b"[", b"]", b"{", b"}", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"<", b"]]>", b"#",
    b"\x1b[31m",
)  # fmt: skip
ODD_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**40, 2**63 - 1, 2**64 - 1)
SCALAR = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?|true|false|null')


def mutated(content: bytes, draw: random.Random) -> bytes:
    """The content with one to four changes."""
    for _ in range(draw.choice((1, 1, 1, 2, 2, 4))):
        content = draw.choice(CHANGES)(content, draw)
    return content


def _place(content: bytes, draw: random.Random) -> int:
    """A place, half of the time among the first bytes, where headers are."""
    most = len(content) if draw.random() < 0.5 else min(len(content), 200)
    return draw.randint(0, max(most - 1, 0))


def _flip(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 3, 20))):
        if changed:
            changed[_place(content, draw)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.choice((0, 1, 3, 7, 8, 9, _place(content, draw), len(content) - 1))]


def _insert(content: bytes, draw: random.Random) -> bytes:
    at = _place(content, draw)
    what = draw.choice((draw.randbytes(draw.choice((1, 2, 8, 300))), draw.choice(ODD_TEXTS)))
    return content[:at] + what + content[at:]


def _remove(content: bytes, draw: random.Random) -> bytes:
    at = _place(content, draw)
    return content[:at] + content[at + draw.choice((1, 2, 4, 8, 100, 1000)) :]


def _repeat(content: bytes, draw: random.Random) -> bytes:
    at, size = _place(content, draw), draw.choice((1, 4, 40, 400, 4000))
    return content[:at] + content[at : at + size] * draw.choice((2, 3, 50)) + content[at + size :]


def _number(content: bytes, draw: random.Random) -> bytes:
    """A whole number of 1 to 8 bytes in place of what was there."""
    at, number, size = _place(content, draw), draw.choice(ODD_NUMBERS), draw.choice((1, 2, 4, 8))
    packed = struct.pack("<Q" if draw.random() < 0.8 else ">Q", number)
    packed = packed[:size] if draw.random() < 0.8 else packed[-size:]
    return content[:at] + packed + content[at + size :]


def _value(content: bytes, draw: random.Random) -> bytes:
    """A value of JSON, or a cell, in place of another one."""
    found = [match.span() for match in SCALAR.finditer(content[: 2**17])]
    if not found:
        return _insert(content, draw)
    start, end = draw.choice(found)
    return content[:start] + draw.choice(ODD_VALUES) + content[end:]


def _swap(content: bytes, draw: random.Random) -> bytes:
    """Two values of JSON in one another's place."""
    found = [match.span() for match in SCALAR.finditer(content[: 2**17])]
    if len(found) < 2:
        return _flip(content, draw)
    (a, b), (c, d) = sorted(draw.sample(found, 2))
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


CHANGES = (_flip, _cut, _insert, _remove, _repeat, _number, _value, _value, _swap)
