"""The dry run: what a run would do, its size, and about how long it takes. Nothing is loaded or written."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from rrs_jax.config import flatten
from rrs_jax.config.stages import STAGES
from rrs_jax.config.strategy_table import STRATEGY_TABLE
from rrs_jax.distributed.memory import device_memory, free_memory
from rrs_jax.distributed.mesh import make_mesh, rows_multiple
from rrs_jax.errors import UserError
from rrs_jax.mini.model_table import find_model
from rrs_jax.models.architectures import part
from rrs_jax.models.lora import LoRAParam
from rrs_jax.run.context import lora_config, modes_of
from rrs_jax.run.estimates import (
    EFFICIENCY,
    DeviceRate,
    Sizes,
    answers_in_flight,
    count_questions,
    measure_device,
    memory_bytes,
    stage_seconds,
)
from rrs_jax.run.folder import stage_is_done
from rrs_jax.run.start_adapter import read_start
from rrs_jax.weights.load import abstract_model, check_path, read_config
from rrs_jax.weights.named_models import is_named

GENERATION = "answers in flight"  # of `DryRun.memory`


@dataclasses.dataclass(frozen=True)
class DryRun:
    """`done` and `seconds` by stage; parameter counts; `memory` and `memory_there` in bytes of one device."""

    done: dict[str, bool]
    seconds: dict[str, float]
    sizes: Sizes
    steps: int
    responses: int
    in_flight: int
    frozen: int
    trainable: int
    memory: dict[str, float]
    memory_there: float
    rate: DeviceRate
    devices: str

    @property
    def memory_needed(self) -> float:
        """Training and generation follow one another, so the larger of the two counts."""
        training, generation = (self.memory["activations of a training step"], self.memory[GENERATION])
        return sum(self.memory.values()) - min(training, generation)


def print_plan(config: ConfigDict, stages: Sequence[str]) -> None:
    print(format_plan(make_plan(config, stages), config))


def make_plan(config: ConfigDict, stages: Sequence[str], rate: DeviceRate | None = None) -> DryRun:
    """Reads small files: the model's config.json (fetched for a hub id), manifests, the run folder's marks.

    rate: of the device; measured where it is None.
    Raises UserError for a model, LoRA target, start, mesh or manifest that a run would refuse.
    """
    trained = STRATEGY_TABLE[config.strategy].trains
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    if trained:
        _check_batch(config, mesh)
    dtype = jnp.dtype(config.model.dtype)
    values = model_config(config.model.path)
    lora = lora_config(config) if trained else None
    model, _ = abstract_model(values, dtype, lora, quantize=config.model.quantize)
    if lora is not None:
        read_start(config, lora, values)
    _, adapter, frozen = nnx.split(model, LoRAParam, ...)
    adapter, frozen = _leaves(adapter), _leaves(frozen)
    folder = Path(config.run_dir)
    written = folder / "data" / "manifest.jsonl", folder / "data" / "eval" / "manifest.jsonl"
    sizes = count_questions(config, *written)
    modes = modes_of(config, part("inputs", values).FORMAT.modes)
    queries = sizes.harmful * len(modes)
    queries += sizes.harmless * len(set(modes) & set(config.evaluate.over_refusal_modes))
    responses = queries * config.evaluate.samples * (2 if trained and config.evaluate.vanilla else 1)
    memory = memory_bytes(config, model.config, frozen, adapter, sizes, mesh)
    free = free_memory(mesh) - sum(memory.values()) + memory["activations of a training step"]
    in_flight, memory[GENERATION] = answers_in_flight(config, model.config.text, sizes, queries, mesh, free)
    rate = rate or measure_device(dtype)
    seconds = stage_seconds(config, model.config, sizes, responses, in_flight, rate, mesh.size)
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    return DryRun(
        done={name: stage_is_done(folder, name, flatten(config)) for name in stages},
        seconds={name: seconds[name] for name in stages},
        sizes=sizes,
        steps=math.ceil(sizes.train / config.train.batch_size) * config.train.epochs if trained else 0,
        responses=responses,
        in_flight=in_flight,
        frozen=sum(math.prod(leaf.shape) for _, leaf in frozen),
        trainable=sum(math.prod(leaf.shape) for _, leaf in adapter),
        memory=memory,
        memory_there=device_memory(),
        rate=rate,
        devices=f"{mesh.size} × {jax.devices()[0].device_kind} ({axes})",
    )


def _check_batch(config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
    multiple = rows_multiple(mesh) * config.train.gradient_accumulation
    if config.train.batch_size % multiple:
        raise UserError(
            f"train.batch_size: {config.train.batch_size} is no multiple of mesh.data × mesh.fsdp × "
            f"train.gradient_accumulation = {multiple}; change one of them."
        )


def model_config(path: str) -> dict:
    """config.json of a folder, of a hub id, or of a small model, made or not."""
    if is_named(path):
        return find_model(path).config()
    if Path(path).is_dir():
        return read_config(Path(path))
    check_path(path)
    from huggingface_hub import hf_hub_download

    try:
        file = hf_hub_download(path, "config.json")
    except Exception as error:  # huggingface_hub raises a dozen kinds, all of which mean: not to be had
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"model.path: {path} is no folder and could not be fetched from the hub ({reason})."
        ) from error
    return read_config(Path(file).parent)


def format_plan(plan: DryRun, config: ConfigDict) -> str:
    sizes, rate = plan.sizes, plan.rate
    everyday = f", {sizes.everyday} everyday" if sizes.everyday else ""
    sets = f"{sizes.harmful} harmful, {sizes.benign} benign{everyday} and {sizes.borderline} borderline"
    lines = [
        f"run        {config.run_dir}: {config.strategy} on {config.model.path} in {config.model.dtype}",
        f"model      {plan.frozen:,} parameters frozen, {plan.trainable:,} trained",
        (
            f"devices    {plan.devices}; measured on one: "
            f"{rate.flops / 1e12:.3g} TFLOP/s, {rate.bandwidth / 1e9:.3g} GB/s"
        ),
        f"questions  {sizes.train} to train on; {sets} to evaluate; about {sizes.tokens} tokens each",
        f"steps      {plan.steps} of {config.train.batch_size} questions",
        (
            f"answers    {plan.responses} of at most {config.generate.max_new_tokens} tokens,"
            f" {plan.in_flight} in flight at once"
        ),
        "",
        f"{'stage':<10}{'state':<8}{'estimate':>9}  gives",
    ]
    for name, done in plan.done.items():
        estimate = "" if done else duration(plan.seconds[name])
        lines.append(f"{name:<10}{'done' if done else 'to do':<8}{estimate:>9}  {STAGES[name].what}")
    total = duration(sum(plan.seconds[name] for name, done in plan.done.items() if not done))
    lines += [
        f"{'sum':<18}{total:>9}  at {EFFICIENCY:.0%} of the measured rate, as if no answer ended early;",
        f"{'':<29}loading and compilation are not in it",
        "",
        "memory of one device (estimate)",
    ]
    for what, size in plan.memory.items():
        lines.append(f"{size / 2**30:>16.2f} GiB  {what}")
    verdict = "it fits"
    if plan.memory_needed > plan.memory_there:
        verdict = (
            "IT DOES NOT FIT: lower train.batch_size or generate.batch_size, raise"
            " train.gradient_accumulation, set train.remat=full or model.quantize=int8 or float8, or cut"
            " weights with mesh.fsdp"
        )
    lines.append(f"{plan.memory_needed / 2**30:>16.2f} GiB  at the same time")
    lines.append(f"{plan.memory_there / 2**30:>16.2f} GiB  are there: {verdict}")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _leaves(state: nnx.State) -> list[tuple[str, jax.ShapeDtypeStruct]]:
    return [(".".join(map(str, path)), leaf) for path, leaf in nnx.to_flat_state(state)]
