"""The files that a stage wrote, known again by their digests."""

import fnmatch
from collections.abc import Iterator, Mapping
from pathlib import Path

from rrs_jax.config.strategy_table import STRATEGY_TABLE
from rrs_jax.errors import UserError
from rrs_jax.files import file_digest, read_json
from rrs_jax.weights.safetensors_io import load_file

# Files and folders that a stage writes in the run folder; `extract` writes what its strategy's row names.
PLACES = {
    "data": ("data/manifest.jsonl", "data/audio", "data/eval/manifest.jsonl", "data/eval/audio"),
    "train": ("checkpoints", "epochs", "metrics.jsonl", "tensorboard"),
    "evaluate": ("eval", "rates.jsonl", "tensorboard"),
    "export": ("export",),
    "report": ("report",),
}
# Have their own sums, and are made again by whoever misses them; others than the stage write them too.
CACHES = ("data/training_audio.safetensors", "data/evaluation_audio.safetensors", "report/figure2.json")
# Told where they differ, and left: what cannot be made without training anew, and what people edit.
LEFT = ("metrics.jsonl", "tensorboard/*", "export/*/README.md")
CHECKPOINTS = "checkpoints/*"
READ_WHOLE = 2**25  # bytes up to which all of a file are read
SAMPLES, SAMPLE = 64, 2**16  # of a larger one: so many times so many bytes, evenly apart


def output_sums(run: Path, name: str, strategy: str) -> dict[str, str]:
    """Returns the digests of a stage's files by their paths in the run folder."""
    places = PLACES.get(name) or tuple(filter(None, [STRATEGY_TABLE[strategy].file]))
    files = sorted(file for place in places for file in _files(run / place))
    return {
        path: sampled_digest(file)
        for file in files
        if not matches(path := file.relative_to(run).as_posix(), *CACHES) and "/." not in f"/{path}"
    }


def differing(run: Path, known: Mapping[str, str]) -> dict[str, str]:
    """Returns what is wrong with each file that is not as it was, by its path in the run folder."""
    found = {}
    for path, digest in known.items():
        if not (run / path).is_file():
            found[path] = "is missing"
        elif sampled_digest(run / path) != digest:
            found[path] = "is not what was written"
    return found


def damaged_caches(run: Path) -> list[Path]:
    """Returns the small caches of a run whose sums are not those of their content; large ones are looked at
    when they are read."""
    found = []
    for path in (run / name for name in CACHES):
        if path.is_file() and path.stat().st_size <= READ_WHOLE:
            try:
                _ = read_json(path) if path.suffix == ".json" else load_file(path)
            except UserError:
                found.append(path)
    return found


def matches(path: str, *patterns: str) -> bool:
    """Returns True for a path that has the form of one of the patterns."""
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _files(place: Path) -> list[Path]:
    return [file for file in (place, *place.rglob("*")) if file.is_file()]


def sampled_digest(file: Path) -> str:
    """Returns the digest of a file, of a large one that of its size and of samples."""
    size = file.stat().st_size
    return file_digest(file, None if size <= READ_WHOLE else _places(size))


def _places(size: int) -> Iterator[tuple[int, int]]:
    for place in range(SAMPLES):
        yield place * (size - SAMPLE) // (SAMPLES - 1), SAMPLE
