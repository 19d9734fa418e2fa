"""One run's parts that several stages share, each made at the first call of its verb and kept."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rrs_jax.config.training import train_config
from rrs_jax.data.manifest import audio_paths, load_manifest
from rrs_jax.distributed.mesh import make_mesh
from rrs_jax.errors import UserError
from rrs_jax.evaluate.question_subset import chosen_rows
from rrs_jax.files import content_hash
from rrs_jax.frozen.audio_bank import AudioBank
from rrs_jax.frozen.prefix_states import PrefixStates, states_bytes
from rrs_jax.frozen.prefix_trees import make_trees
from rrs_jax.inputs.batching import EncodedPrompt, bucket_lengths, fixed_lengths
from rrs_jax.inputs.processor import Processor
from rrs_jax.models.flops import decoder_flops, program_price
from rrs_jax.models.lora import LoRA, LoRAConfig
from rrs_jax.progress import say
from rrs_jax.run.clips import clip_digest
from rrs_jax.run.folder import RunFolder
from rrs_jax.run.start_adapter import read_start
from rrs_jax.run.sweep_cache import SweepCache
from rrs_jax.run.training_set import TrainingSet
from rrs_jax.strategies.samples import Samples
from rrs_jax.train.resumption import restore
from rrs_jax.weights.base_name import published_name
from rrs_jax.weights.load import read_config, resolve_folder, shard_lora


def once(method: Callable) -> Callable:
    """A method whose value for each tuple of arguments is made at its first call and kept with the object."""
    name = f"_once_{method.__name__}"

    @functools.wraps(method)
    def kept(self, *arguments):
        made = self.__dict__.setdefault(name, {})
        if arguments not in made:
            made[arguments] = method(self, *arguments)
        return made[arguments]

    return kept


class RunContext:
    """A run's config, folder and cache, and verbs that load, encode and restore what its stages share.

    Attributes:
      cache: what the run shares with other runs of its sweep.
      prefix_states: lower layers' states by number of layers, from extraction to the end of training.
    """

    def __init__(self, config: ConfigDict, folder: RunFolder, cache: SweepCache | None = None):
        self.config, self.folder, self.cache = config, folder, cache or SweepCache()
        self.prefix_states: dict[int, PrefixStates | None] = {}

    @functools.cached_property
    def mesh(self) -> Mesh:
        return make_mesh(self.config.mesh.data, self.config.mesh.fsdp, self.config.mesh.tensor)

    @once
    def model_folder(self) -> Path:
        """The folder of `model.path`, fetched or made where it is not there yet.

        Raises UserError where it is not what the run began with.
        """
        folder = resolve_folder(self.config.model.path)
        self.folder.know_model(folder)
        return folder

    def model_digest(self) -> str:
        """Digest of the model folder's content, under whatever path it lies."""
        return self.folder.know_model(self.model_folder())

    def load_processor(self) -> Processor:
        return self.cache.processor(self.model_folder(), self.model_digest())

    def load_model(self) -> nnx.Module:
        """The vanilla model, frozen, without adapters."""
        model = self.config.model
        key = self.model_digest(), model.dtype, self.mesh, model.quantize
        return self.cache.vanilla(self.model_folder(), key)

    def fresh_adapters(self) -> nnx.Module:
        """A model with adapters that change nothing; the frozen arrays are the vanilla model's."""
        return with_lora(self.load_model(), lora_config(self.config), self.mesh, self.config.seed)

    def start_adapters(self) -> nnx.Module:
        """A model with the adapters from which training starts: those of `lora.start`, else fresh ones."""
        model, folder = self.fresh_adapters(), self.model_folder()
        base, _ = base_name(self.config, folder)
        start = read_start(self.config, lora_config(self.config), read_config(folder), base)
        if start is not None:
            start.put_into(model, self.mesh)
        return model

    @once
    def restore_adapters(self, checkpoint: int | str = "last") -> nnx.Module:
        """The model with its trained adapters, from the run's last checkpoint, its best, or that of a step.

        Raises UserError where there is none, or where it is of other settings or samples.
        """
        model, samples = self.fresh_adapters(), Samples(self.read_training_rows())
        sample_ids = [row["id"] for row in samples.rows]
        config = train_config(self.config)
        adapters = restore(
            model, config, sample_ids, samples.harmful, self.folder.path, checkpoint, self.training_digest()
        )
        nnx.update(model, adapters)
        return model

    def check_first_layer(self) -> None:
        """Raises UserError where `lora.layers` leaves no layer with an adapter."""
        text = self.load_model().config.text
        LoRA(lora_config(self.config), text.adapted_linears(), text.num_hidden_layers)

    @once
    def training_set(self) -> TrainingSet:
        return TrainingSet(self)

    @once
    def read_training_rows(self) -> list[dict]:
        return load_manifest(self.folder.manifest)

    @once
    def read_evaluation_rows(self) -> list[dict]:
        """The evaluation manifest's rows, at most `evaluate.limit` of each label."""
        return chosen_rows(load_manifest(self.folder.evaluation_manifest), self.config.evaluate.limit)

    @once
    def training_digest(self) -> str:
        """Digest of the model folder and the training clips, of which adapters come."""
        clips = audio_paths(self.folder.manifest, self.read_training_rows())
        return content_hash(self.model_digest(), list(map(clip_digest, clips)))

    @once
    def encode_clips(self, which: str) -> AudioBank:
        """Embeddings of the "training" or the "evaluation" questions' clips."""
        manifest, rows = {
            "training": (self.folder.manifest, self.read_training_rows),
            "evaluation": (self.folder.evaluation_manifest, self.read_evaluation_rows),
        }[which]
        rows = rows()
        if not all(row["audio"] for row in rows):
            raise AssertionError("the data stage gives every question a clip")
        return self.cache.audio_bank(
            self.load_model(),
            self.load_processor(),
            audio_paths(manifest, rows),
            batch_size=self.config.extract.batch_size,
            cache=self.folder.path / "data" / f"{which}_audio.safetensors",
            key=self.model_digest(),
        )

    def encode_prompt(
        self, bank: AudioBank, clips: Sequence[int], text: str | None, system: str | None = None
    ) -> EncodedPrompt:
        """One prompt's token ids with the places of its clips in the bank; `system` None is the model's
        own."""
        offsets, counts = bank.clips(clips)
        key = (self.model_digest(), text, tuple(counts), system)
        encoded = self.cache.encoded  # the pool's prompts come again for every clip of the same length
        if key not in encoded:
            encoded[key] = self.load_processor().encode(text, counts, system)
        return encoded[key], offsets, counts

    def modes(self) -> tuple[str, ...]:
        """Modes of `evaluate.modes` that the model has; the others are null in every table."""
        return modes_of(self.config, self.load_processor().prompt_format.modes)

    def buckets(self, lengths: Sequence[int], layers: int | None = None) -> tuple[int, ...]:
        """Lengths to which prompts are padded on their way through so many layers, by default all.

        In a sweep they are those that other runs' prompts share.
        """
        if self.cache.folder is not None:
            return fixed_lengths(lengths)
        price = program_price(decoder_flops(self.load_model().config.text, layers), self.mesh.size)
        return bucket_lengths(lengths, price=price)

    def make_prefix_states(
        self, layers: int, prompts: Sequence[EncodedPrompt], bank: AudioBank, *, keys_values: bool = False
    ) -> PrefixStates | None:
        """The states of these prompts behind so many layers, or None, and a sentence, where they are too
        large."""
        model, limit = self.load_model(), self.config.train.lower_states_gib
        trees = make_trees(model, prompts)
        needed = states_bytes(model, trees, layers if keys_values else 0) / 2**30
        if needed > limit:
            more = ", with their keys and values," if keys_values else ""
            say(
                f"train.lower_states_gib: the states behind the layers below {layers}{more} would take"
                f" {needed:.2f} GiB, more than {limit:g}; these layers are computed anew each time"
            )
            return None
        return PrefixStates(
            model,
            layers,
            trees,
            bank.array,
            batch_size=self.config.extract.batch_size,
            buckets=lambda lengths: self.buckets(lengths, layers),
            keys_values=keys_values,
        )


