"""A Hugging Face folder into a model: tensor by tensor, straight into its place and sharding."""

import dataclasses
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rrs_jax.distributed.mesh import make_mesh, parameter_sharding, put
from rrs_jax.errors import UserError
from rrs_jax.files import read_json, reading
from rrs_jax.models.architectures import check_architecture, part
from rrs_jax.models.audio_language_model import AudioLanguageModel
from rrs_jax.models.hf_config import check_sizes
from rrs_jax.models.lora import LoRAConfig, LoRAParam
from rrs_jax.models.quantised import Float8, Int8
from rrs_jax.weights.finite import is_finite, tensors_not_finite
from rrs_jax.weights.hub import fetch, is_hub_id
from rrs_jax.weights.named_models import NAMED_MODELS, is_named, named_folder
from rrs_jax.weights.safetensors_io import TensorEntry, read_folder, some_of
from rrs_jax.weights.table import Row, WeightTable, as_on_disk, keep, transpose

TILE = 256  # rows and columns of a matrix that is turned while it is copied
READERS = 4  # threads that copy out of the memory map: one alone waits for the disk page by page


def check_path(path: str) -> None:
    """Raises UserError where `path` is no named model, no folder and not of a hub id's form; nothing is
    fetched."""
    if not is_named(path) and not Path(path).is_dir() and not is_hub_id(path):
        raise UserError(
            f"model.path: {path} is no folder; give a Hugging Face model folder, a hub id OWNER/NAME, or"
            f" {' or '.join(NAMED_MODELS)}."
        )


def resolve_folder(path: str) -> Path:
    """A named model's folder, a local one, or a hub id's through `huggingface_hub`. Raises UserError where
    none is there."""
    path = os.path.expanduser(path)
    check_path(path)
    if is_named(path):
        return named_folder(path)
    if Path(path).is_dir():
        return Path(path)
    return fetch(path)


def read_config(folder: Path) -> dict:
    """The folder's config.json. Raises UserError where there is none, or for an architecture that is not
    known."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: holds no config.json; give a Hugging Face model folder.")
    values = read_json(folder / "config.json")
    check_architecture(values, folder / "config.json")
    return values


def model_config(values: dict):
    """The sizes of a config.json's model. Raises UserError for values that no model has."""
    with reading("config.json", "take it from the same model as the weights"):
        config = part("models", values).MODEL.config_class.from_hf(values)
        check_sizes(config)
    return config


def abstract_model(
    values: dict,
    dtype,
    lora: LoRAConfig | None = None,
    entries: dict[str, TensorEntry] | None = None,
    quantize: str = "none",
) -> tuple[nnx.Module, WeightTable]:
    """The model of a config.json with shapes in place of arrays, and its weight table.

    With the folder's tensors at hand, they and not the config say whether the head is tied: releases of
    transformers differ in the flag's default, and in whether a tied head is stored.
    """
    model_class = part("models", values).MODEL
    config = model_config(values)
    if entries is not None:
        if config.text.num_hidden_layers > 1000 + len(entries):  # which would be listed one by one
            raise UserError(
                f"config.json: num_hidden_layers is {config.text.num_hidden_layers}, and the weights are"
                f" {len(entries)} tensors; take both from the same model."
            )
        table = weight_table(config, values, entries)
        tied = config.text.tie_word_embeddings and table.head not in entries or _same_bytes(table, entries)
        config = dataclasses.replace(config, text=dataclasses.replace(config.text, tie_word_embeddings=tied))
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, quantize=quantize))
    return nnx.eval_shape(lambda: model_class(config, dtype=dtype, lora=lora)), weight_table(
        config, values, entries or ()
    )


def weight_table(config, values: dict, names: Collection[str]) -> WeightTable:
    """The table of a folder: `config` the model's, `values` the content of config.json, `names` of its
    tensors (none where they are not known)."""
    table = part("weights", values).weight_table(config, values, names)
    return as_on_disk(table, ("language_model", "layers")) if config.text.quantize == "float8" else table


