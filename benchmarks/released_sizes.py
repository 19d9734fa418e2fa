"""Every stage on random weights of a released size, made on the device: a JSON line a stage, with seconds and
memory.

    python benchmarks/released_sizes.py --model=omni-7b
    python benchmarks/released_sizes.py --model=qwen2-audio,omni-7b,omni-3b,qwen-audio

Clips are noise and prompts random tokens, of the lengths that a run has. `seconds` of a stage
is what it takes once its programs are compiled, `first_seconds` the first time, compilation included; clips
are encoded once in a run, so for them it is the only one. `peak_gib` is the device's highest use since the
model's start; on a CPU there is none. Several models run in processes of their own, so that each starts with
an empty device. `--small` cuts widths and layers, for a try on any computer.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from common import GIB, clip_seconds, noise
from flax import nnx
from folders import write_sparse_weights
from ours import mel_config

from rrs_jax.distributed.mesh import make_mesh
from rrs_jax.files import write_json
from rrs_jax.frozen.audio_bank import AudioBank, make_audio_bank
from rrs_jax.frozen.extraction import extract_all
from rrs_jax.generate import Generator, Prompt, SamplingConfig
from rrs_jax.inputs.batching import bucket_lengths, collate
from rrs_jax.models.architectures import check_architecture, part
from rrs_jax.models.lora import LoRAConfig, LoRAParam
from rrs_jax.models.random_init import random_model
from rrs_jax.models.released import RELEASED
from rrs_jax.strategies.rrs import RRS
from rrs_jax.train.step import OptimiserConfig, Rows, TrainStep
from rrs_jax.weights.export import export_adapter

TEXT_BEFORE, TEXT_BEHIND = 15, 23  # tokens of the template and of the prompt t

SMALL_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 151_700,
}
SMALL_AUDIO = {"d_model": 48, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64}


def small(values: dict) -> dict:
    """A released config with everything narrow; the vocabulary stays, since the audio token's id lies in
    it."""
    if "thinker_config" in values:
        return values | {"thinker_config": small(values["thinker_config"])}
    if "audio" in values:
        audio = values["audio"] | {"n_state": 48, "n_head": 4, "n_layer": 2, "output_dim": 64}
        sizes = {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "kv_channels": 16,
            "intermediate_size": 192,
        }
        return values | sizes | {"audio": audio}
    text = values["text_config"] | SMALL_TEXT
    if "rope_scaling" in text:
        text["rope_scaling"] = text["rope_scaling"] | {"mrope_section": [2, 3, 3]}
    return values | {
        "text_config": text,
        "audio_config": values["audio_config"] | SMALL_AUDIO | {"output_dim": 64},
    }


class Report:
    def __init__(self, model: str):
        self.model = model

    def line(self, stage: str, **facts) -> None:
        stats = jax.local_devices()[0].memory_stats() or {}
        memory = {
            name: round(stats[key] / GIB, 2)
            for name, key in (("in_use_gib", "bytes_in_use"), ("peak_gib", "peak_bytes_in_use"))
            if key in stats
        }
        print(json.dumps({"model": self.model, "stage": stage, **facts, **memory}), flush=True)


def timed(call: Callable[[], object]) -> tuple[object, float]:
    start = time.perf_counter()
    result = call()
    jax.block_until_ready(result)
    return result, round(time.perf_counter() - start, 3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="qwen2-audio", help=f"out of {', '.join(RELEASED)}, with commas between"
    )
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--questions", type=int, default=64, help="clips, and prompts of the extract stage")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches a step")
    parser.add_argument("--remat", default="dots")
    parser.add_argument("--new_tokens", type=int, default=256)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    models = arguments.model.split(",")
    unknown = [name for name in models if name not in RELEASED]
    if unknown:
        parser.error(f"--model: {', '.join(unknown)} is none of {', '.join(RELEASED)}")
    if len(models) == 1:
        measure(arguments)
        return
    failed = []
    for name in models:
        others = [argument for argument in sys.argv[1:] if not argument.startswith("--model")]
        if subprocess.run([sys.executable, __file__, f"--model={name}", *others], check=False).returncode:
            failed.append(name)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def measure(arguments: argparse.Namespace) -> None:
    report = Report(arguments.model)
    values = small(RELEASED[arguments.model]) if arguments.small else RELEASED[arguments.model]
    check_architecture(values, arguments.model)
    model_class = part("models", values).MODEL
    config = model_class.config_class.from_hf(values)
    mesh = make_mesh(devices=jax.devices()[:1])
    lora = LoRAConfig(targets=None)

    def build() -> nnx.Module:
        return random_model(
            lambda: model_class(config, dtype=jnp.dtype(arguments.dtype), lora=lora), mesh=mesh
        )

    model, seconds = timed(build)
    leaves = jax.tree.leaves(nnx.state(model))
    report.line(
        "weights",
        seconds=seconds,
        device=jax.devices()[0].device_kind,
        jax=jax.__version__,
        dtype=arguments.dtype,
        parameters=sum(leaf.size for leaf in leaves),
        weights_gib=round(sum(leaf.nbytes for leaf in leaves) / GIB, 2),
    )

    bank = encode(model, values, arguments, report)
    rows = prompts(model, bank, arguments.questions)
    extract(model, rows, bank, arguments, report)
    train(model, rows, bank, arguments, mesh, report)
    generate(model, rows, bank, arguments, report)
    export(model, values, arguments, report)


def encode(model, values: dict, arguments, report: Report) -> AudioBank:
    sounds = [noise(seconds, place) for place, seconds in enumerate(clip_seconds(arguments.questions))]
    mel = mel_config(values, model.config.audio.num_mel_bins)
    _, first = timed(lambda: make_audio_bank(model, mel, sounds, batch_size=arguments.batch).array)
    bank = make_audio_bank(model, mel, sounds, batch_size=arguments.batch)
    report.line("encode audio", first_seconds=first, clips=len(sounds), audio_tokens=sum(bank.counts))
    return bank


def prompts(model, bank: AudioBank, count: int) -> list:
    """Random words around each clip's places."""
    rng = np.random.default_rng(1)
    audio = np.atleast_1d(model.config.audio_token_id)[0]
    rows = []
    for i in range(count):
        offsets, counts = bank.clips([i])
        before, behind = (rng.integers(0, 50_000, n).tolist() for n in (TEXT_BEFORE, TEXT_BEHIND))
        rows.append(([*before, *[int(audio)] * counts[0], *behind], offsets, counts))
    return rows


