"""Audio files to mono 16 kHz waveforms, and the check of all clips before expensive work."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rrs_jax.errors import UserError
from rrs_jax.inputs.audio_files import AudioFault, read_samples
from rrs_jax.inputs.mel import audio_token_count, feature_length

SAMPLING_RATE = 16_000
SILENT_PEAK = 1e-4  # of full scale 1.0; a clip below it holds no speech
MAX_SECONDS = 30.0  # all that most models take of a clip
LONGEST_SECONDS = 300.0  # all that any of them takes, Qwen2.5-Omni
LOUD_PEAK = 100.0  # far above full scale: integer samples that were cast to float without scaling


def read_audio(path: str | Path, max_seconds: float = LONGEST_SECONDS) -> np.ndarray:
    """Reads wav, flac, mp3, ogg of any rate and channel count.

    Returns float32 (samples,), 16 kHz, full scale 1.0: the mean of the channels, resampled by soxr's "HQ"
    filter, which is librosa's default too. Raises UserError where the file is missing, unreadable, cut short,
    empty, longer than `max_seconds` or holds NaN or infinite samples.
    """
    try:
        channels, rate = read_samples(path, max_seconds)
    except AudioFault as fault:
        raise UserError(f"{path}: {fault}; give a wav, flac or mp3 file.") from fault
    waveform = channels.mean(axis=1)
    if reason := _sample_fault(waveform):
        raise UserError(f"{path}: {reason}; record or synthesise the clip again.")
    return resample(waveform, rate)


def as_waveform(audio: str | Path | np.ndarray) -> np.ndarray:
    """A path is read with `read_audio`; an array must be a float waveform (samples,) at 16 kHz already.

    Returns float32 (samples,). Raises UserError where the array is no such waveform.
    """
    if isinstance(audio, str | Path):
        return read_audio(audio)
    if reason := _array_fault(audio):
        raise UserError(f"audio array: {reason}; give float samples (samples,) at 16 kHz between -1 and 1.")
    return np.asarray(audio, dtype=np.float32)


def resample(waveform: np.ndarray, rate: int) -> np.ndarray:
    """float32 (samples,) at `rate` Hz to ceil(samples * 16000 / rate) samples at 16 kHz."""
    if rate == SAMPLING_RATE:
        return waveform
    import soxr

    wanted = math.ceil(len(waveform) * SAMPLING_RATE / rate)
    resampled = soxr.resample(waveform, rate, SAMPLING_RATE, quality="HQ")[:wanted]
    return np.pad(resampled, (0, wanted - len(resampled)))


def check_audios(
    audios: Sequence[str | Path | np.ndarray], max_seconds: float = MAX_SECONDS, min_seconds: float = 0.1
) -> None:
    """Raises one UserError that lists every clip a model cannot use, with its reason.

    `max_seconds` is where the model would cut a clip without a word. Arrays are named by their position.
    """
    faults = [f"{name}: {reason}" for _, name, reason in audio_faults(audios, max_seconds, min_seconds)]
    if faults:
        raise UserError(
            f"{len(faults)} of {len(audios)} audio clips cannot be used; replace them or delete their rows:"
            + "".join(f"\n  {fault}" for fault in faults)
        )


def audio_faults(
    audios: Sequence[str | Path | np.ndarray], max_seconds: float = MAX_SECONDS, min_seconds: float = 0.1
) -> Iterator[tuple[int, str, str]]:
    """Yields position, name and fault of every clip that a model cannot use.

    A file's header is read first, so that a clip of 40 minutes costs no decoding.
    """
    for position, audio in enumerate(audios):
        if isinstance(audio, str | Path):
            name, reason = str(audio), _clip_fault(Path(audio), max_seconds, min_seconds)
        else:
            name = f"array {position}"
            reason = _array_fault(audio) or _speech_fault(audio, SAMPLING_RATE, max_seconds, min_seconds)
        if reason:
            yield position, name, reason


def _clip_fault(path: Path, max_seconds: float, min_seconds: float) -> str | None:
    """The reason why a file is no usable clip. Decodes at most one second more than `max_seconds`."""
    try:
        channels, rate = read_samples(path, max_seconds)
    except AudioFault as fault:
        return str(fault)
    waveform = channels.mean(axis=1)
    reason = _sample_fault(waveform) or _speech_fault(waveform, rate, max_seconds, min_seconds)
    if reason == SILENT and np.abs(channels).max() >= SILENT_PEAK:
        return "has channels that cancel each other out, so that their mean is silent; keep one of them"
    return reason


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


SILENT = "is silent"


def _speech_fault(waveform: np.ndarray, rate: int, max_seconds: float, min_seconds: float) -> str | None:
    seconds = len(waveform) / rate
    if seconds > max_seconds:
        return f"is longer than {max_seconds:g} s, which is all that the model takes; split it"
    samples = math.ceil(seconds * SAMPLING_RATE)
    # A clip of one audio token takes another path in the released model, so two are the least.
    if seconds < min_seconds or audio_token_count(feature_length(samples)) < 2:
        return f"is {seconds:.3f} s long, too short for speech (at least {min_seconds:g} s)"
    if np.abs(waveform).max() < SILENT_PEAK:
        return SILENT
    return None
