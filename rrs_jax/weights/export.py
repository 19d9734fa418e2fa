"""A trained LoRA in the forms that others load: a PEFT adapter, or the whole model with the adapter merged
in."""

import dataclasses
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from flax import nnx

from rrs_jax.errors import UserError
from rrs_jax.files import SUM, read_json, write_json
from rrs_jax.models.architectures import part
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.progress import Progress
from rrs_jax.weights.export_folder import MARKER, new_folder
from rrs_jax.weights.load import read_config, weight_table
from rrs_jax.weights.safetensors_io import (
    INDEX,
    WHOLE,
    TensorEntry,
    read_folder,
    save_file,
    shard_files,
    some_of,
)
from rrs_jax.weights.table import Layout, WeightTable

CHUNK = 16 * 1024 * 1024

# The base's weights in another form, or an adapter beside them: without the merge, they would contradict it.
OTHER_WEIGHTS = (
    "*.safetensors",
    "*.gguf",
    "pytorch_model*",
    "consolidated*",
    "tf_model*",
    "flax_model*",
    "adapter_*",
)


def export_adapter(
    model: nnx.Module,
    base_folder: Path,
    out: Path,
    *,
    base_name: str | None,
    layout: str = "auto",
    scale: float = 1.0,
) -> None:
    """Writes the model's LoRA as a PEFT folder, in float32.

    Args:
      base_folder: the folder from which the model was loaded.
      out: made anew; a folder there is replaced if an export made it.
      base_name: the hub id or path under which PEFT finds the base; with None the settings name none, and
        who loads the adapter gives it the model.
      layout: whose module names the keys have, one of the table's `layouts`; "auto" is the first. Where names
        do not match, PEFT leaves `lora_B` at zero with no more than a warning.
      scale: factor of what the adapter adds, by `lora_alpha`; the arrays stay as they were trained.
    Raises UserError where the LoRA does not fit the folder, is not finite, or cannot be written.
    """
    table = _table(model, base_folder)
    layers_name = layout_of(table, layout).layers
    adapters = _adapters(model, base_folder, table)
    tensors = {}
    for module, (lora_a, lora_b) in adapters.items():
        module = layers_name + module.removeprefix(table.layers)
        tensors[f"base_model.model.{module}.lora_A.weight"] = lora_a
        tensors[f"base_model.model.{module}.lora_B.weight"] = lora_b
    config = dataclasses.replace(model.lora.config, alpha=model.lora.config.alpha * scale)
    layers = range(config.first_layer, model.config.text.num_hidden_layers)
    size = sum(array.nbytes for array in tensors.values())
    with new_folder(
        out, base_folder, size, {"form": "adapter", "base": base_name, "layout": layout}
    ) as folder:
        save_file(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
        write_json(folder / "adapter_config.json", adapter_config(config, table, layers, base_name))


def adapter_config(config: LoRAConfig, table: WeightTable, layers: range, base_name: str | None) -> dict:
    """PEFT's configuration with the keys that every release since 0.9 knows, and no other.

    `layers` are the decoder layers that carry an adapter. `target_modules` selects exactly the modules in the
    file, under the names of every layout: a bare list of names would also put (zero) adapters into the audio
    encoder. It ends with a group of the names, the form that vLLM knows.
    """
    numbers = "[0-9]+" if layers.start == 0 else f"(?:{'|'.join(map(str, layers))})"
    alpha = int(config.alpha) if float(config.alpha).is_integer() else config.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": config.rank,
        "lora_alpha": alpha,
        "target_modules": rf"{table.layers_pattern}{numbers}\.{_modules_pattern(table, config.targets)}",
        "lora_dropout": config.dropout,  # of the training: who loads the adapter to answer drops nothing
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }


def layout_of(table: WeightTable, layout: str) -> Layout:
    """The layout of that name, or the first one for "auto". Raises UserError for one that the model lacks."""
    if layout != "auto" and layout not in table.layouts:
        raise UserError(
            f"export.layout: {layout} is not one of this model's; choose auto, {' or '.join(table.layouts)}."
        )
    return next(iter(table.layouts.values())) if layout == "auto" else table.layouts[layout]


def _modules_pattern(table: WeightTable, targets: Sequence[str]) -> str:
    """Matches the targets' paths within a layer: by their last names alone, unless others have those too."""
    paths = {target: key.split("{i}.")[1] for target, key in table.linears.items()}
    last = {target: path.rsplit(".", 1)[1] for target, path in paths.items()}
    wanted = list(dict.fromkeys(last[target] for target in targets))
    if any(last[target] in wanted for target in paths if target not in targets):
        return f"({'|'.join(re.escape(paths[target]) for target in targets)})"
    return rf"[a-z_]+\.({'|'.join(wanted)})"


