"""The clip of a row, under the names and in the forms in which other programs and data sets give it."""

import base64
import binascii
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes, urlparse

import numpy as np
import soundfile

from rrs_jax.data.values import is_missing, shown
from rrs_jax.files import cache_folder, content_hash, write_atomic
from rrs_jax.inputs.audio_files import HIGHEST_RATE, MOST_CHANNELS

# Ours, Hugging Face's audio folder, NeMo, ms-swift and LLaMA-Factory, Kaldi's and DeepSpeech's, AIAH.
NAMES = (
    "audio", "file_name", "audio_filepath", "audio_path", "audios", "audio_file", "audio_url",
    "audio_filename", "wav", "wav_path", "wav_file", "wav_filename", "clip", "clip_path",
    "speech", "speech_path", "sound", "sound_path", "input_audio",
)  # fmt: skip
# Names that stand for other things too: a clip where the value looks like one.
LOOSE_NAMES = ("path", "file", "filepath", "file_path", "filename", "source", "url", "location")
SUFFIXES = (
    ".wav", ".wave", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aiff", ".aif", ".au", ".w64", ".rf64", 
    ".caf", ".m4a", ".aac", ".wma", ".amr", ".webm", ".raw", ".sph",
)  # fmt: skip
MAGIC = {
    b"RIFF": ".wav",
    b"fLaC": ".flac",
    b"OggS": ".ogg",
    b"ID3": ".mp3",
    b"\xff": ".mp3",
    b"FORM": ".aiff",
}
MANY_LETTERS = 512  # no path is longer than that and written in base64's letters alone


def clips_folder() -> Path:
    """Returns the folder of clips that came inside rows: `clips` in $RRS_JAX_CACHE or ~/.cache/rrs_jax."""
    return cache_folder() / "clips"


def find_clip(row: dict, text_names: Sequence[str] = ()) -> tuple[str | None, object]:
    """Returns name and value of a row's clip; (None, None) where it has none.

    `audio` counts before all other names. `text_names`: fields that hold text and no clip. Raises ValueError
    where two names give different clips, and where a name that is not known holds what looks like a clip.
    """
    by_name = {name.lower().strip(): name for name in row}
    if not is_missing(row.get(by_name.get("audio", "audio"))):
        return by_name["audio"], row[by_name["audio"]]
    found = [by_name[name] for name in NAMES if not is_missing(row.get(by_name.get(name)))]
    found += [by_name[name] for name in LOOSE_NAMES if looks_like_clip(row.get(by_name.get(name)))]
    distinct = {repr(row[name]): name for name in found}
    if len(distinct) > 1:
        raise ValueError(
            f"has a clip under {' and another under '.join(distinct.values())}; keep one of them"
        )
    if found:
        return found[0], row[found[0]]
    unknown = [name for name, value in row.items() if name not in text_names and looks_like_clip(value)]
    if unknown:
        raise ValueError(f"seems to have a clip under {unknown[0]}, which is not read; write it under audio")
    return None, None


def looks_like_clip(value: object) -> bool:
    """Returns True for a path or address with the ending of an audio file, and for audio within the row."""
    if isinstance(value, list | tuple) and len(value) == 1:
        return looks_like_clip(value[0])
    if isinstance(value, dict):
        content = value.get("bytes")
        begins = isinstance(content, bytes) and content.startswith(tuple(MAGIC))
        return begins or looks_like_clip(value.get("path")) or {"array", "sampling_rate"} <= set(value)
    if not isinstance(value, str) or re.search(r"\s", value.strip()) and "/" not in value:
        return False
    value = value.strip().lower()
    return value.startswith("data:audio/") or value.split("?")[0].endswith(SUFFIXES) and "\n" not in value


def clip_path(value: object) -> str | None:
    """Returns the path that a clip's value stands for, as the row writes it; None where it is missing.

    A clip that comes inside the row (a `data:` address, bytes, an array with its sampling rate) is written to
    `clips_folder` and has an absolute path. Raises ValueError with the reason where it is no clip.
    """
    if isinstance(value, list | tuple):
        return _listed_clip(value)
    if isinstance(value, bytes | bytearray):
        return _kept(bytes(value))
    if isinstance(value, dict):
        return _object_clip(value)
    if is_missing(value):
        return None
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"is {shown(value)}, no text")
    if value.startswith("data:"):
        return _kept(_data_url(value))
    if len(value) > MANY_LETTERS and re.fullmatch(r"[A-Za-z0-9+/_\-\s]+=*\s*", value):
        content = _decoded(value)
        return _kept(content) if content.startswith(tuple(MAGIC)) else value
    scheme = urlparse(value).scheme if "://" in value else ""
    if scheme == "file":
        return unquote(urlparse(value).path)
    if scheme:
        raise ValueError(f"is an address ({value[:60]}); fetch the clip and give its file")
    return os.path.expanduser(value) if value.startswith("~") else value


