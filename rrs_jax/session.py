"""What the stages of a run share: model, processor, clips' embeddings, encoded prompts. All made on first use."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from rrs_jax.audio_bank import AudioBank, make_audio_bank
from rrs_jax.config import MINI
from rrs_jax.data.manifest import audio_paths, load_manifest
from rrs_jax.errors import UserError
from rrs_jax.inputs.processor import Processor
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.parallel import make_mesh
from rrs_jax.representations import Row
from rrs_jax.run_folder import RunFolder
from rrs_jax.weights.load import load_weights, resolve_folder


def enable_compilation_cache() -> None:
    """Keeps compiled programs between runs, in $RRS_JAX_CACHE/compiled or ~/.cache/rrs_jax/compiled."""
    folder = Path(os.environ.get("RRS_JAX_CACHE") or "~/.cache/rrs_jax").expanduser() / "compiled"
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def lora_config(config: ConfigDict) -> LoRAConfig:
    first_layer = 0 if config.lora.layers == "all" else config.lora.layers
    targets = None if config.lora.targets == ("all",) else tuple(config.lora.targets)
    return LoRAConfig(config.lora.rank, float(config.lora.alpha), targets, first_layer)


def modes_of(config: ConfigDict, modes: Sequence[str]) -> tuple[str, ...]:
    """Those of `evaluate.modes` that are among a model's. Raises UserError where none is left."""
    kept = tuple(mode for mode in config.evaluate.modes if mode in modes)
    if not kept:
        raise UserError(
            f"evaluate.modes: this model has no {' and no '.join(config.evaluate.modes)} mode; "
            f"choose among {', '.join(modes)}."
        )
    return kept


def without_lora(model: nnx.Module) -> nnx.Module:
    """The model before training: the same arrays, no adapters."""
    clone = nnx.merge(*nnx.split(model))
    clone.lora = None
    return clone


class Session:
    """One run's shared parts. `model` carries adapters at their start, until the train stage changes them."""

    def __init__(self, config: ConfigDict, folder: RunFolder):
        self.config, self.folder = config, folder

    @functools.cached_property
    def model_folder(self) -> Path:
        if self.config.model.path == MINI:
            from rrs_jax.mini.model import ensure_mini

            return ensure_mini()
        return resolve_folder(self.config.model.path)

    @functools.cached_property
    def processor(self) -> Processor:
        return Processor.from_folder(self.model_folder)

    @functools.cached_property
    def modes(self) -> tuple[str, ...]:
        """Those of `evaluate.modes` that the model has; the others are null in every table."""
        return modes_of(self.config, self.processor.prompt_format.modes)

    @functools.cached_property
    def mesh(self):
        return make_mesh(self.config.mesh.data, self.config.mesh.fsdp, self.config.mesh.tensor)

    @functools.cached_property
    def model(self) -> nnx.Module:
        lora = None if self.config.strategy == "vanilla" else lora_config(self.config)
        dtype = jnp.dtype(self.config.model.dtype)
        return load_weights(self.model_folder, dtype=dtype, lora=lora, mesh=self.mesh, seed=self.config.seed)

    @functools.cached_property
    def vanilla(self) -> nnx.Module:
        return without_lora(self.model)

    @functools.cached_property
    def training_rows(self) -> list[dict]:
        return load_manifest(self.folder.manifest)

    @functools.cached_property
    def evaluation_rows(self) -> list[dict]:
        """At most `evaluate.limit` of each set."""
        rows = load_manifest(self.folder.evaluation_manifest)
        limit = self.config.evaluate.limit or len(rows)
        sets = {label: [row for row in rows if row["label"] == label][:limit] for label in {row["label"] for row in rows}}
        return [row for row in rows if row in sets[row["label"]]]

    @functools.cached_property
    def training_bank(self) -> AudioBank:
        return self._bank(self.folder.manifest, self.training_rows, "training")

    @functools.cached_property
    def evaluation_bank(self) -> AudioBank:
        return self._bank(self.folder.evaluation_manifest, self.evaluation_rows, "evaluation")

    def encode(self, bank: AudioBank, clips: Sequence[int], text: str | None) -> Row:
        """One prompt's token ids with the places of its clips in the bank."""
        offsets, counts = bank.clips(clips)
        return self.processor.encode(text, counts), offsets, counts

    def _bank(self, manifest: Path, rows: list[dict], name: str) -> AudioBank:
        spoken = [row for row in rows if row["audio"]]
        if len(spoken) < len(rows):
            raise AssertionError("the data stage gives every question a clip")
        return make_audio_bank(
            self.vanilla, self.processor.mel, audio_paths(manifest, rows), batch_size=self.config.extract.batch_size,
            cache=self.folder.path / "data" / f"{name}_audio.safetensors", cache_key=str(self.model_folder),
        )  # fmt: skip
