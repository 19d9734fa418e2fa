"""Audio files to samples, up to the end that their decoder finds, whatever their headers say."""

import io
import math
import mmap
from pathlib import Path

import numpy as np
import soundfile

from rrs_jax.inputs.containers import fault_of, flac_problem, ogg_parts, without_length
from rrs_jax.inputs.mpeg_frames import Frames, read_frames, with_true_length
from rrs_jax.inputs.other_formats import decode, kind_of

BLOCK = 1 << 18  # samples a channel that are decoded at once where a length is not known
HIGHEST_RATE = 768_000  # Hz; with the number of channels, what decides how much memory a second takes
MOST_CHANNELS = 64
LONGEST = 3600.0  # seconds; a file of a megabyte can hold days of silence
UNKNOWN = 2**62  # samples; libsndfile states more for streams
CUT = "is cut short; copy or record it again"
# What else people give, by its first bytes.
NO_AUDIO = (
    (b"version https://git-lfs", "it is a Git LFS pointer in place of the clip; run git lfs pull"),
    (b"<", "it is a web page or XML"),
    (b"{", "it is JSON"),
    (b"PK\x03\x04", "it is a zip archive"),
    (b"\x1f\x8b", "it is a gzip archive"),
)


class AudioFault(Exception):
    """A file that is no usable audio; the message says why, without the file's name."""


def read_samples(path: str | Path, max_seconds: float = LONGEST) -> tuple[np.ndarray, int]:
    """Decodes a file: float32 (samples, channels), full scale 1.0, and its sampling rate in Hz.

    A file that lasts longer than `max_seconds` is not decoded. Raises AudioFault for it, and where the file
    is missing, empty, cut short, joined out of several, or no audio.
    """
    path = Path(path).expanduser()
    if fault := file_fault(path):
        raise AudioFault(fault)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if problem := fault_of(data) or flac_problem(data):
                raise AudioFault(problem)
            parts = [_decode(source, max_seconds) for source in _sources(path, data, max_seconds)]
    except (OSError, ValueError) as error:
        raise AudioFault(f"cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len({(rate, samples.shape[1]) for samples, rate in parts}) > 1:
        raise AudioFault("is several recordings of different sampling rates or channels, joined; split it")
    samples = np.concatenate([samples for samples, _ in parts])
    _check_length(len(samples) / parts[0][1], max_seconds)
    return samples, parts[0][1]


def file_fault(path: Path) -> str | None:
    """Returns why there is no content to read at `path`; None where there is."""
    try:
        if not path.exists():
            return "does not exist"
        if not path.is_file():
            return "is not a file"
        return None if path.stat().st_size else "is an empty file"
    except (OSError, ValueError) as error:  # a name that is too long, or holds what no name can
        return f"is no name of a file ({getattr(error, 'strerror', None) or error})"


def too_long(seconds: float, max_seconds: float) -> str:
    """Says how long a clip is, in as many digits as show that it is too long."""
    digits = next((n for n in range(1, 6) if round(seconds, n) > max_seconds), 6)
    return f"is {seconds:.{digits}f} s long, the model takes {max_seconds:g} s; split it"


def _sources(path: Path, data, max_seconds: float) -> list:
    """Parts that libsndfile has to read one behind the other so that it hears the whole file."""
    if data[:4] == b"OggS":
        parts, is_cut = ogg_parts(data)
        if is_cut:
            raise AudioFault(CUT)
        return [path] if len(parts) == 1 else [io.BytesIO(data[start:end]) for start, end in parts]
    if (frames := read_frames(data)) is not None:
        return [_mpeg_source(path, data, frames, max_seconds)]
    if (whole := without_length(data)) is not None:
        return [io.BytesIO(whole)]
    return [path]


def _mpeg_source(path: Path, data, frames: Frames, max_seconds: float):
    if frames.changes:
        raise AudioFault("changes its sampling rate or channels on the way, as joined files do; split it")
    # An encoder may count the frame that holds the number.
    if frames.is_cut or (frames.promised or 0) > len(frames.spans) + 1:
        raise AudioFault(CUT)
    encoder_delay = 4 * frames.header.samples / frames.header.rate  # at most, which the decoder takes away
    if frames.seconds > max_seconds + encoder_delay:
        raise AudioFault(too_long(frames.seconds, max_seconds))
    if frames.promised:
        is_believed = abs(frames.promised - len(frames.spans)) <= 1
    else:
        is_believed = frames.constant
    return path if is_believed else io.BytesIO(with_true_length(data, frames))


def _decode(source, max_seconds: float) -> tuple[np.ndarray, int]:
    try:
        with _opened(source) as file:
            rate = file.samplerate
            if rate > HIGHEST_RATE or file.channels > MOST_CHANNELS:
                raise AudioFault(f"has {file.channels} channels at {rate} Hz, which no recording has")
            if file.frames < UNKNOWN:
                _check_length(file.frames / rate, max_seconds)
            else:  # a FLAC stream cannot be searched, and soundfile would after every block
                file.seekable = lambda: False
            blocks, left = [], (max_seconds + 1) * rate
            while left > 0:
                wanted = min(BLOCK if file.frames >= UNKNOWN else file.frames, math.ceil(min(left, UNKNOWN)))
                blocks.append(file.read(wanted, dtype="float32", always_2d=True))
                left -= len(blocks[-1])
                if len(blocks[-1]) < wanted or file.frames < UNKNOWN:
                    break
            samples = np.concatenate(blocks)
            # The length of MPEG audio is an estimate; every other one is the header's.
            if file.frames < UNKNOWN and len(samples) < wanted and file.format not in ("MP3", "MPEG"):
                raise AudioFault(CUT)
            return samples, rate
    except soundfile.SoundFileError as error:
        if isinstance(source, Path) and (kind := kind_of(_head(source))):
            return _decode_elsewhere(source, kind, max_seconds)
        raise AudioFault(f"is not readable as audio ({_reason(source, error)})") from error
    except (TypeError, RuntimeError, AssertionError) as error:  # soundfile's own checks
        raise AudioFault(f"is not readable as audio ({error})") from error


def _opened(source) -> soundfile.SoundFile:
    if (
        isinstance(source, Path) and source.suffix.lower() != ".raw"
    ):  # which soundfile asks the sampling rate of
        return soundfile.SoundFile(str(source))
    return soundfile.SoundFile(io.BytesIO(source.read_bytes()) if isinstance(source, Path) else source)


def _reason(source, error: soundfile.SoundFileError) -> str:
    head = _head(source)
    for beginning, what in NO_AUDIO:
        if head.lstrip().startswith(beginning):
            return what
    if head.isascii() and head.decode().replace("\n", " ").isprintable():
        return "it is text"
    if isinstance(source, Path) and source.suffix.lower() == ".raw":
        return "raw samples do not say their rate and type; convert it to wav"
    said = str(getattr(error, "error_string", error)).rstrip(".").removeprefix("Error : ")
    # libsndfile says so of files that exist, where it knows their name alone.
    return "its format is not known" if said.startswith(("File does not exist", "Format not")) else said


def _head(source) -> bytes:
    if not isinstance(source, Path):
        return source.getvalue()[:64]
    with source.open("rb") as file:
        return file.read(64)


def _decode_elsewhere(path: Path, kind: str, max_seconds: float) -> tuple[np.ndarray, int]:
    decoded = decode(path, kind, max_seconds)
    if isinstance(decoded, str):
        raise AudioFault(decoded)
    return decoded


def _check_length(seconds: float, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise AudioFault(too_long(seconds, max_seconds))
