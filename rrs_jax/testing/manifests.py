"""A tiny manifest: harmful and benign questions by turns, and noise for clips."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile

from rrs_jax.files import write_jsonl

SAMPLES = (9_001, 23_456, 16_000, 31_337, 12_345, 20_000, 8_765, 15_555)  # of each clip, at 16 kHz


def twin_rows(clips: Iterable[str | Path]) -> list[dict]:
    """Returns a manifest's rows, one for each clip: a harmful question and its benign twin by turns."""
    return [
        {
            "id": f"q{i}",
            "pair_id": f"p{i // 2}",
            "label": ("harmful", "benign")[i % 2],
            "category": "c",
            "question": f"How do I answer you {i}?",
            "audio": str(clip),
        }
        for i, clip in enumerate(clips)
    ]


def write_clips(folder: str | Path) -> list[Path]:
    """Writes eight clips of noise under a slow envelope, 0.5 to 2 s at 16 kHz; returns the files."""
    rng, files = np.random.default_rng(0), []
    for i, samples in enumerate(SAMPLES):
        waveform = rng.normal(size=samples) * 0.1 * np.sin(np.arange(samples) / 900) ** 2
        files.append(Path(folder) / f"{i}.wav")
        soundfile.write(files[-1], waveform, 16_000, subtype="FLOAT")
    return files


def write_manifest(folder: str | Path) -> Path:
    """Writes four pairs of questions with their clips; returns the file manifest.jsonl.

    `folder` is created where it does not exist. The clips are noise, so that results mean nothing.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "manifest.jsonl", twin_rows(clip.name for clip in write_clips(folder)))
    return folder / "manifest.jsonl"