def _same_bytes(table: WeightTable, entries: dict[str, TensorEntry]) -> bool:
    head, embedding = entries.get(table.head), entries.get(table.embedding)
    if head is None or embedding is None or (head.dtype, head.shape) != (embedding.dtype, embedding.shape):
        return False
    one, other, step = head.array().view(np.uint8), embedding.array().view(np.uint8), 1024
    return all(np.array_equal(one[i : i + step], other[i : i + step]) for i in range(0, len(one), step))


def load_weights(
    folder: Path,
    *,
    dtype=jnp.float32,
    lora: LoRAConfig | None = None,
    mesh: Mesh | None = None,
    seed: int = 0,
    quantize: str = "none",
) -> AudioLanguageModel:
    """The model of a folder, each parameter in its sharding over `mesh` (default: all devices as `data`).

    quantize: `int8` and `float8` keep the decoder's matrices in 8 bit (`rrs_jax.models.quantised`), `none` in
      `dtype`.

    Host memory holds the mapped pages of a shard and one stacked tensor at a time. LoRA starts as PEFT starts
    it, from `seed`. Raises UserError naming every missing, surplus and misshapen tensor before one is read,
    and every tensor with NaN or infinite numbers.
    """
    mesh = mesh or make_mesh()
    values = read_config(folder)
    entries = read_folder(folder)
    model, table = abstract_model(values, dtype, lora, entries, quantize)
    graphdef, lora_state, state = nnx.split(model, LoRAParam, ...)
    flat = {tuple(path): leaf for path, leaf in nnx.to_flat_state(state)}
    check_tensors(folder, table, entries, flat)

    # Each row, and whether its parameter is finite, which the devices find meanwhile.
    checked = [(row, _read_parameter(flat, row, entries, dtype, mesh)) for row in table.rows]
    if names := tensors_not_finite(checked):
        raise UserError(
            f"{folder}: NaN or infinite numbers in {len(names)} of the tensors ({some_of(names)}), with which"
            " no answer is one; download the folder again, or save it again in bfloat16 or float32."
        )
    flat_lora = nnx.to_flat_state(lora_state)
    zeros = [(path, leaf.replace(jnp.zeros(leaf.shape, leaf.dtype))) for path, leaf in flat_lora]
    model = nnx.merge(graphdef, nnx.from_flat_state(zeros), nnx.from_flat_state(flat.items()))
    if lora is not None:
        model.lora.initialise(jax.random.key(seed))
        shard_lora(model, mesh)
    return model


def _read_parameter(flat: dict, row: Row, entries: dict[str, TensorEntry], dtype, mesh: Mesh) -> jax.Array:
    """Puts a row's tensors into `flat`, rounded to 8 bit with a scale where its parameter is; returns whether
    they were finite, as `is_finite` does."""
    leaf = flat[row.path]
    sharding = parameter_sharding(mesh, ".".join(row.path), leaf.shape)
    array = _read_stacked(row, entries, leaf.shape, dtype, sharding)
    finite = is_finite(array, row.layers is not None, mesh)
    small = {jnp.dtype(jnp.int8): Int8, jnp.dtype(jnp.float8_e4m3fn): Float8}.get(leaf.dtype)
    if small is not None:
        place = (*row.path[:-1], "scale")
        scale_sharding = parameter_sharding(mesh, ".".join(place), flat[place].shape)
        rounded = jax.jit(small.of, out_shardings=small(sharding, scale_sharding))(array)
        array, scale = jax.tree.leaves(rounded)
        flat[place] = flat[place].replace(scale)
    flat[row.path] = leaf.replace(array)
    return finite


def shard_lora(model: nnx.Module, mesh: Mesh) -> None:
    """Puts the adapters where the partition rules want them."""
    state = nnx.state(model, LoRAParam)
    placed = [
        (path, leaf.replace(put(leaf[...], parameter_sharding(mesh, ".".join(map(str, path)), leaf.shape))))
        for path, leaf in nnx.to_flat_state(state)
    ]
    nnx.update(model, nnx.from_flat_state(placed))


