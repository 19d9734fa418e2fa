"""Audio files to mono 16 kHz waveforms, and the check of all clips before expensive work."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from rrs_jax.errors import UserError
from rrs_jax.inputs.mel import audio_token_count, feature_length

SAMPLING_RATE = 16_000
SILENT_PEAK = 1e-4  # of full scale 1.0; a clip below it holds no speech
LOUD_PEAK = 100.0  # far above full scale: integer samples that were cast to float without scaling


def read_audio(path: str | Path) -> np.ndarray:
    """Reads wav, flac, mp3, ogg of any rate and channel count.

    Returns float32 (samples,), 16 kHz, full scale 1.0: the mean of the channels, resampled by soxr's "HQ"
    filter, which is librosa's default too. Raises UserError where the file is missing, unreadable, empty or
    holds NaN or infinite samples.
    """
    path = Path(path)
    if reason := _file_fault(path):
        raise UserError(f"{path}: {reason}; give a wav, flac or mp3 file.")
    try:
        channels, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise UserError(
            f"{path}: is not readable as audio ({error.error_string}); give a wav, flac or mp3 file."
        ) from error
    waveform = channels.mean(axis=1)
    if reason := _sample_fault(waveform):
        raise UserError(f"{path}: {reason}; record or synthesise the clip again.")
    return resample(waveform, rate)


def as_waveform(audio: str | Path | np.ndarray) -> np.ndarray:
    """The waveform of a clip, float32 (samples,) at 16 kHz.

    A path is read with `read_audio`; an array must be a float waveform at 16 kHz already. Raises
    UserError where the array is no such waveform.
    """
    if isinstance(audio, str | Path):
        return read_audio(audio)
    if reason := _array_fault(audio):
        raise UserError(f"audio array: {reason}; give float samples (samples,) at 16 kHz between -1 and 1.")
    return np.asarray(audio, dtype=np.float32)


def resample(waveform: np.ndarray, rate: int) -> np.ndarray:
    """A waveform, float32 (samples,) at `rate` Hz, as ceil(samples * 16000 / rate) samples at 16 kHz."""
    if rate == SAMPLING_RATE:
        return waveform
    import soxr

    wanted = math.ceil(len(waveform) * SAMPLING_RATE / rate)
    resampled = soxr.resample(waveform, rate, SAMPLING_RATE, quality="HQ")[:wanted]
    return np.pad(resampled, (0, wanted - len(resampled)))


def check_audios(
    audios: Sequence[str | Path | np.ndarray], max_seconds: float = 30.0, min_seconds: float = 0.1
) -> None:
    """Raises one UserError that lists every clip a model cannot use, with its reason.

    `max_seconds` is where the model would cut a clip without a word. A file's header is read first, so that a
    clip of 40 minutes costs no decoding. Arrays are named by their position.
    """
    faults = []
    for position, audio in enumerate(audios):
        if isinstance(audio, str | Path):
            name, reason = str(audio), _clip_fault(Path(audio), max_seconds, min_seconds)
        else:
            name = f"array {position}"
            reason = _array_fault(audio) or _speech_fault(audio, SAMPLING_RATE, max_seconds, min_seconds)
        if reason:
            faults.append(f"{name}: {reason}")
    if faults:
        raise UserError(
            f"{len(faults)} of {len(audios)} audio clips cannot be used; replace them or delete their rows:"
            + "".join(f"\n  {fault}" for fault in faults)
        )


def _clip_fault(path: Path, max_seconds: float, min_seconds: float) -> str | None:
    """The reason why a file is no usable clip. Decodes at most one second more than `max_seconds`."""
    if reason := _file_fault(path):
        return reason
    try:
        with soundfile.SoundFile(path) as file:
            rate, frames = file.samplerate, file.frames
            if frames < 2**62 and frames / rate > max_seconds:  # a stream's header may not know its length
                return f"is {frames / rate:.1f} s long, the model takes {max_seconds:g} s; split it"
            waveform = file.read(int((max_seconds + 1) * rate), dtype="float32", always_2d=True).mean(axis=1)
    except soundfile.LibsndfileError as error:
        return f"is not readable as audio ({error.error_string.rstrip('.')})"
    return _sample_fault(waveform) or _speech_fault(waveform, rate, max_seconds, min_seconds)


def _file_fault(path: Path) -> str | None:
    if not path.exists():
        return "does not exist"
    if not path.is_file():
        return "is not a file"
    if not path.stat().st_size:
        return "is an empty file"
    return None


def _array_fault(audio: np.ndarray) -> str | None:
    audio = np.asarray(audio)
    if audio.ndim != 1:
        return f"has shape {audio.shape} instead of (samples,)"
    if not np.issubdtype(audio.dtype, np.floating):
        return f"has dtype {audio.dtype} instead of a float type"
    return _sample_fault(audio)


def _sample_fault(waveform: np.ndarray) -> str | None:
    if not waveform.size:
        return "holds no samples"
    if not np.isfinite(waveform).all():
        return "holds NaN or infinite samples"
    if (peak := np.abs(waveform).max()) > LOUD_PEAK:
        return f"has samples up to {peak:.0f} where full scale is 1.0"
    return None


def _speech_fault(waveform: np.ndarray, rate: int, max_seconds: float, min_seconds: float) -> str | None:
    seconds = len(waveform) / rate
    if seconds > max_seconds:
        return f"is longer than {max_seconds:g} s, which is all that the model takes; split it"
    samples = math.ceil(seconds * SAMPLING_RATE)
    # A clip of one audio token takes another path in the released model, so two are the least.
    if seconds < min_seconds or audio_token_count(feature_length(samples)) < 2:
        return f"is {seconds:.3f} s long, too short for speech (at least {min_seconds:g} s)"
    if np.abs(waveform).max() < SILENT_PEAK:
        return "is silent"
    return None
