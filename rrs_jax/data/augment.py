"""Augmentation of training clips: each one a little faster, higher or noisier, drawn by the seed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rrs_jax.config.vocabulary import read_augmentation
from rrs_jax.data.manifest import audio_paths
from rrs_jax.data.voices import SAMPLING_RATE
from rrs_jax.data.waveforms import (
    at_peak,
    at_pitch,
    at_speed,
    at_tempo,
    read_waveform,
    with_noise,
    write_waveform,
)
from rrs_jax.files import content_hash
from rrs_jax.progress import Progress


def draw_amounts(name: str, changes: Sequence[str], seed: int) -> dict[str, float]:
    """Returns the amount of each change for the clip of the question `name`, by the change's kind.

    changes: as in `data.augment`. An amount is drawn evenly between the two that the change gives, and
    depends on seed, kind and name alone, not on the other questions.
    """
    amounts = {}
    for kind, low, high in map(read_augmentation, changes):
        draw = np.random.default_rng(int(content_hash(seed, kind, name)[:16], 16)).uniform(low, high)
        amounts[kind] = round(float(draw), 3)
    return amounts


def augmented(waveform: np.ndarray, amounts: dict[str, float], seed: int = 0) -> np.ndarray:
    """Applies the changes, one behind the other, to float32 (samples,) at 16 kHz; the peak is 0.9 then.

    amounts: of `speed` (times as fast, pitch with it), `tempo` (times as fast), `pitch` (semitones) and `snr`
      (white noise, dB below the speech), in any order.
    seed: of the noise.
    """
    for kind, amount in amounts.items():
        if kind == "snr":
            waveform = with_noise(waveform, amount, seed)
        else:
            waveform = {"speed": at_speed, "tempo": at_tempo, "pitch": at_pitch}[kind](waveform, amount)
    return at_peak(waveform)


def augment_rows(manifest: Path, rows: Sequence[dict], changes: Sequence[str], seed: int) -> list[dict]:
    """Writes each row's clip anew with these changes, in the folder `augmented` beside the manifest.

    Returns the rows with the new clips and their `seconds`, and in `augmented` the amounts. Raises UserError
    for a clip that cannot be read.
    """
    made = []
    with Progress(len(rows), "augmenting the clips", unit="clips") as progress:
        for row, path in zip(rows, audio_paths(manifest, rows), strict=True):
            amounts = draw_amounts(row["id"], changes, seed)
            noise_seed = int(content_hash(seed, "noise", row["id"])[:8], 16)
            waveform = augmented(read_waveform(path), amounts, noise_seed)
            audio = f"augmented/{content_hash(row['id'])}.flac"  # an id need not be a file's name
            write_waveform(manifest.parent / audio, waveform)
            seconds = round(len(waveform) / SAMPLING_RATE, 3)
            made.append(row | {"audio": audio, "seconds": seconds, "augmented": amounts})
            progress.update()
    return made