def is_file(path: Path) -> bool:
    """Returns True where a file is there; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _listed_clip(value: Sequence) -> str | None:
    entries = [entry for entry in value if not is_missing(entry)]
    if len(entries) > 1 and all(isinstance(entry, int | float) for entry in entries):
        raise ValueError('is a list of numbers; write {"array": ..., "sampling_rate": ...} or a file\'s path')
    if len(entries) > 1:
        raise ValueError(f"has {len(entries)} clips; a question has one")
    return clip_path(entries[0]) if entries else None


def _object_clip(value: dict) -> str | None:
    """Path of the `datasets` library's object, of OpenAI's, or of an object with an address."""
    if not is_missing(content := value.get("bytes")):
        return _kept(_bytes_of(content))
    if not is_missing(data := value.get("data")):
        return _kept(
            _data_url(data) if isinstance(data, str) and data.startswith("data:") else _decoded(data)
        )
    path = value.get("path")
    has_array = value.get("array") is not None
    if not is_missing(path) and not (has_array and not is_file(Path(str(path)))):
        return clip_path(path)
    if has_array:
        return _array_clip(value["array"], value.get("sampling_rate"))
    for name in ("url", "audio", "audio_url", "file", "file_name"):
        if not is_missing(value.get(name)):
            return clip_path(value[name])
    if all(is_missing(entry) for entry in value.values()):
        return None
    raise ValueError(
        f"is an object with {', '.join(map(str, value))}; give path, bytes, or array and sampling_rate"
    )


def _array_clip(array: object, rate: object) -> str:
    try:
        with np.errstate(over="ignore"):  # infinite samples are refused where the clip is read
            samples = np.asarray(array, np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("has an array that holds no numbers") from error
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
        samples = samples.T  # channels first
    if not isinstance(rate, int | float) or isinstance(rate, bool) or rate < 1 or samples.ndim not in (1, 2):
        raise ValueError("has an array without its sampling_rate in Hz, or with more than two dimensions")
    if rate > HIGHEST_RATE or not samples.size or samples.size // len(samples) > MOST_CHANNELS:
        raise ValueError(
            f"has an array of shape {samples.shape} at {shown(rate)} Hz; an array holds samples, of at most "
            f"{MOST_CHANNELS} channels and {HIGHEST_RATE} Hz"
        )
    stream = io.BytesIO()
    soundfile.write(stream, samples, int(rate), format="WAV", subtype="FLOAT")
    return _kept(stream.getvalue())


def _bytes_of(content: object) -> bytes:
    if isinstance(content, bytes | bytearray):
        return bytes(content)
    if isinstance(content, list):
        try:
            return bytes(content)
        except (TypeError, ValueError) as error:
            raise ValueError("has bytes that are none") from error
    return _decoded(content)


def _data_url(value: str) -> bytes:
    head, comma, content = value.partition(",")
    if not comma:
        raise ValueError("is a data: address without content")
    return _decoded(content) if head.endswith(";base64") else unquote_to_bytes(content)


def _decoded(text: object) -> bytes:
    try:
        letters = re.sub(r"\s", "", unquote(text) if "%" in text else text)
        letters = letters.translate(str.maketrans("-_", "+/"))
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except (AttributeError, TypeError, ValueError, binascii.Error) as error:
        raise ValueError("has audio that is no base64") from error


def _kept(content: bytes) -> str:
    """Writes a clip to the cache, under a name by its content, and returns its absolute path."""
    if not content:
        raise ValueError("has no bytes of audio")
    suffix = next((suffix for magic, suffix in MAGIC.items() if content.startswith(magic)), ".bin")
    path = clips_folder() / f"{content_hash(content)}{suffix}"
    if not path.is_file():
        write_atomic(path, content)
    return str(path.absolute())
