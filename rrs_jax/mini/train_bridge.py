"""Trains the bridge of a small real model: `python -m rrs_jax.mini.train_bridge --model=small --work=FOLDER`.

The questions, their answers and their speech lie in the work folder and are made once; the bridge is
`FOLDER/bridge-*.safetensors`, and belongs into `checkpoints/MODEL/`. A training that was stopped goes on from
the last bridge, also on another machine that has nothing but these files and `progress.json`: the data are
made again from the seed. With `data.jsonl` (12 MB) beside them the decoder asks and answers nothing again:
`features.safetensors` (gigabytes) is spoken from it, with the same --seed and hibari-tts byte for byte.
`python -m rrs_jax.mini.measure` gives the figures of its model card.

By XLA's account for a CPU, not measured on a GPU, a step of `small` takes about 19 GiB beside its 3 GiB of
parameters and moments; with --memory=48 about 45, and it computes nothing of the decoder twice.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from rrs_jax.config.kinds import integer, with_home
from rrs_jax.errors import exit_status
from rrs_jax.files import Named, atomic_path, read_json, read_jsonl, write_json
from rrs_jax.inputs.processor import Processor
from rrs_jax.mini import bridge_data
from rrs_jax.mini.base import ensure_base
from rrs_jax.mini.bridge_examples import ANSWER_TOKENS, Examples
from rrs_jax.mini.bridge_step import Bridge, LossWeights, is_trained, make_step
from rrs_jax.progress import Progress
from rrs_jax.weights.load import load_weights, read_config, weight_table
from rrs_jax.weights.safetensors_io import read_folder, read_header, save_file
from rrs_jax.weights.table import Row

SAVE_EVERY = 250  # steps
WARMUP = 100  # steps, at the beginning and wherever training goes on
FIRST_REPEAT = 0.8  # share of batches that are repeated in the first fifth, until words are heard
ENCODER_RATE = 0.2  # of the projector's rate: the encoder begins trained


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after one sentence on standard error for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m rrs_jax.mini.train_bridge",
        description="Trains the bridge of a small real model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_arguments(parser)
    asked = parser.parse_args(with_home(arguments))
    with exit_status() as status:
        run(asked)
    return status.code


# Name, type, default and meaning of each flag but --model and --work.
ARGUMENTS = (
    ("--dtype", str, "bfloat16", "number type in which the model is computed: bfloat16 or float32"),
    ("--samples", int, 25_000, "openings that the decoder is asked to continue"),
    ("--word_share", float, 0.5, "share of questions that are asked with a word of the decoder's vocabulary"),
    ("--lists", int, 6000, "lists of random words that are spoken and repeated"),
    ("--generate_batch", int, 1024, "rows in flight while generating"),
    ("--batch_size", int, 128, "examples a step"),
    ("--memory", integer(1).argument, 20, "GiB kept for the backward pass; what is beyond is computed twice"),
    ("--steps", int, 1750, "steps of training"),
    ("--rate", float, 1e-3, "highest learning rate of the projector; the encoder has a fifth of it"),
    ("--repeat", float, 0.35, "share of batches that repeat the question, behind the first fifth"),
    ("--distance", float, 1.0, "weight of the distance of the states before the answer, heard and read"),
    ("--contrast", float, 0.3, "weight of telling each heard question from the others by these states"),
    ("--every", integer(0).argument, 4, "layers from one whose states are learnt to the next; 0: at the end"),
    ("--seed", int, 0, "seed of everything random"),
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a bridge's training."""
    parser.add_argument("--model", default="small", help="mini or small")
    parser.add_argument("--work", required=True, metavar="FOLDER", help="folder for data and results")
    for name, kind, default, meaning in ARGUMENTS:
        parser.add_argument(name, type=kind, default=default, help=meaning)


class Material(NamedTuple):
    """Model and data from which a bridge is trained.

    Attributes:
      table: rows of the weight table whose parameters are trained.
      rows: the data, as `make_bridge_data` writes them.
      clips: the speech of each of them.
    """

    processor: Processor
    bridge: Bridge
    table: list[Row]
    rows: list[dict]
    clips: list[bridge_data.Clip]


def run(asked: argparse.Namespace) -> None:
    """Makes the data where there are none yet, and trains the bridge."""
    material = prepare(asked)
    examples = Examples(material.processor, material.rows, material.clips, asked.batch_size)
    train(material.bridge, examples, material.table, asked)


def prepare(asked: argparse.Namespace) -> Material:
    """Loads the base, and the data of the work folder, of which is made what is not there."""
    work = Path(asked.work)
    folder = ensure_base(asked.model)
    processor = Processor.from_folder(folder)
    model = load_weights(folder, dtype=jnp.dtype(asked.dtype))
    if not (work / bridge_data.ROWS).is_file():  # written last: features alone are of a making cut short
        sizes = bridge_data.DataSizes(
            samples=asked.samples,
            max_new_tokens=ANSWER_TOKENS,
            batch_size=asked.generate_batch,
            seed=asked.seed,
            word_share=asked.word_share,
            lists=asked.lists,
        )
        bridge_data.make_bridge_data(model, processor, work, sizes)
    elif not (work / bridge_data.FEATURES).is_file():
        bridge_data.speak_again(work, processor.mel, asked.seed)
    table = trained_rows(folder, model)
    rows, clips = read_jsonl(work / bridge_data.ROWS), bridge_data.load_clips(work)
    return Material(processor, Bridge(model), table, rows, clips)


def trained_rows(folder: Path, model: nnx.Module) -> list[Row]:
    """Returns the rows of the folder's weight table whose parameters a bridge trains."""
    table = weight_table(model.config, read_config(folder), read_folder(folder))
    return [row for row in table.rows if is_trained(row.path, None)]


