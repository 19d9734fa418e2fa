"""What the stages of a run share: model, processor, clips' embeddings, encoded prompts. All made on first
use."""

import functools
import os
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from flax import nnx
from ml_collections import ConfigDict

from rrs_jax.config.strategy_table import STRATEGY_TABLE
from rrs_jax.data.manifest import audio_paths, load_manifest
from rrs_jax.distributed.mesh import make_mesh
from rrs_jax.errors import UserError
from rrs_jax.evaluate.question_subset import chosen_rows
from rrs_jax.frozen.audio_bank import AudioBank
from rrs_jax.frozen.prefix_states import PrefixStates, make_trees, states_bytes
from rrs_jax.inputs.batching import EncodedPrompt, bucket_lengths, fixed_lengths
from rrs_jax.inputs.processor import Processor
from rrs_jax.models.flops import decoder_flops, program_price
from rrs_jax.models.lora import LoRA, LoRAConfig
from rrs_jax.progress import say
from rrs_jax.run.folder import RunFolder
from rrs_jax.run.sweep_cache import Shared
from rrs_jax.weights.load import resolve_folder, shard_lora


def enable_compilation_cache() -> None:
    """Keeps compiled programs between runs, in $RRS_JAX_CACHE/compiled or ~/.cache/rrs_jax/compiled."""
    folder = Path(os.environ.get("RRS_JAX_CACHE") or "~/.cache/rrs_jax").expanduser() / "compiled"
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(folder))
    # Small programs too: a sweep's processes need hundreds of them, and each takes longer to compile than to
    # read.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


class CompileClock:
    """Seconds in which this process was making programs for its devices, or reading them from the cache;
    those that are made side by side count once."""

    EVENTS = ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration")

    def __init__(self):
        self.seconds, self.programs, self._until = 0.0, 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, seconds: float, **_) -> None:
        if event in self.EVENTS:
            now = time.monotonic()
            self.seconds += max(now - max(now - seconds, self._until), 0.0)
            self._until = now
            self.programs += event == self.EVENTS[1]


@functools.cache
def compile_clock() -> CompileClock:
    return CompileClock()


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


def with_lora(vanilla: nnx.Module, lora: LoRAConfig, mesh, seed: int) -> nnx.Module:
    """The model with adapters at their start, as PEFT makes them from `seed`; the frozen arrays are
    shared."""
    model = nnx.merge(*nnx.split(vanilla))
    text = model.config.text
    adapters = LoRA(lora, text.adapted_linears(), text.num_hidden_layers)
    adapters.initialise(jax.random.key(seed))
    model.lora = nnx.data(adapters)
    shard_lora(model, mesh)
    return model


class Session:
    """One run's shared parts. `model` carries adapters at their start, until the train stage changes them."""

    def __init__(self, config: ConfigDict, folder: RunFolder, shared: Shared | None = None):
        self.config, self.folder, self.shared = config, folder, shared or Shared()
        # By number of layers, from extraction to training: `rrs_jax.run.training_set.Work.prefix_states`.
        self.prefix_states: dict[int, PrefixStates | None] = {}

    @functools.cached_property
    def model_folder(self) -> Path:
        return resolve_folder(self.config.model.path)

    @functools.cached_property
    def processor(self) -> Processor:
        return self.shared.processor(self.model_folder)

    @functools.cached_property
    def modes(self) -> tuple[str, ...]:
        """Those of `evaluate.modes` that the model has; the others are null in every table."""
        return modes_of(self.config, self.processor.prompt_format.modes)

    @functools.cached_property
    def mesh(self):
        return make_mesh(self.config.mesh.data, self.config.mesh.fsdp, self.config.mesh.tensor)

    @functools.cached_property
    def model(self) -> nnx.Module:
        if not STRATEGY_TABLE[self.config.strategy].trains:
            return self.vanilla
        return with_lora(self.vanilla, lora_config(self.config), self.mesh, self.config.seed)

    @functools.cached_property
    def vanilla(self) -> nnx.Module:
        return self.shared.vanilla(
            self.model_folder, self.config.model.dtype, self.mesh, self.config.model.quantize
        )

    @functools.cached_property
    def training_rows(self) -> list[dict]:
        return load_manifest(self.folder.manifest)

    @functools.cached_property
    def evaluation_rows(self) -> list[dict]:
        """The evaluation manifest's rows, at most `evaluate.limit` of each label."""
        rows = load_manifest(self.folder.evaluation_manifest)
        return chosen_rows(rows, self.config.evaluate.limit)

    @functools.cached_property
    def training_bank(self) -> AudioBank:
        return self._bank(self.folder.manifest, self.training_rows, "training")

    @functools.cached_property
    def evaluation_bank(self) -> AudioBank:
        return self._bank(self.folder.evaluation_manifest, self.evaluation_rows, "evaluation")

    def buckets(self, lengths: Sequence[int], layers: int | None = None) -> tuple[int, ...]:
        """To what prompts are padded on their way through so many layers, by default all; in a sweep to
        lengths that other runs' prompts share."""
        if self.shared.folder is not None:
            return fixed_lengths(lengths)
        price = program_price(decoder_flops(self.vanilla.config.text, layers), self.mesh.size)
        return bucket_lengths(lengths, price=price)

    def make_prefix_states(
        self, layers: int, rows: Sequence[EncodedPrompt], bank: AudioBank, *, keys_values: bool = False
    ) -> PrefixStates | None:
        """The states of these prompts behind so many layers, or None, and a sentence, where they are too
        large."""
        trees, limit = make_trees(self.vanilla, rows), self.config.train.lower_states_gib
        needed = states_bytes(self.vanilla, trees, layers if keys_values else 0) / 2**30
        if needed > limit:
            more = ", with their keys and values," if keys_values else ""
            say(
                f"train.lower_states_gib: the states behind the layers below {layers}{more} would take"
                f" {needed:.2f} GiB, more than {limit:g}; these layers are computed anew each time"
            )
            return None
        return PrefixStates(
            self.vanilla,
            layers,
            trees,
            bank.array,
            batch_size=self.config.extract.batch_size,
            buckets=lambda lengths: self.buckets(lengths, layers),
            keys_values=keys_values,
        )

    def encode(
        self, bank: AudioBank, clips: Sequence[int], text: str | None, system: str | None = None
    ) -> EncodedPrompt:
        """One prompt's token ids with the places of its clips in the bank. `system`: None for the model's
        own."""
        offsets, counts = bank.clips(clips)
        key = (self.model_folder, text, tuple(counts), system)
        if key not in self.shared.encoded:  # the pool's prompts come again for every clip of the same length
            self.shared.encoded[key] = self.processor.encode(text, counts, system)
        return self.shared.encoded[key], offsets, counts

    def _bank(self, manifest: Path, rows: list[dict], name: str) -> AudioBank:
        spoken = [row for row in rows if row["audio"]]
        if len(spoken) < len(rows):
            raise AssertionError("the data stage gives every question a clip")
        return self.shared.audio_bank(
            self.vanilla,
            self.processor,
            audio_paths(manifest, rows),
            batch_size=self.config.extract.batch_size,
            cache=self.folder.path / "data" / f"{name}_audio.safetensors",
        )