def check_tensors(folder: Path, table: WeightTable, entries: dict[str, TensorEntry], flat: dict) -> None:
    """Raises UserError where names, shapes or dtypes of tensors are not those of the architecture."""
    problems, expected = [], {table.head}
    for row in table.rows:
        shape = flat[row.path].shape[1:] if row.layers else flat[row.path].shape
        wanted = row.shape_on_disk(shape)
        for name in row.names():
            expected.add(name)
            if name not in entries:
                problems.append(f"{name} is missing")
            elif entries[name].shape != wanted:
                problems.append(f"{name} has the shape {entries[name].shape} in place of {wanted}")
            elif not jnp.issubdtype(entries[name].dtype, jnp.floating):
                problems.append(
                    f"{name} has the dtype {entries[name].dtype}; quantised weights are not supported"
                )
    problems += [
        f"{name} is surplus" for name in sorted(entries.keys() - expected) if not table.is_carried(name)
    ]
    if problems:
        raise UserError(
            f"{folder}: the weights do not fit config.json: {some_of(problems)}. Download the folder again."
        )


def _read_stacked(
    row: Row, entries: dict[str, TensorEntry], shape: tuple[int, ...], dtype, sharding
) -> jax.Array:
    """One parameter on its devices. For a GPU, a matrix that is transposed on disk is read as it lies there,
    which is a plain copy, and turned on the devices: one core turns half a gigabyte a second."""
    if row.convert is not transpose or not _turned_by_devices():
        return _read(row, entries, shape, dtype, sharding)
    first = int(row.layers is not None)
    axes = (*range(first), *range(first, len(shape))[::-1])
    spec = (*sharding.spec, *[None] * (len(shape) - len(sharding.spec)))
    lying = NamedSharding(sharding.mesh, PartitionSpec(*(spec[axis] for axis in axes)))
    array = _read(
        dataclasses.replace(row, convert=keep), entries, tuple(shape[axis] for axis in axes), dtype, lying
    )
    return jax.jit(lambda x: x.transpose(axes), out_shardings=sharding)(array).block_until_ready()


def _turned_by_devices() -> bool:
    return jax.default_backend() != "cpu"


def _read(row: Row, entries: dict[str, TensorEntry], shape: tuple[int, ...], dtype, sharding) -> jax.Array:
    """One parameter on its devices. Each device's slice is read from the memory map on its own, and slices
    that several devices hold are read once."""
    parts: dict[str, np.ndarray] = {}

    def slice_of(index: tuple[slice, ...]) -> np.ndarray:
        key = str(index)
        if key not in parts:
            parts[key] = _read_slice(row, entries, index, dtype)
        return parts[key]

    # Host memory would hold several stacked tensors if the next one were read while this one is on its way.
    return jax.make_array_from_callback(shape, sharding, slice_of).block_until_ready()


def _read_slice(row: Row, entries: dict[str, TensorEntry], index: tuple[slice, ...], dtype) -> np.ndarray:
    if row.layers is None:
        tensor = row.read(entries[row.name].array())[index]
        part = np.empty(tensor.shape, dtype)
        pieces = [(part, tensor)]
        if tensor.ndim:
            pieces = zip(np.array_split(part, READERS), np.array_split(tensor, READERS), strict=True)
    else:
        layers = range(row.layers)[index[0]]
        tensors = [row.read(entries[row.name.format(i=i)].array())[index[1:]] for i in layers]
        part = np.empty((len(layers), *tensors[0].shape), dtype)
        pieces = zip(part, tensors, strict=True)
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(lambda pair: _copy(*pair), pieces))
    return part


def _copy(target: np.ndarray, source: np.ndarray) -> None:
    """Copies an array into another. Numbers of the same kind are copied as plain integers, for which NumPy
    lets go of Python's lock whatever they are."""
    if source.dtype == target.dtype and source.ndim:
        plain = f"u{source.itemsize}"
        target, source = target.view(plain), source.view(plain)
    if source.ndim != 2 or source.flags.c_contiguous:
        target[...] = source
        return
    for i in range(0, source.shape[0], TILE):  # twice as fast where a tile fits into the processor's cache
        for j in range(0, source.shape[1], TILE):
            target[i : i + TILE, j : j + TILE] = source[i : i + TILE, j : j + TILE]