def extract(model, rows: list, bank: AudioBank, arguments, report: Report) -> None:
    buckets = bucket_lengths([len(ids) for ids, _, _ in rows])

    def run():
        return extract_all(model, rows, bank.array, batch_size=arguments.batch, buckets=buckets)

    (values, first), (_, seconds) = timed(run), timed(run)
    report.line(
        "extract",
        first_seconds=first,
        seconds=seconds,
        prompts=len(rows),
        finite=bool(np.isfinite(values).all()),
    )


def train(model, rows: list, bank: AudioBank, arguments, mesh, report: Report) -> None:
    """The adapters' start stays in `model`; the trained ones are put there for what follows."""
    micro = arguments.batch // arguments.accumulation
    targets = np.zeros((arguments.batch, model.config.text.hidden_size), np.float32)
    strategy = RRS(targets, "mean")
    step = TrainStep(model, strategy, OptimiserConfig(remat=arguments.remat), mesh, arguments.steps)
    length = bucket_lengths([len(ids) for ids, _, _ in rows])[-1]
    batches = []
    for start in range(0, arguments.batch, micro):
        chosen = np.arange(start, start + micro)
        batch = collate([rows[i % len(rows)] for i in chosen], length, model.config.audio_token_id)
        batches.append(
            step.place(Rows(batch, strategy.examples(chosen), chosen % 2 == 0, np.ones(micro, np.float32)))
        )
    state = step.init()
    array = jax.device_put(bank.array, step.replicated)

    def one_step():
        nonlocal state
        state, metrics, _ = step(state, array, batches)
        return metrics

    _, first = timed(one_step)
    start = time.perf_counter()
    for _ in range(arguments.steps):
        metrics = one_step()
    jax.block_until_ready(metrics)
    seconds = (time.perf_counter() - start) / arguments.steps
    report.line(
        "train",
        first_seconds=first,
        seconds_a_step=round(seconds, 4),
        samples_per_second=round(arguments.batch / seconds, 1),
        tokens=arguments.batch * length,
        remat=arguments.remat,
        finite=bool(metrics.finite),
        loss=round(float(metrics.loss), 4),
    )
    nnx.update(model, nnx.state(step.model(state), LoRAParam))


def generate(model, rows: list, bank: AudioBank, arguments, report: Report) -> None:
    sampling = SamplingConfig(max_new_tokens=arguments.new_tokens)
    generator = Generator(model, sampling, eos_token_ids=(-1,), batch_size=arguments.batch)
    requests = [Prompt(key=i, row=row, seed=i) for i, row in enumerate(rows[: 2 * arguments.batch])]

    def run() -> dict:
        answers: dict = {}
        generator.generate(requests, bank.array, answers.__setitem__)
        return answers

    (_, first), (answers, seconds) = timed(run), timed(run)
    tokens = sum(map(len, answers.values()))
    report.line(
        "generate",
        first_seconds=first,
        seconds=seconds,
        answers=len(answers),
        tokens=tokens,
        tokens_per_second=round(tokens / seconds, 1),
    )


def export(model, values: dict, arguments, report: Report) -> None:
    """The adapter, checked against a folder whose tensors have names and shapes and take no room."""
    with tempfile.TemporaryDirectory() as place:
        base, out = Path(place) / "base", Path(place) / "adapter"
        base.mkdir()
        write_json(base / "config.json", values)
        write_sparse_weights(base / "model.safetensors", values, arguments.dtype)
        _, seconds = timed(lambda: export_adapter(model, base, out, base_name="random"))
        size = (out / "adapter_model.safetensors").stat().st_size
        report.line("export", seconds=seconds, adapter_mib=round(size / 2**20, 1))


if __name__ == "__main__":
    main()
