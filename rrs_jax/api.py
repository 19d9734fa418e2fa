"""The few functions that others script against."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rrs_jax import equations
from rrs_jax.config import resolve, validate
from rrs_jax.config.named import load_config
from rrs_jax.config.stages import parse_stages
from rrs_jax.config.strategy_table import STRATEGY_TABLE
from rrs_jax.distributed.mesh import make_mesh, rows_multiple
from rrs_jax.errors import UserError
from rrs_jax.evaluate.problems import evaluation_problems
from rrs_jax.files import read_json
from rrs_jax.frozen.audio_bank import AudioBank, empty_audio_bank, make_audio_bank
from rrs_jax.frozen.extraction import extract_reps as extract_from_arrays
from rrs_jax.generate import Generator, Prompt, SamplingConfig
from rrs_jax.inputs.audio import check_audios
from rrs_jax.inputs.batching import EncodedPrompt, collate
from rrs_jax.inputs.processor import Processor
from rrs_jax.models.audio_language_model import AudioLanguageModel
from rrs_jax.models.batch import Batch
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.weights.adapter import read_adapter
from rrs_jax.weights.load import load_weights, read_config, resolve_folder

__all__ = [
    "LoadedModel",
    "PreparedBatch",
    "evaluate",
    "extract_reps",
    "generate",
    "load_config",
    "load_model",
    "make_batch",
    "safety_vector",
    "train",
]


@dataclasses.dataclass
class LoadedModel:
    """A model on its devices with what its folder says about inputs."""

    module: AudioLanguageModel
    processor: Processor
    folder: Path
    mesh: Mesh

    def head_row(self, token: str = "I") -> jax.Array:
        """The output head's weights (D,), float32, for a text of one token."""
        return self.module.head_row(self.processor.token_id(token))


@dataclasses.dataclass
class PreparedBatch:
    """`batch` may end in repeated rows that fill it up to the devices; `rows` are real."""

    batch: Batch
    audio_bank: jax.Array
    rows: int


def load_model(
    path: str | Path,
    dtype: str = "float32",
    *,
    adapter: str | Path | None = None,
    lora: LoRAConfig | None = None,
    mesh: Mesh | None = None,
    seed: int = 0,
) -> LoadedModel:
    """Loads a Hugging Face folder or hub id of a supported architecture onto all devices, or onto `mesh`.

    Args:
      path: a folder, a hub id, `mini`, or `small`.
      dtype: number type of the frozen weights.
      adapter: a PEFT LoRA on the decoder, ours or another's: a folder, a run's folder, or a hub id.
      lora: in its place, settings of a fresh LoRA, which `seed` starts and which changes nothing yet.
      mesh: the devices.
    Raises UserError for a folder that is missing, incomplete or of another architecture, and for an adapter
    that changes more than linears of the decoder or does not fit the model.
    """
    if adapter is not None and lora is not None:
        raise UserError("load_model: adapter and lora are both given; an adapter brings its own settings.")
    folder = resolve_folder(str(path))
    mesh = mesh or make_mesh()
    processor = Processor.from_folder(folder)
    read = None if adapter is None else read_adapter(adapter, read_config(folder))
    lora = lora if read is None else read.config
    module = load_weights(folder, dtype=jnp.dtype(dtype), lora=lora, mesh=mesh, seed=seed)
    if read is not None:
        read.put_into(module, mesh)
    return LoadedModel(module, processor, folder, mesh)