def export_merged(model: nnx.Module, base_folder: Path, out: Path, *, scale: float = 1.0) -> None:
    """Writes the base's whole folder with W + scale·s·B·A in place of every weight W that carries an adapter,
    with s the adapter's own alpha / rank.

    The sum is computed in float32 and rounded to the base's dtype; every other byte of the weights is copied,
    as are an element's bits where B·A is zero. Tokenizer, processor, generation config and all other files
    come along; config.json says explicitly whether the head is tied, for the default differs between releases
    of transformers. Host memory holds the LoRA and a few rows of one tensor.

    Raises UserError where the LoRA does not fit the folder, a sum overflows the base's dtype, the disk has
    too little room, or `out` cannot be written or was not made by an export.
    """
    table = _table(model, base_folder)
    adapters = _adapters(model, base_folder, table)
    entries = read_folder(base_folder)
    shards = shard_files(base_folder)
    others = _other_files(base_folder)
    size = sum(file.stat().st_size for file in [*shards, *others])
    with (
        new_folder(out, base_folder, size, {"form": "merged"}) as folder,
        Progress(len(adapters), "merging the adapter", unit="tensors") as progress,
    ):
        for shard in shards:
            touched = {module: entries[f"{module}.weight"] for module in adapters}
            touched = {module: entry for module, entry in touched.items() if entry.file == shard}
            _merge_shard(
                shard, folder / shard.name, touched, adapters, scale * model.lora.config.scale, progress
            )
        for file in others:
            target = folder / file.relative_to(base_folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        _write_tied(folder / "config.json", model, table)


def _table(model: nnx.Module, base_folder: Path) -> WeightTable:
    values = read_config(base_folder)
    if not isinstance(model, part("models", values).MODEL):
        raise UserError(
            f"{base_folder}: holds another architecture than the trained model; give the model's own folder."
        )
    return weight_table(model.config, values, read_folder(base_folder))


def _adapters(
    model: nnx.Module, base_folder: Path, table: WeightTable
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Matrices lora_A (R, in) and lora_B (out, R), float32 as in torch, of each adapted module by its name on
    disk.

    Raises UserError where there is none, one is not finite, or the folder is not that of the model.
    """
    if model.lora is None:
        raise UserError("export: the model carries no LoRA; train one first.")
    entries, config = read_folder(base_folder), model.lora.config
    adapters, problems = {}, []
    for target in config.targets:
        pair = model.lora.pair(target)
        lora_a, lora_b = np.asarray(pair.lora_a[...]), np.asarray(pair.lora_b[...])
        for place in range(lora_a.shape[0]):
            module = table.linears[target].format(i=config.first_layer + place)
            a, b = lora_a[place].T, lora_b[place].T
            entry = entries.get(f"{module}.weight")
            if entry is None:
                problems.append(f"{module}.weight is missing")
            elif entry.shape != (b.shape[0], a.shape[1]):
                problems.append(
                    f"{module}.weight has the shape {entry.shape} in place of {(b.shape[0], a.shape[1])}"
                )
            if not (np.isfinite(a).all() and np.isfinite(b).all()):
                problems.append(f"the LoRA of {module} is not finite")
            adapters[module] = np.ascontiguousarray(a), np.ascontiguousarray(b)
    if problems:
        raise UserError(
            f"{base_folder}: the LoRA cannot be exported onto it: {some_of(problems)}. Give the folder that"
            " was trained."
        )
    return adapters


def _merge_shard(
    source: Path,
    target: Path,
    touched: dict[str, TensorEntry],
    adapters: dict,
    scale: float,
    progress: Progress,
) -> None:
    """Copies one shard, header and all, with new bytes in place of the touched tensors."""
    with source.open("rb") as original, target.open("wb") as copy:
        copy.write(_header_without_sum(original))
        for module, entry in sorted(touched.items(), key=lambda item: item[1].start):
            _copy_bytes(original, copy, entry.start - original.tell())
            weight, (lora_a, lora_b) = entry.array(), adapters[module]
            step = max(CHUNK // weight[0].nbytes, 1)
            for rows in (slice(start, start + step) for start in range(0, len(weight), step)):
                merged = merge(weight[rows], lora_a, lora_b[rows], scale)
                if not np.isfinite(merged.astype(np.float32)).all():
                    raise UserError(
                        f"{source}: {module}.weight with the LoRA merged in is not finite in {entry.dtype}; "
                        "use the adapter, or a base in float32 or bfloat16."
                    )
                copy.write(merged.view(np.uint8))
            original.seek(entry.end)
            progress.update()
        shutil.copyfileobj(original, copy, CHUNK)


def merge(weight: np.ndarray, lora_a: np.ndarray, lora_b: np.ndarray, scale: float) -> np.ndarray:
    """W (out, in) + scale · lora_b (out, R) · lora_a (R, in), computed in float32, in W's dtype."""
    delta = np.float32(scale) * (lora_b @ lora_a)
    wide = weight.astype(np.promote_types(np.float32, weight.dtype))
    with np.errstate(over="ignore"):  # the caller looks for what is not finite
        merged = (wide + delta).astype(weight.dtype)
    # -0.0 + 0.0 is +0.0: without the condition, an adapter of zeros would change bits.
    return np.where(delta == 0, weight, merged)


def _header_without_sum(shard: BinaryIO) -> bytes:
    """Reads a shard's header, and returns it as long as it was, without the sum of the base's numbers."""
    size = shard.read(8)
    header = shard.read(int.from_bytes(size, "little"))
    if SUM.encode() not in header:
        return size + header
    entries = json.loads(header)
    entries.get("__metadata__", {}).pop(SUM, None)
    return size + json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode().ljust(len(header))


def _copy_bytes(source: BinaryIO, target: BinaryIO, count: int) -> None:
    while count:
        data = source.read(min(count, CHUNK))
        target.write(data)
        count -= len(data)


def _other_files(folder: Path) -> list[Path]:
    """Files of a folder and its subfolders other than weights, an index without use, and hidden ones."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    if (folder / WHOLE).is_file():
        files = [file for file in files if file != folder / INDEX]  # readers of the export might believe it
    return [
        file
        for file in files
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and not any(file.match(pattern) for pattern in OTHER_WEIGHTS)
        and file.name != MARKER
    ]


def _write_tied(path: Path, model: nnx.Module, table: WeightTable) -> None:
    values = read_json(path)
    tied = (
        model.config_class.from_hf(values).text.tie_word_embeddings and model.config.text.tie_word_embeddings
    )
    for place in table.tied_at:
        fields = values
        for name in place:
            fields = fields.setdefault(name, {})
        fields["tie_word_embeddings"] = tied
    write_json(path, values)
