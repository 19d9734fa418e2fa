"""A manifest's rows, and clips for them."""

import numpy as np
import soundfile


def twin_rows(clips) -> list[dict]:
    """A manifest's rows, harmful and benign by turns, one for each clip."""
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


def write_sound_files(path) -> list:
    """Writes eight clips of noise under a slow envelope, of odd lengths; returns the files."""
    rng = np.random.default_rng(0)
    files = []
    for i, samples in enumerate((9_001, 23_456, 16_000, 31_337, 12_345, 20_000, 8_765, 15_555)):
        waveform = rng.normal(size=samples) * 0.1 * np.sin(np.arange(samples) / 900) ** 2
        files.append(path / f"{i}.wav")
        soundfile.write(files[-1], waveform, 16_000, subtype="FLOAT")
    return files
