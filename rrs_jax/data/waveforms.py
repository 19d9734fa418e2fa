"""Clips as waveforms: read, written, played faster or higher, with noise, heard in a room."""

import warnings
from pathlib import Path

import numpy as np
import soundfile
import soxr

from rrs_jax.data.voices import PEAK, SAMPLING_RATE
from rrs_jax.errors import UserError
from rrs_jax.files import atomic_path

ROOM = (5.0, 4.0, 3.0)  # m
SPEAKER, LISTENER = (1.2, 1.5, 1.6), (3.6, 2.6, 1.2)  # m


def read_waveform(path: str | Path) -> np.ndarray:
    """Reads a clip as float32 (samples,) at 16 kHz, the mean of its channels, by librosa.

    M4A and WebM are read where ffmpeg is. Raises UserError for a file that is no sound.
    """
    import audioread
    import librosa

    try:
        with warnings.catch_warnings(action="ignore"):  # librosa says that it goes on to audioread
            return librosa.load(path, sr=SAMPLING_RATE)[0]
    except (soundfile.SoundFileError, audioread.DecodeError, EOFError, OSError) as error:
        raise UserError(
            f"{path}: is not readable as audio ({error or type(error).__name__}); speak it again, or give a"
            " wav, flac or mp3 file."
        ) from error


def write_waveform(path: Path, waveform: np.ndarray) -> None:
    """Writes samples (samples,) at 16 kHz by the name's ending: `.flac` of 16 bits, or `.wav` of 32-bit
    floats, which holds what goes beyond full scale."""
    form, subtype = {".wav": ("WAV", "FLOAT"), ".flac": ("FLAC", "PCM_16")}[path.suffix]
    with atomic_path(path) as temporary:
        soundfile.write(temporary, waveform, SAMPLING_RATE, format=form, subtype=subtype)


def silence(samples: int) -> np.ndarray:
    """Returns float32 zeros (samples,)."""
    return np.zeros(samples, np.float32)


def noise(samples: int, seed: int, mean: float = 0.0, deviation: float = 1.0) -> np.ndarray:
    """Returns Gaussian noise, float32 (samples,)."""
    return np.random.default_rng(seed).normal(mean, deviation, samples).astype(np.float32)


def at_speed(waveform: np.ndarray, speed: float) -> np.ndarray:
    """Plays a waveform as a tape does: at `speed` 1.25 it lasts 0.8 of the time and sounds higher."""
    return soxr.resample(waveform, SAMPLING_RATE * speed, SAMPLING_RATE, quality="HQ").astype(np.float32)


def at_tempo(waveform: np.ndarray, tempo: float) -> np.ndarray:
    """Returns a waveform `tempo` times as fast at the same pitch, float32, peak 0.9."""
    from librosa.effects import time_stretch

    return at_peak(time_stretch(waveform, rate=tempo))


def at_pitch(waveform: np.ndarray, semitones: float) -> np.ndarray:
    """Returns a waveform moved by `semitones` at the same tempo, float32, peak 0.9."""
    from librosa.effects import pitch_shift

    return at_peak(pitch_shift(waveform, sr=SAMPLING_RATE, n_steps=semitones))


def with_noise(waveform: np.ndarray, snr_db: float, seed: int) -> np.ndarray:
    """Adds white noise `snr_db` below the speech's mean power, float32, peak 0.9."""
    power = np.mean(waveform.astype(np.float64) ** 2)
    added = np.random.default_rng(seed).normal(size=len(waveform))
    added *= np.sqrt(power / np.mean(added**2) / 10 ** (snr_db / 10))
    return at_peak(waveform + added)


def in_room(waveform: np.ndarray, reverberation: float) -> np.ndarray:
    """Returns a waveform as it is heard in a room, float32, peak 0.9.

    The room is a shoebox, computed by image sources; its walls give the decay time `reverberation` in seconds
    (Sabine).
    """
    try:
        import pyroomacoustics
    except ImportError as error:
        raise UserError("Rooms need the package pyroomacoustics; run: pip install pyroomacoustics") from error
    try:
        absorption, order = pyroomacoustics.inverse_sabine(reverberation, ROOM)
    except ValueError as error:
        raise UserError(
            f"--reverberation={reverberation:g}: no wall makes this room decay so fast; give 0.2 or more."
        ) from error
    room = pyroomacoustics.ShoeBox(
        ROOM, fs=SAMPLING_RATE, materials=pyroomacoustics.Material(absorption), max_order=order
    )
    room.add_source(SPEAKER, signal=waveform.astype(np.float64))
    room.add_microphone(LISTENER)
    room.simulate()
    return at_peak(room.mic_array.signals[0])


def at_peak(waveform: np.ndarray) -> np.ndarray:
    """Returns a waveform at peak 0.9, float32."""
    return (waveform * (PEAK / np.abs(waveform).max())).astype(np.float32)
