"""Names, shapes and random values of a model's tensors, and the shards that hold them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax import nnx

from rrs_jax.files import write_json
from rrs_jax.weights.load import abstract_model
from rrs_jax.weights.safetensors_io import save_file


def tensors_of(values: dict, dtype: str) -> list[tuple[str, np.dtype, tuple[int, ...]]]:
    """Returns name on disk, dtype and shape of every tensor that is loaded for the config.json `values`."""
    model, table = abstract_model(values, dtype)
    shapes = {
        tuple(path): (leaf.shape, np.dtype(leaf.dtype))
        for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }
    tensors: dict[str, tuple[str, np.dtype, tuple[int, ...]]] = {}
    for row in table.rows:
        shape, kind = shapes[row.path]
        shape = row.shape_on_disk(shape[1:] if row.layers else shape)
        tensors |= {name: (name, kind, shape) for name in row.names()}
    return list(tensors.values())


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Draws every tensor, norms and biases too, so that one that is not used shows in the numbers.

    Args:
      shapes: name to shape.
      seed: equal seeds give equal tensors, whatever the order of the names.

    Returns:
      Name to float32 array: matrices have the standard deviation 1/sqrt(last axis), vectors 0.1, around 1
      where they are the weight of a norm.
    """
    rng, tensors = np.random.default_rng(seed), {}
    for name, shape in sorted(shapes.items()):
        scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.1
        norm = name.endswith(".weight") and len(shape) == 1
        tensors[name] = (rng.normal(size=shape) * scale + norm).astype(np.float32)
    return tensors


def write_shards(folder: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes the tensors as two safetensors shards and their index, as large models are published."""
    names = sorted(tensors)
    files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    parts = names[: len(names) // 2], names[len(names) // 2 :]
    for file, part in zip(files, parts, strict=True):
        save_file(folder / file, {name: tensors[name] for name in part}, {"format": "pt"})
    weight_map = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