def base_name(config: ConfigDict, folder: Path) -> tuple[str | None, str]:
    """Returns the name under which the model in `folder` is published, None where none is known, and what
    says so."""
    if config.export.base_name is not None:
        return config.export.base_name, "export.base_name"
    return published_name(config.model.path, folder)


def lora_config(config: ConfigDict) -> LoRAConfig:
    """LoRA's settings of a run's config."""
    first_layer = 0 if config.lora.layers == "all" else config.lora.layers
    targets = None if config.lora.targets == ("all",) else tuple(config.lora.targets)
    rank, alpha, dropout = config.lora.rank, float(config.lora.alpha), float(config.lora.dropout)
    return LoRAConfig(rank, alpha, targets, first_layer, dropout)


def with_lora(vanilla: nnx.Module, lora: LoRAConfig, mesh: Mesh, seed: int) -> nnx.Module:
    """A model that shares the frozen arrays, with adapters at their start, as PEFT makes them from `seed`."""
    model = nnx.merge(*nnx.split(vanilla))
    text = model.config.text
    adapters = LoRA(lora, text.adapted_linears(), text.num_hidden_layers)
    adapters.initialise(jax.random.key(seed))
    model.lora = nnx.data(adapters)
    shard_lora(model, mesh)
    return model


def modes_of(config: ConfigDict, modes: Sequence[str]) -> tuple[str, ...]:
    """Modes of `evaluate.modes` that are among a model's. Raises UserError where none is left."""
    kept = tuple(mode for mode in config.evaluate.modes if mode in modes)
    if not kept:
        raise UserError(
            f"evaluate.modes: this model has no {' and no '.join(config.evaluate.modes)} mode; "
            f"choose among {', '.join(modes)}."
        )
    return kept