def make_optimiser(asked: argparse.Namespace, first: int) -> optax.GradientTransformation:
    """Returns Adam with clipped gradients from step `first` on, the encoder at `ENCODER_RATE` of the rate.

    The rate falls along a cosine to a twentieth; it is warmed up at the start, and again where training goes
    on, since Adam's moments are not kept.
    """
    cosine = optax.cosine_decay_schedule(asked.rate, asked.steps, alpha=0.05)

    def rate(count):
        return cosine(first + count) * jnp.minimum(1.0, (count + 1) / WARMUP)

    def group(state):
        return jax.tree.map_with_path(
            lambda path, _: "encoder" if "audio_tower" in jax.tree_util.keystr(path) else "projector", state
        )

    rates = {"encoder": ENCODER_RATE, "projector": 1.0}
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        optax.partition({name: optax.scale(share) for name, share in rates.items()}, group),
        optax.scale_by_learning_rate(rate),
    )


def train(
    bridge: Bridge,
    examples: Examples,
    rows: Sequence[Row],
    asked: argparse.Namespace,
    on_step: Callable[[int, nnx.State], None] = lambda step, trainable: None,
) -> None:
    """Trains on from the work folder's last bridge; writes it every SAVE_EVERY steps and at the end.

    `on_step` is called before the first step and behind each one, with the steps done and the parameters,
    which the next step overwrites.
    """
    work = Path(asked.work)
    first, trainable = load_bridge(work, rows, bridge.initial)
    optimiser = make_optimiser(asked, first)
    weights = {True: None, False: LossWeights(asked.distance, asked.contrast, asked.every)}
    memory = asked.memory * 2**30
    steps = {repeat: make_step(bridge, optimiser, chosen, memory) for repeat, chosen in weights.items()}
    optimiser_state = jax.jit(optimiser.init)(trainable)
    random = np.random.default_rng([asked.seed, first])
    batches = {repeat: examples.batches(random, repeat=repeat) for repeat in (True, False)}
    on_step(first, trainable)
    start, recent = time.monotonic(), []
    with Progress(asked.steps - first, f"bridge of {asked.model}", "steps") as progress:
        for done in range(first + 1, asked.steps + 1):
            share = FIRST_REPEAT if done <= asked.steps // 5 else asked.repeat
            repeating = bool(random.random() < share)
            trainable, optimiser_state, metrics = steps[repeating](
                trainable, optimiser_state, bridge.base, next(batches[repeating])
            )
            recent.append((repeating, metrics))
            if done % 50 == 0 or done == asked.steps:
                shown = summarise(recent)
                print(f"{done}/{asked.steps} {time.monotonic() - start:.0f} s {shown}", flush=True)
                recent = []
            if done % SAVE_EVERY == 0 or done == asked.steps:
                save_bridge(trainable, rows, work, done)
            on_step(done, trainable)
            progress.update()


def summarise(recent: list) -> dict[str, float]:
    """Returns means since the last line; a loss that is not finite ends the training."""
    result = {}
    for repeating, word in ((True, "repeat"), (False, "answer")):
        chosen = jax.device_get([metrics for flag, metrics in recent if flag == repeating])
        for key in chosen[0] if chosen else ():
            result[f"{word}_{key}"] = round(float(np.mean([metrics[key] for metrics in chosen])), 4)
    if not all(np.isfinite(value) for value in result.values()):
        raise FloatingPointError(f"the bridge's loss is not finite: {result}")
    return result


PARTS = 3  # files of a bridge, so that none is larger than a repository likes


def save_bridge(trainable, rows: Sequence[Row], folder: Path, step: int) -> None:
    """Writes the trained tensors in float16, in the layout that `rrs_jax.mini.model` merges, and the step."""
    flat = {path: leaf[...] for path, leaf in nnx.to_flat_state(trainable)}
    tensors = {}
    for row in rows:
        values = np.asarray(flat[row.path], np.float16)
        for name, value in zip(row.names(), values if row.layers else [values], strict=True):
            tensors[name] = np.ascontiguousarray(row.convert(value))
    sizes = np.cumsum([tensor.nbytes for tensor in tensors.values()])
    part_of = dict(zip(tensors, np.minimum((sizes - 1) * PARTS // sizes[-1], PARTS - 1), strict=True))
    for part in range(PARTS):
        with atomic_path(folder / f"bridge-{part + 1:05d}-of-{PARTS:05d}.safetensors") as temporary:
            chosen = {name: tensor for name, tensor in tensors.items() if part_of[name] == part}
            save_file(temporary, chosen, {"format": "pt"})
    write_json(folder / "progress.json", {"step": step})


def load_bridge(folder: Path, rows: Sequence[Row], initial):
    """Returns the step of the folder's bridge and its parameters; 0 and `initial` copied without one."""
    trainable = jax.tree.map(jnp.copy, initial)  # the bridge's own is not donated
    if not (folder / "progress.json").is_file():
        return 0, trainable
    advice = "copy all files of the bridge, or delete progress.json and train it from the beginning"
    entries = Named({}, folder / "bridge-*.safetensors", advice)
    for file in sorted(folder.glob("bridge-*.safetensors")):
        entries |= read_header(file)[0]
    flat = dict(nnx.to_flat_state(trainable))
    for row in rows:
        values = [row.convert(entries[name].array().astype(np.float32)) for name in row.names()]
        leaf = flat[row.path]
        # On all devices of the base, with which it is computed.
        whole = jax.device_put(np.stack(values) if row.layers else values[0], leaf[...].sharding)
        flat[row.path] = leaf.replace(whole)
    return read_json(folder / "progress.json")["step"], nnx.from_flat_state(flat)


if __name__ == "__main__":
    sys.exit(main())
