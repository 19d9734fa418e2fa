"""Models, batches and meshes that all measurements share, and the file of lines that they write."""

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from common import AUDIO_START, AUDIO_TOKENS, GIB, SIZES
from flax import nnx
from jax.sharding import Mesh
from released_sizes import small

from rrs_jax.config.training import OptimiserConfig
from rrs_jax.distributed.mesh import AXES, make_mesh, parameter_sharding
from rrs_jax.models.architectures import part
from rrs_jax.models.batch import Batch
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.models.random_init import random_model
from rrs_jax.models.released import RELEASED
from rrs_jax.run.context import with_lora
from rrs_jax.strategies.rrs import RRS
from rrs_jax.train.step import Rows, TrainStep

LOSSES = 10  # steps whose losses are compared
ONE = (1, 1, 1)


@dataclasses.dataclass(frozen=True)
class Work:
    """What is computed: a model's name in `common.SIZES`, its dtype, rows and tokens of a batch, LoRA's rank,
    and the calls that one timing takes together."""

    model: str
    dtype: str
    batch: int
    length: int
    rank: int
    steps: int

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Work":
        """Sizes by the model: a CPU's are small."""
        small = is_small(options.model)
        return cls(
            model=options.model,
            dtype=options.dtype or ("float32" if small else "bfloat16"),
            batch=options.batch or 16,
            length=options.length or (112 if small else 144),
            rank=8,
            steps=2 if small else 5,
        )


def is_small(model: str) -> bool:
    """Says whether a model of `common.SIZES` is one for a CPU."""
    return model in ("tiny", "small", "mini", "omni-tiny")


class Lines:
    """Prints JSON lines as they are measured and appends them to a file, so that a cut call loses none."""

    def __init__(self, work: Work, out: Path | None):
        self.common = {
            "model": work.model,
            "dtype": work.dtype,
            "length": work.length,
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
        }
        self.out, self.start = out, time.perf_counter()

    def write(self, part: str, **facts) -> dict:
        line = {"part": part, **facts, "at": round(time.perf_counter() - self.start, 1)}
        print(json.dumps(line), flush=True)
        if self.out:
            with self.out.open("a") as file:
                file.write(json.dumps(self.common | line) + "\n")
        return line


def name_of(sizes: tuple[int, int, int]) -> str:
    """Returns a mesh's name, such as `data 2, tensor 4`; of a single device `one`."""
    return ", ".join(f"{axis} {n}" for axis, n in zip(AXES, sizes, strict=True) if n > 1) or "one"


def meshes_of(devices: int) -> list[tuple[int, int, int]]:
    """Returns the meshes over so many devices, those that need least memory first."""
    n = devices
    if n == 1:
        return []
    mixes = [(2, n // 2, 1), (1, n // 2, 2), (n // 2, 1, 2)] if n >= 4 else []
    mixes += [(2, 2, 2)] if n == 8 else []
    return [(1, n, 1), (1, 1, n), *mixes, (n, 1, 1)]


def mesh_over(sizes: tuple[int, int, int]) -> Mesh:
    """Returns a mesh over the first devices."""
    return make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])


def build(work: Work, mesh: Mesh) -> nnx.Module:
    """Returns the model without adapters, random weights in their shardings."""
    values = small(RELEASED["omni-7b"]) if work.model == "omni-tiny" else SIZES[work.model]
    model_class = part("models", values).MODEL
    config = model_class.config_class.from_hf(values)
    return random_model(lambda: model_class(config, dtype=jnp.dtype(work.dtype)), mesh=mesh)


def move(model: nnx.Module, mesh: Mesh) -> nnx.Module:
    """Returns the model on another mesh, parameter by parameter; the old arrays are given away."""
    graphdef, state = nnx.split(model)
    moved = []
    for path, leaf in nnx.to_flat_state(state):
        array = leaf[...]
        sharding = parameter_sharding(mesh, ".".join(map(str, path)), array.shape)
        placed = jax.block_until_ready(jax.device_put(array, sharding))
        if not {shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards} & {
            shard.data.unsafe_buffer_pointer() for shard in placed.addressable_shards
        }:
            array.delete()
        moved.append((path, leaf.replace(placed)))
    return nnx.merge(graphdef, nnx.from_flat_state(moved))


def clips(model: nnx.Module) -> jax.Array:
    """Returns the embeddings of one clip, (AUDIO_TOKENS, D)."""
    values = np.random.default_rng(1).standard_normal((AUDIO_TOKENS, model.config.text.hidden_size))
    return jnp.asarray(values, model.dtype)


def prompts(work: Work, rows: int, vocabulary: int, seed: int) -> Batch:
    """Returns prompts of random words around a clip, padded to one length; more rows begin with the fewer."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, min(vocabulary, 50_000), (rows, work.length)).astype(np.int32)
    index = np.full_like(ids, -1)
    index[:, AUDIO_START : AUDIO_START + AUDIO_TOKENS] = np.arange(AUDIO_TOKENS)
    lengths = np.random.default_rng((seed, 1)).integers(work.length - 8, work.length + 1, rows)
    return Batch(ids, lengths.astype(np.int32), index)


class Training:
    """A training step on a mesh, with `LOSSES` batches that are the same on every mesh."""

    def __init__(self, model: nnx.Module, work: Work, mesh: Mesh, rows: int, optimiser: OptimiserConfig):
        text = model.config.text
        adapted = with_lora(model, LoRAConfig(work.rank, 2.0 * work.rank, None), mesh, 0)
        targets = np.random.default_rng(2).standard_normal((rows, text.hidden_size)).astype(np.float32)
        self.strategy = RRS(targets, "mean")
        self.step = TrainStep(adapted, self.strategy, optimiser, mesh, 1000)
        self.bank = jax.device_put(clips(model), self.step.replicated)
        self.work, self.rows, self.vocabulary = work, rows, text.vocab_size

    def batch(self, number: int, order: slice = slice(None), parts: int = 1) -> list[Rows]:
        """Returns the micro-batches of a step, on the devices, their rows in the given order."""
        batch = prompts(self.work, self.rows, self.vocabulary, 100 + number)
        chosen = np.arange(self.rows)[order]
        found = []
        for some in np.split(chosen, parts):
            part_ = jax.tree.map(lambda leaf, some=some: leaf[some], batch)
            rows = Rows(part_, self.strategy.examples(some), some % 2 == 0, np.ones(len(some), np.float32))
            found.append(self.step.place(rows))
        return found

    def compile(self):
        """Returns the step's program."""
        return self.step.lower(self.step.init(), self.bank, self.batch(0)[0]).compile()

    def losses(self, state, numbers: range, order: slice = slice(None)) -> Iterator[tuple[object, float]]:
        """The state and the loss after each step."""
        for number in numbers:
            state, metrics, _ = self.step(state, self.bank, self.batch(number, order))
            yield state, float(metrics.loss)


def peaks_gib() -> list[float] | None:
    """Returns each device's highest use so far, in GiB; None where the devices do not tell."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if not all("peak_bytes_in_use" in one for one in stats):
        return None
    return [round(one["peak_bytes_in_use"] / GIB, 2) for one in stats]


def program_gib(program) -> dict[str, float]:
    """Returns GiB of one device that a program takes: its arguments, and what it needs besides."""
    memory = program.memory_analysis()
    besides = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "arguments_gib": round(memory.argument_size_in_bytes / GIB, 3),
        "temporary_gib": round(besides / GIB, 3),
    }


def relative(values: Mapping | list, others: list) -> float:
    """Returns the largest difference, relative to the others."""
    return float(np.max(np.abs(np.subtract(values, others)) / np.abs(others)))