def make_batch(
    model: LoadedModel, questions: Sequence[str | Path | np.ndarray | dict], prompt: str | None = None
) -> PreparedBatch:
    """Turns questions into model inputs.

    Args:
      questions: each an audio file or a 16 kHz mono waveform, asked with the text `prompt`; or a dict with
        `text` (str or None) and `audio` (a file, a waveform, or a list of them; absent for text alone).
      prompt: the text beside the audio; None asks with audio alone.
    Raises UserError that lists every clip that cannot be used.
    """
    rows, bank = _encoded(model, questions, prompt)
    multiple = rows_multiple(model.mesh)
    filled = rows + [rows[-1]] * (-len(rows) % multiple)
    length = -(-max(len(ids) for ids, _, _ in filled) // 8) * 8
    return PreparedBatch(collate(filled, length, model.module.config.audio_token_id), bank.array, len(rows))


def _encoded(
    model: LoadedModel,
    questions: Sequence[str | Path | np.ndarray | dict],
    prompt: str | None,
    system: str | None = None,
) -> tuple[list[EncodedPrompt], AudioBank]:
    """Returns each question's token ids with the places of its clips, and the bank that holds the clips."""
    texts, clips = [], []
    for question in questions:
        text, audio = (
            (question.get("text", prompt), question.get("audio"))
            if isinstance(question, dict)
            else (prompt, question)
        )
        audio = [] if audio is None else list(audio) if isinstance(audio, list | tuple) else [audio]
        texts.append(text)
        clips.append(audio)
    flat = [audio for audios in clips for audio in audios]
    check_audios(flat, max_seconds=model.processor.mel.max_seconds)
    bank = (
        make_audio_bank(model.module, model.processor.mel, flat) if flat else empty_audio_bank(model.module)
    )
    rows: list[EncodedPrompt] = []
    first = 0
    for text, audios in zip(texts, clips, strict=True):
        offsets, counts = bank.clips(range(first, first + len(audios)))
        first += len(audios)
        rows.append((model.processor.encode(text, counts, system), offsets, counts))
    return rows, bank


def generate(
    model: LoadedModel,
    questions: Sequence[str | Path | np.ndarray | dict],
    prompt: str | None = None,
    *,
    system: str | None = None,
    seed: int = 0,
    batch_size: int | Literal["auto"] = "auto",
    **sampling,
) -> list[str]:
    """Answers questions; returns one text each, in their order, without special tokens.

    Args:
      questions, prompt: as for `make_batch`.
      system: system prompt; None is the model's own.
      seed: of sampling. An answer depends on its question, its place and the seed, not on the batch.
      batch_size: answers in flight at once; auto, as many as the device's memory holds.
      sampling: `max_new_tokens` (256), `greedy`, `temperature`, `top_p`, `top_k`, `repetition_penalty`; what
        is left out is as the model's folder says.
    Raises UserError that lists every clip that cannot be used.
    """
    rows, bank = _encoded(model, questions, prompt, system)
    settings = SamplingConfig.from_generation_config(
        model.processor.generation, **{"max_new_tokens": 256} | sampling
    )
    generator = Generator(
        model.module, settings, eos_token_ids=model.processor.eos_token_ids, batch_size=batch_size
    )
    answers: dict[object, str] = {}

    def finished(place: object, tokens: list[int]) -> None:
        answers[place] = model.processor.decode(tokens)

    seeds = np.random.SeedSequence(seed).generate_state(max(len(rows), 1))
    prompts = [Prompt(key=place, row=row, seed=int(seeds[place])) for place, row in enumerate(rows)]
    generator.generate(prompts, bank.array, finished)
    return [answers[place] for place in range(len(rows))]


def train(config: ConfigDict) -> Path:
    """Runs the stages up to the export, as far as they are not done; returns the folder of the PEFT adapter.

    config: of `load_config`, or of a config file. Raises UserError for a mistake in it or in the data, and
    for a strategy that trains nothing.
    """
    if not STRATEGY_TABLE[config.strategy].trains:
        raise UserError(f"strategy: {config.strategy} trains nothing; call rrs_jax.evaluate alone.")
    _run(config, "data,extract,train,export")
    return Path(config.run_dir) / "export" / "adapter"


def evaluate(config: ConfigDict) -> dict[str, dict]:
    """Evaluates the model before and after training, after the stages that it needs and that are not done.

    Returns the summary of each evaluation by its name, such as "vanilla" and "rrs" (docs/evaluation.md).
    Raises UserError for a mistake in the config or in the data.
    """
    _run(config, "data,extract,train,evaluate")
    files = sorted((Path(config.run_dir) / "eval").glob("*/summary.json"))
    return {file.parent.name: read_json(file) for file in files}


def _run(config: ConfigDict, stages: str) -> None:
    from rrs_jax.run import pipeline  # the whole program, which whoever asks a model alone does not need

    resolved = resolve(config)
    validate(resolved, evaluation_problems)
    pipeline.run(resolved, parse_stages(stages, config.strategy))


def extract_reps(model: LoadedModel, batch: PreparedBatch) -> jax.Array:
    """(B, D) float32: the final-norm hidden state at each question's last input token (section 3.1)."""
    return extract_from_arrays(model.module, batch.batch, batch.audio_bank)[: batch.rows]


def safety_vector(
    harmful_refusal: jax.Array, benign: jax.Array, head_row: jax.Array, top_m: float | str = 51
) -> equations.SafetyVector:
    """The safety vector of representations, equations 9, 5 and 10.

    harmful_refusal (N, D), under the refusal prompt; benign (M, D), under the prompt t; head_row (D,), the
    refusal token's row of the output head (`LoadedModel.head_row`). `top_m` keeps that many percent of the
    features, those that contribute most to the refusal token's logit; "positive" keeps all that raise it.
    Raises UserError for a `top_m` outside 0 to 100.
    """
    arrays = (jnp.asarray(array, jnp.float32) for array in (harmful_refusal, benign, head_row))
    refused, benign, row = arrays
    return equations.safety_vector(refused, benign, row[None], jnp.zeros(1, jnp.int32), top_m=top_m)
