"""Trains the mini's bridge: `python -m rrs_jax.mini.train_bridge --work=FOLDER` (under 10 minutes on one H100).

Stages, each resumed from its files in the work folder: `data` (questions, answers, speech, encoder outputs),
`projector` (its bridge is `FOLDER/projector/bridge-*.safetensors`), `adapter` (projector and LoRA: `FOLDER/bridge-*`).
A bridge belongs into `checkpoints/mini/`; `python -m rrs_jax.mini.measure` gives the figures of its model card.
"""

import functools
import re
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import nnx

from rrs_jax.audio_bank import AudioBank
from rrs_jax.files import atomic_path, read_jsonl
from rrs_jax.inputs.batching import bucket_lengths, make_batches
from rrs_jax.inputs.processor import Processor
from rrs_jax.inputs.prompts import PROMPT_POOL
from rrs_jax.mini import bridge_data
from rrs_jax.mini.base import ensure_base
from rrs_jax.mini.bridge_questions import INSTRUCTIONS, written_prompt
from rrs_jax.mini.bridge_step import Bridge, Example, make_batch, make_step
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.progress import Progress
from rrs_jax.weights.load import load_weights
from rrs_jax.weights.safetensors_io import read_folder, save_file
from rrs_jax.weights.table import DECODER_MODULES

FLAGS = flags.FLAGS
flags.DEFINE_string("work", None, "folder for data and results", required=True)
flags.DEFINE_list("stages", ["data", "projector", "adapter"], "which stages to run")
flags.DEFINE_string("dtype", "bfloat16", "of the frozen weights: bfloat16 or float32")
flags.DEFINE_integer("samples", 40_000, "openings that the decoder is asked to continue")
flags.DEFINE_float("word_share", 0.0, "share of the questions that are asked with a word of the decoder's vocabulary")
flags.DEFINE_integer("lists", 0, "lists of random words that are spoken and repeated")
flags.DEFINE_integer("generate_batch", 1024, "rows in flight while generating")
flags.DEFINE_integer("batch_size", 64, "examples a step")
flags.DEFINE_integer(
    "projector_steps", 700, "steps of the projector alone; the first half repeat the question, then three in ten"
)
flags.DEFINE_float("adapter_repeat", 0.25, "share of the adapter's batches that repeat the question")
flags.DEFINE_integer("adapter_steps", 1100, "steps of projector and LoRA")
flags.DEFINE_float("state_weight", 0.0, "of the distance between the states before the answer, heard and read")
flags.DEFINE_integer("seed", 0, "of everything random")

ANSWER_TOKENS = 64
REPEAT_PROMPTS = ("Repeat the question in the audio.", "Write down what is said in the audio.", "Transcribe the audio.")
ANSWER_PROMPTS = (
    None, None, None, "Answer the question.", "Please answer the spoken question.", "Reply to the speaker.",
    "What is the answer to the question in the audio?", "Listen to the audio and answer.", *PROMPT_POOL,
)  # fmt: skip
LORA = LoRAConfig(rank=16, alpha=32.0)


def main(_):
    work = Path(FLAGS.work)
    folder = ensure_base()
    processor = Processor.from_folder(folder)
    model = load_weights(folder, dtype=jnp.dtype(FLAGS.dtype), lora=LORA, seed=FLAGS.seed)
    if "data" in FLAGS.stages and not (work / "data.jsonl").is_file():
        bridge_data.make_data(
            model, processor, work, samples=FLAGS.samples, batch_size=FLAGS.generate_batch, seed=FLAGS.seed,
            max_new_tokens=ANSWER_TOKENS, word_share=FLAGS.word_share, lists=FLAGS.lists,
        )  # fmt: skip
    rows = read_jsonl(work / "data.jsonl")
    bank = bridge_data.load_bank(work, model)
    bridge = Bridge(model)
    if "projector" in FLAGS.stages:
        half = FLAGS.projector_steps // 2
        trainable = run(bridge, bridge.initial, processor, rows, bank, steps=half, repeat=1.0, rate=1e-3, name="repeat")
        trainable = run(
            bridge, trainable, processor, rows, bank, steps=FLAGS.projector_steps - half, repeat=0.3, rate=1e-3,
            name="projector",
        )  # fmt: skip
        save_bridge({"projector": trainable["projector"], "lora": None}, work / "projector")
    if "adapter" in FLAGS.stages:
        trainable = bridge.initial | {"projector": load_projector(work / "projector")}
        trainable = run(
            bridge, trainable, processor, rows, bank, steps=FLAGS.adapter_steps, repeat=FLAGS.adapter_repeat, rate=5e-4,
            name="adapter", train_lora=True,
        )  # fmt: skip
        save_bridge(trainable, work)


class Examples:
    """What is heard, what is read and what is answered, of any row.

    Encoded prompts are kept: the step would wait for the tokenizer, and prompts come again, for every clip of the same
    length and in every epoch.
    """

    def __init__(self, processor: Processor, rows: list[dict], bank: AudioBank):
        self.processor, self.rows, self.bank = processor, rows, bank
        self.encode = functools.cache(processor.encode)
        self.end = list(processor.eos_token_ids[:1])

    def answer(self, i: int, prompt: str | None) -> Example:
        row, (offsets, counts) = self.rows[i], self.bank.clips([i])
        spoken = self.encode(row["instruction"] or prompt, tuple(counts)), offsets, counts
        written = self.encode(written_prompt(row["question"], row["instruction"]))
        return Example(spoken, written, row["answer"] + (self.end if row["ended"] else []))

    def repeat(self, i: int, prompt: str) -> Example:
        """Nothing is read: the loss of repeating has no divergence."""
        offsets, counts = self.bank.clips([i])
        said = self.processor.text_ids(self.rows[i]["question"])
        return Example((self.encode(prompt, tuple(counts)), offsets, counts), self.encode(prompt), said + self.end)


