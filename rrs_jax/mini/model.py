"""A small model as users run it: the base with the bridge of `checkpoints/NAME/` merged.

A bridge is one or several safetensors files: whole tensors (`multi_modal_projector.linear.weight`, `.bias`)
that replace the base's, and LoRA pairs `NAME.lora_A.weight` (rank, in), `NAME.lora_B.weight` (out, rank) that
add lora_alpha/rank · B·A to `NAME.weight`; `lora_alpha` and `rank` stand in the files' metadata.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rrs_jax.config.shipped import shipped
from rrs_jax.errors import UserError
from rrs_jax.files import content_hash, write_json
from rrs_jax.mini.base import atomic_folder, ensure_base, locked, model_cache, source_of
from rrs_jax.mini.lazy_tensor import LazyTensor, write_tensors
from rrs_jax.mini.model_table import find_model
from rrs_jax.weights.safetensors_io import TensorEntry, read_folder, read_header

PATTERN = "bridge-*.safetensors"
LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"
TIED = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")


def ensure_model(name: str, cache: Path | None = None, bridge: Path | None = None) -> Path:
    """Returns the folder `NAME-HASH` in the model's cache, base and bridge merged; the first call makes it.

    name: of the model, `mini` or `small`. HASH is the bridge's. `cache` is as for `ensure_base`, `bridge` the
    folder with the bridge's files, by default the shipped one. Raises UserError where there is no bridge, its
    tensors do not fit the base, or `ensure_base` fails.
    """
    model = find_model(name)
    files = bridge_files(bridge or shipped("checkpoints") / name)
    base = ensure_base(name, cache)
    cache = model_cache(model, cache)
    # The base's source is part of the name: the hub's and the index's bases differ in their bits.
    digest = content_hash(*(file.read_bytes() for file in files), source_of(base))
    merged = cache / f"{name}-{digest}"
    if (merged / "SOURCE.json").is_file():
        return merged
    with locked(cache, name):
        if not (merged / "SOURCE.json").is_file():
            merge_bridge(base, files, merged)
    return merged


def bridge_files(folder: Path) -> list[Path]:
    """Returns the bridge's files in `folder`. Raises UserError where there is none."""
    if files := sorted(Path(folder).glob(PATTERN)):
        return files
    raise UserError(
        f"{folder}: holds no bridge ({PATTERN}); get it from the repository, "
        "or train one: python -m rrs_jax.mini.train_bridge --model=NAME --work=FOLDER"
    )


def merge_bridge(base: Path, files: list[Path], target: Path) -> None:
    """Writes the folder `target`: the base's files, with the bridge in its weights, in the base's dtype.

    Sums are taken in float32, one tensor at a time. Raises UserError naming every tensor of the bridge that
    does not fit.
    """
    entries = read_folder(base)
    whole, pairs, scale = read_bridge(files, entries)

    def merged(name: str, entry: TensorEntry) -> LazyTensor:
        def make() -> np.ndarray:
            values = whole.get(name, entry).array()
            if name not in pairs:
                return values
            lora_a, lora_b = (part.array().astype(np.float32) for part in pairs[name])
            return values.astype(np.float32) + scale * (lora_b @ lora_a)

        return LazyTensor(name, entry.shape, make)

    with atomic_folder(target) as folder:
        write_tensors(
            folder / "model.safetensors", [merged(*item) for item in entries.items()], "merging the bridge"
        )
        for file in base.iterdir():
            if file.suffix != ".safetensors":
                shutil.copyfile(file, folder / file.name)
        write_json(folder / "SOURCE.json", source_of(base) | {"bridge": [file.name for file in files]})


def read_bridge(
    files: list[Path], base: dict[str, TensorEntry]
) -> tuple[dict[str, TensorEntry], dict[str, tuple[TensorEntry, TensorEntry]], float]:
    """Reads a bridge's whole tensors, its LoRA pairs and their scale.

    Both dicts have the names of the base's tensors that they change. Raises UserError for what does not fit.
    """
    tensors: dict[str, TensorEntry] = {}
    metadata: dict[str, str] = {}
    for file in files:
        header = read_header(file)
        tensors |= header[0]
        metadata |= header[1]
    lora = {name for name in tensors if name.endswith((LORA_A, LORA_B))}
    whole = {name: tensors[name] for name in tensors.keys() - lora}
    pairs = {
        f"{stem}.weight": (tensors.get(stem + LORA_A), tensors.get(stem + LORA_B))
        for stem in sorted({name.removesuffix(LORA_A).removesuffix(LORA_B) for name in lora})
    }
    problems = [*_whole_problems(whole, base), *_pair_problems(pairs, base, metadata.get("rank"))]
    if lora and not {"lora_alpha", "rank"} <= metadata.keys():
        problems.append(f"the metadata {json.dumps(metadata)} lacks lora_alpha or rank")
    if problems:
        raise UserError(
            f"{files[0].parent}: the bridge does not fit the base: {'; '.join(problems)}; "
            "get it again from the repository or train it anew with python -m rrs_jax.mini.train_bridge."
        )
    scale = float(metadata["lora_alpha"]) / float(metadata["rank"]) if lora else 0.0
    return whole, pairs, scale


def _whole_problems(whole: dict[str, TensorEntry], base: dict[str, TensorEntry]) -> Iterator[str]:
    for name in sorted(whole):
        if name not in base or name in TIED:
            yield f"{name} is no tensor that a bridge changes"
        elif whole[name].shape != base[name].shape:
            yield f"{name} has the shape {whole[name].shape} in place of {base[name].shape}"


def _pair_problems(pairs: dict, base: dict[str, TensorEntry], rank: str | None) -> Iterator[str]:
    for name, pair in pairs.items():
        if None in pair:
            yield f"{name.removesuffix('.weight')} has only one of lora_A and lora_B"
        elif name not in base or name in TIED:
            yield f"{name} is no tensor that a bridge changes"
        else:
            (rows, width), (height, columns) = (part.shape for part in pair)
            if (height, width) != base[name].shape or rows != columns or str(rows) != rank:
                yield (
                    f"{name.removesuffix('.weight')} has LoRA shapes {(rows, width)} and {(height, columns)}"
                    f" that do not fit {base[name].shape} at rank {rank}"
                )
