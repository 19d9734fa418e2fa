"""Results that a strategy takes from the frozen model, and the file in the run folder that keeps them."""

import dataclasses
from pathlib import Path

import numpy as np

from rrs_jax.files import atomic_path, read_jsonl, write_jsonl
from rrs_jax.frozen.extraction import check_finite
from rrs_jax.weights.safetensors_io import load_file, save_file


@dataclasses.dataclass(frozen=True)
class Extracted:
    """Attributes:
    content: arrays by name, or one dict for each sample; empty where a strategy needs nothing.
    metadata: strings beside arrays, in the file's header.
    facts: JSON values for the stage's mark.
    """

    content: dict[str, np.ndarray] | list[dict]
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    facts: dict = dataclasses.field(default_factory=dict)


def write_extracted(path: Path, extracted: Extracted) -> None:
    """Writes the content: rows as JSON lines, arrays as safetensors.

    Raises UserError for an array with NaN or infinite numbers.
    """
    if isinstance(extracted.content, list):
        write_jsonl(path, extracted.content)
        return
    check_finite(extracted.content, path.name)
    with atomic_path(path) as temporary:
        save_file(temporary, extracted.content, extracted.metadata)


def read_extracted(path: Path) -> Extracted:
    """The file's content and metadata, without facts.

    Raises UserError where it is missing or damaged, or later where it lacks what is asked for by name.
    """
    if path.suffix == ".jsonl":
        return Extracted(read_jsonl(path))
    return Extracted(*load_file(path, "delete it and run the stage extract again"))
