"""Trains the mini's bridge: `python -m rrs_jax.mini.train_bridge --work=FOLDER`.

It takes under 10 minutes on one H100. The questions, their answers and their speech lie in the work folder
and are made once; the bridge is `FOLDER/bridge-*.safetensors`. It belongs into `checkpoints/mini/`;
`python -m rrs_jax.mini.measure` gives the figures of its model card.
"""

import argparse
import functools
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from rrs_jax.config.kinds import with_home
from rrs_jax.config.prompts import PROMPT_POOL
from rrs_jax.errors import exit_status
from rrs_jax.files import atomic_path, read_jsonl
from rrs_jax.inputs.batching import bucket_lengths, bucket_of, make_batches
from rrs_jax.inputs.mel import audio_token_count
from rrs_jax.inputs.processor import Processor
from rrs_jax.mini import bridge_data
from rrs_jax.mini.base import ensure_base
from rrs_jax.mini.bridge_questions import INSTRUCTIONS, written_prompt
from rrs_jax.mini.bridge_step import Bridge, DistillationBatch, Example, make_batch, make_step
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.progress import Progress
from rrs_jax.weights.load import load_weights
from rrs_jax.weights.safetensors_io import save_file
from rrs_jax.weights.table import DECODER_MODULES

ANSWER_TOKENS = 48
SAVE_EVERY = 400  # steps
REPEAT_PROMPTS = (
    "Repeat the question in the audio.",
    "Write down what is said in the audio.",
    "Transcribe the audio.",
)
ANSWER_PROMPTS = (
    None,
    None,
    None,
    "Answer the question.",
    "Please answer the spoken question.",
    "Reply to the speaker.",
    "What is the answer to the question in the audio?",
    "Listen to the audio and answer.",
    *PROMPT_POOL,
)
# One rank for decoder and encoder: as large as the bridge's file may be.
LORA = LoRAConfig(rank=12, alpha=24.0)
ENCODER_MODULES = {name: f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")} | {
    name: name for name in ("fc1", "fc2")
}


class Phase(NamedTuple):
    """One phase of the training.

    Attributes:
      steps: number of steps.
      repeat: share of batches that repeat the question in place of answering it.
      rate: highest learning rate.
      decoder: the decoder's LoRA is trained too.
    """

    name: str
    steps: int
    repeat: float
    rate: float
    decoder: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after one sentence on standard error for a user's mistake."""
    asked = _parser().parse_args(with_home(arguments))
    with exit_status() as status:
        run(asked)
    return status.code


# Name, type, default and meaning of each flag but --work.
ARGUMENTS = (
    ("--dtype", str, "bfloat16", "number type of the frozen weights: bfloat16 or float32"),
    ("--samples", int, 22_000, "openings that the decoder is asked to continue"),
    ("--word_share", float, 0.5, "share of questions that are asked with a word of the decoder's vocabulary"),
    ("--lists", int, 6000, "lists of random words that are spoken and repeated"),
    ("--generate_batch", int, 1024, "rows in flight while generating"),
    ("--batch_size", int, 64, "examples a step"),
    ("--hear_steps", int, 400, "steps of projector and encoder; seven in ten of them repeat the question"),
    ("--answer_steps", int, 1300, "steps of everything"),
    ("--answer_repeat", float, 0.35, "share of these that repeat the question"),
    ("--state_weight", float, 1.0, "weight of the distance of the states before the answer, heard and read"),
    ("--seed", int, 0, "seed of everything random"),
)  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rrs_jax.mini.train_bridge",
        description="Trains the mini's bridge.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--work", required=True, metavar="FOLDER", help="folder for data and results")
    for name, kind, default, meaning in ARGUMENTS:
        parser.add_argument(name, type=kind, default=default, help=meaning)
    return parser