def run(
    bridge: Bridge, trainable, processor: Processor, rows: list[dict], bank: AudioBank, *, steps: int, repeat: float,
    rate: float, name: str, train_lora: bool = False,
):  # fmt: skip
    """One phase of training; `repeat` is the share of batches that repeat the question in place of answering it."""
    random = np.random.default_rng([FLAGS.seed, *name.encode()])
    examples = Examples(processor, rows, bank)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, min(100, steps // 10 + 1), steps, rate * 0.05)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.0))
    optimiser_state = jax.jit(optimiser.init)(trainable)
    step_functions = {
        distil: make_step(
            bridge, optimiser, train_lora=train_lora, distil=distil, state_weight=FLAGS.state_weight
        )
        for distil in (True, False)
    }
    # Prompts differ by a few tokens around the clip's own length; the longest one sets the room.
    prompt_room = max(len(processor.encode(p, [2])) for p in (*ANSWER_PROMPTS, *REPEAT_PROMPTS, *INSTRUCTIONS))
    lengths = [bank.counts[i] + prompt_room + ANSWER_TOKENS for i in range(len(rows))]
    buckets = bucket_lengths(lengths, 2, 16)
    questions = processor.tokenizer([row["question"] for row in rows], add_special_tokens=False)["input_ids"]
    read_room = max(len(processor.encode(written_prompt("?", p))) for p in (None, *INSTRUCTIONS))
    written_length = -(-(max(map(len, questions)) + read_room) // 16) * 16 + ANSWER_TOKENS
    answered = [i for i, row in enumerate(rows) if row["answer"] is not None]

    def endless(chosen: list[int]):
        """Batches of rows, epoch after epoch."""
        while True:
            for selection in make_batches(
                [lengths[i] for i in chosen], FLAGS.batch_size, int(random.integers(2**31)), buckets
            ):
                yield [chosen[i] for i in selection.indices], selection.length

    to_repeat, to_answer = endless(list(range(len(rows)))), endless(answered)
    done, start, recent = 0, time.monotonic(), []
    trainable = jax.tree.map(jnp.copy, trainable)  # the caller's is not donated
    with Progress(steps, f"bridge: {name}", "steps") as progress:
        while done < steps:
            repeating = bool(random.random() < repeat)
            indices, length = next(to_repeat if repeating else to_answer)
            make, prompts = (examples.repeat, REPEAT_PROMPTS) if repeating else (examples.answer, ANSWER_PROMPTS)
            chosen = [make(i, prompts[random.integers(len(prompts))]) for i in indices]
            batch = make_batch(chosen, length, written_length, ANSWER_TOKENS, processor.audio_token_id)
            step = step_functions[not repeating]
            trainable, optimiser_state, metrics = step(trainable, optimiser_state, bridge.base, batch, bank.array)
            recent.append((repeating, metrics))
            done += 1
            if done % 50 == 0 or done == steps:
                shown = summarise(recent)
                print(f"{name} {done}/{steps} {time.monotonic() - start:.0f} s {shown}", flush=True)
                recent = []
            progress.update()
    return trainable


def summarise(recent: list) -> dict[str, float]:
    """Means since the last line; a loss that is not finite ends the training."""
    result = {}
    for repeating, word in ((True, "repeat"), (False, "answer")):
        chosen = jax.device_get([metrics for flag, metrics in recent if flag == repeating])
        for key in chosen[0] if chosen else ():
            result[f"{word}_{key}"] = round(float(np.mean([metrics[key] for metrics in chosen])), 4)
    if not all(np.isfinite(value) for value in result.values()):
        raise FloatingPointError(f"the bridge's loss is not finite: {result}")
    return result


def save_bridge(trainable, folder: Path) -> None:
    """Float16, in the layout that `rrs_jax.mini.model` merges: projector, lora_A (R, in), lora_B (out, R).

    Without LoRA one file, with it two, so that none is larger than a repository likes.
    """
    tensors = {
        "multi_modal_projector.linear.weight": np.asarray(trainable["projector"]["kernel"]).T,
        "multi_modal_projector.linear.bias": np.asarray(trainable["projector"]["bias"]),
    }
    metadata = {"format": "pt"}
    if trainable["lora"] is not None:
        metadata |= {"rank": str(LORA.rank), "lora_alpha": str(LORA.alpha)}
        for (_, target, which), leaf in nnx.to_flat_state(trainable["lora"]):
            letter = which.removeprefix("lora_").upper()
            for i, matrix in enumerate(np.asarray(leaf[...])):
                tensors[f"language_model.model.layers.{i}.{DECODER_MODULES[target]}.lora_{letter}.weight"] = matrix.T
    names = sorted(tensors, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])
    parts = [names] if trainable["lora"] is None else [names[: len(names) // 2], names[len(names) // 2 :]]
    for number, part in enumerate(parts, start=1):
        with atomic_path(folder / f"bridge-{number:05d}-of-{len(parts):05d}.safetensors") as temporary:
            save_file(temporary, {name: np.ascontiguousarray(tensors[name], np.float16) for name in part}, metadata)


def load_projector(folder: Path) -> dict[str, jax.Array]:
    """What `save_bridge` wrote of the projector, as trainable parameters."""
    entries = read_folder(folder)
    weight, bias = (entries[f"multi_modal_projector.linear.{part}"].array() for part in ("weight", "bias"))
    return {"kernel": jnp.asarray(np.asarray(weight, np.float32).T), "bias": jnp.asarray(np.asarray(bias, np.float32))}


if __name__ == "__main__":
    app.run(main)
