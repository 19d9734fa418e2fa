"""Distracting clips and spelt words of the AIAH protocol (Yang et al. 2024)."""

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np


def silence(samples: int) -> np.ndarray:
    """Zeros, float32 (samples,)."""
    return np.zeros(samples, np.float32)


def noise(samples: int, seed: int, mean: float = 0.0, deviation: float = 1.0) -> np.ndarray:
    """float32 (samples,), Gaussian, not clipped."""
    return np.random.default_rng(seed).normal(mean, deviation, samples).astype(np.float32)


def spell(text: str, spelled: Sequence[str]) -> str:
    """The text with these words letter by letter, "How do I K, I, L, L, time?"; case aside."""
    wanted = {word.lower() for word in spelled}

    def spelt(match: re.Match) -> str:
        word = match[0]
        return ", ".join(word.upper().replace("'", "")) + "," if word.lower() in wanted else word

    return re.sub(r",(?=[?.!,;:]|$)", "", re.sub(r"[^\W_]+(?:'[^\W_]+)*", spelt, text))


def twin_words(rows: Sequence[dict]) -> dict[str, list[str]]:
    """For each harmful question's id the words that its pair's benign question lacks."""
    pairs = defaultdict(dict)
    for row in rows:
        pairs[row["pair_id"]][row["label"]] = row
    twins = {}
    for pair in pairs.values():
        if {"harmful", "benign"} <= set(pair):
            harmless = _words(pair["benign"]["question"])
            twins[pair["harmful"]["id"]] = [word for word in _words(pair["harmful"]["question"]) if word not in harmless]
    return twins


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower())