def run(asked: argparse.Namespace) -> None:
    """Makes the data where there are none yet, and trains the bridge in both phases."""
    work = Path(asked.work)
    folder = ensure_base("mini")
    processor = Processor.from_folder(folder)
    model = load_weights(folder, dtype=jnp.dtype(asked.dtype), lora=LORA, seed=asked.seed)
    if not (work / "data.jsonl").is_file():
        sizes = bridge_data.DataSizes(
            samples=asked.samples,
            max_new_tokens=ANSWER_TOKENS,
            batch_size=asked.generate_batch,
            seed=asked.seed,
            word_share=asked.word_share,
            lists=asked.lists,
        )
        bridge_data.make_bridge_data(model, processor, work, sizes)
    examples = Examples(
        processor, read_jsonl(work / "data.jsonl"), bridge_data.load_clips(work), asked.batch_size
    )
    bridge = Bridge(model, LORA, asked.seed)
    phases = (
        Phase("hear", asked.hear_steps, 0.7, 1e-3, decoder=False),
        Phase("answer", asked.answer_steps, asked.answer_repeat, 5e-4, decoder=True),
    )
    train(bridge, examples, phases, work, state_weight=asked.state_weight, seed=asked.seed)


class Examples:
    """Rows as examples of what is heard, read and answered.

    Encoded prompts are kept: the step would wait for the tokenizer, and prompts come again, for every clip of
    the same length and in every epoch.
    """

    def __init__(
        self, processor: Processor, rows: list[dict], clips: list[tuple[np.ndarray, int]], batch_size: int
    ):
        self.processor, self.rows, self.clips, self.batch_size = processor, rows, clips, batch_size
        self.encode = functools.cache(processor.encode)
        self.end = list(processor.eos_token_ids[:1])
        # Prompts differ by a few tokens around the clip's own length; the longest one sets the room.
        room = max(len(processor.encode(p, [2])) for p in (*ANSWER_PROMPTS, *REPEAT_PROMPTS, *INSTRUCTIONS))
        self.lengths = [audio_token_count(length) + room + ANSWER_TOKENS for _, length in clips]
        self.buckets = bucket_lengths(self.lengths, 2, 16)
        self.frames = dict.fromkeys(self.buckets, 0)  # of the longest clip in each bucket, a multiple of 4
        for (features, _), length in zip(clips, self.lengths, strict=True):
            bucket = bucket_of(length, self.buckets)
            self.frames[bucket] = max(self.frames[bucket], -(-features.shape[1] // 4) * 4)
        questions = processor.tokenizer([row["question"] for row in rows], add_special_tokens=False)[
            "input_ids"
        ]
        room = max(len(processor.encode(written_prompt("?", p))) for p in (None, *INSTRUCTIONS))
        self.written_length = -(-(max(map(len, questions)) + room) // 16) * 16 + ANSWER_TOKENS

    def answer(self, i: int, prompt: str | None) -> Example:
        """Returns row i with its answer; `prompt` stands beside a question without an instruction."""
        row, clip = self.rows[i], self.clips[i]
        spoken = self.encode(row["instruction"] or prompt, (audio_token_count(clip[1]),))
        written = self.encode(written_prompt(row["question"], row["instruction"]))
        return Example(spoken, clip, written, row["answer"] + (self.end if row["ended"] else []))

    def repeat(self, i: int, prompt: str) -> Example:
        """Returns row i to be repeated.

        Nothing is read: the loss of repeating has no divergence.
        """
        clip, said = self.clips[i], self.processor.text_ids(self.rows[i]["question"])
        return Example(
            self.encode(prompt, (audio_token_count(clip[1]),)), clip, self.encode(prompt), said + self.end
        )

    def batches(self, random: np.random.Generator, *, repeat: bool) -> Iterator[DistillationBatch]:
        """Yields batches, epoch after epoch, of all rows to be repeated or of those with an answer."""
        rows = [i for i, row in enumerate(self.rows) if repeat or row["answer"] is not None]
        make, prompts = (self.repeat, REPEAT_PROMPTS) if repeat else (self.answer, ANSWER_PROMPTS)
        while True:
            seed = int(random.integers(2**31))
            for selection in make_batches(
                [self.lengths[i] for i in rows], self.batch_size, seed, self.buckets
            ):
                chosen = [make(rows[i], prompts[random.integers(len(prompts))]) for i in selection.indices]
                yield make_batch(
                    chosen,
                    spoken_length=selection.length,
                    frames=self.frames[selection.length],
                    written_length=self.written_length,
                    answer_length=ANSWER_TOKENS,
                    audio_token_id=self.processor.audio_token_id,
                )


def train(
    bridge: Bridge, examples: Examples, phases: Sequence[Phase], work: Path, *, state_weight: float, seed: int
) -> None:
    """Trains phase by phase; writes the bridge into `work` every SAVE_EVERY steps and at the end."""
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())
    steps = {
        repeat: make_step(bridge, optimiser, distil=not repeat, state_weight=state_weight)
        for repeat in (True, False)
    }
    trainable = jax.tree.map(jnp.copy, bridge.initial)  # the bridge's own is not donated
    for phase in phases:
        random = np.random.default_rng([seed, *phase.name.encode()])
        optimiser_state = jax.jit(optimiser.init)(trainable)
        warmup = min(100, phase.steps // 10 + 1)
        schedule = optax.warmup_cosine_decay_schedule(0.0, phase.rate, warmup, phase.steps, phase.rate * 0.05)
        batches = {repeat: examples.batches(random, repeat=repeat) for repeat in (True, False)}
        start, recent = time.monotonic(), []
        with Progress(phase.steps, f"bridge: {phase.name}", "steps") as progress:
            for done in range(1, phase.steps + 1):
                repeating = bool(random.random() < phase.repeat)
                rate, decoder = np.float32(schedule(done)), np.float32(phase.decoder)
                trainable, optimiser_state, metrics = steps[repeating](
                    trainable, optimiser_state, bridge.base, next(batches[repeating]), rate, decoder
                )
                recent.append((repeating, metrics))
                if done % 50 == 0 or done == phase.steps:
                    shown = summarise(recent)
                    print(
                        f"{phase.name} {done}/{phase.steps} {time.monotonic() - start:.0f} s {shown}",
                        flush=True,
                    )
                    recent = []
                if done % SAVE_EVERY == 0 or done == phase.steps:
                    save_bridge(trainable, work)
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


def save_bridge(trainable, folder: Path) -> None:
    """Writes the bridge in float16, in the layout that `rrs_jax.mini.model` merges.

    That is the projector, lora_A (R, in) and lora_B (out, R). There are two files, so that none is larger
    than a repository likes.
    """
    tensors = {
        "multi_modal_projector.linear.weight": np.asarray(trainable["projector"]["kernel"]).T,
        "multi_modal_projector.linear.bias": np.asarray(trainable["projector"]["bias"]),
    }
    stacks = [
        (f"audio_tower.layers.{{i}}.{ENCODER_MODULES[target]}", which, leaf)
        for target, pair in trainable["encoder"].items()
        for which, leaf in pair.items()
    ]
    for (_, target, which), leaf in nnx.to_flat_state(trainable["lora"]):
        stacks.append((f"language_model.model.layers.{{i}}.{DECODER_MODULES[target]}", which, leaf[...]))
    for name, which, stack in stacks:
        for i, matrix in enumerate(np.asarray(stack)):
            tensors[f"{name.format(i=i)}.lora_{which.removeprefix('lora_').upper()}.weight"] = matrix.T
    metadata = {"format": "pt", "rank": str(LORA.rank), "lora_alpha": str(LORA.alpha)}
    names = sorted(
        tensors, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
    )
    parts = [names[: len(names) // 2], names[len(names) // 2 :]]
    for number, part in enumerate(parts, start=1):
        with atomic_path(folder / f"bridge-{number:05d}-of-{len(parts):05d}.safetensors") as temporary:
            save_file(
                temporary, {name: np.ascontiguousarray(tensors[name], np.float16) for name in part}, metadata
            )


if __name__ == "__main__":
    sys.exit(main())
