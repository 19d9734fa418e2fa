"""Formats that libsndfile does not read (M4A, AAC, WebM, AMR, WMA, ALAC): decoded by a program that does.

`audioread` finds the program, ffmpeg on most machines; it hands out 16-bit samples, which `librosa` scales.
"""

import math
from pathlib import Path

import numpy as np

KINDS = (  # by the first bytes
    (b"\x1aE\xdf\xa3", "WebM or Matroska"),
    (b"#!AMR", "AMR"),
    (b"0&\xb2u", "WMA"),
    (b"caff", "CAF with a codec that libsndfile lacks"),
    (b"\xff\xf1", "AAC"),
    (b"\xff\xf9", "AAC"),
)
ESTIMATED = 0.5  # seconds by which a container's stated duration may exceed what its decoder gives


def kind_of(head: bytes) -> str | None:
    """Returns the name of the format that a file with these first bytes has; None for any other."""
    if head[4:8] == b"ftyp":
        return "MP4 or M4A"
    return next((name for beginning, name in KINDS if head.startswith(beginning)), None)


def decode(path: Path, kind: str, max_seconds: float = math.inf) -> tuple[np.ndarray, int] | str:
    """Returns float32 (samples, channels), full scale 1.0, and the rate in Hz; or, as a text, why it cannot.

    Decodes at most one second more than `max_seconds`. `kind` is what `kind_of` says.
    """
    import audioread
    from librosa.util import buf_to_float

    backends = audioread.available_backends(flush_cache=True)[1:]  # the first is Python's own WAV reader
    if not backends:
        return f"it is {kind}, which needs ffmpeg; install ffmpeg, or convert it to wav, flac or mp3"
    try:
        with audioread.audio_open(str(path.absolute()), backends) as reader:
            rate, channels, stated = reader.samplerate, reader.channels, reader.duration
            if not rate or not channels:
                raise audioread.DecodeError("its rate is not known")
            blocks, left = [], (max_seconds + 1) * rate * channels
            for block in reader:
                blocks.append(buf_to_float(block))
                left -= len(blocks[-1])
                if left <= 0:
                    break
    except (audioread.DecodeError, OSError) as error:
        reason = f" ({error})" if str(error) else ""
        return f"it is {kind}, whose sound cannot be decoded{reason}; convert it to wav, flac or mp3"
    samples = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    samples = samples[: len(samples) // channels * channels].reshape(-1, channels)
    if left > 0 and len(samples) / rate < stated - ESTIMATED:
        return "is cut short; copy or record it again"
    return samples, rate
