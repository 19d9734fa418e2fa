"""The bridge's data: questions, their written answers, speech, and the encoder's outputs, in a work folder."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rrs_jax.audio_bank import AudioBank
from rrs_jax.data.speech import voice_processes
from rrs_jax.data.voices import draw_voice, speak
from rrs_jax.errors import UserError
from rrs_jax.files import atomic_path, write_jsonl
from rrs_jax.inputs.batching import batches_in_buckets, bucket_lengths
from rrs_jax.inputs.mel import MelConfig, audio_token_count, log_mel, pad_features
from rrs_jax.inputs.processor import Processor
from rrs_jax.mini.bridge_questions import answer_questions, ask_questions, draw_instruction, word_lists
from rrs_jax.progress import Progress
from rrs_jax.weights.safetensors_io import read_header, save_file

ENCODER_BATCH = 128
MAX_SECONDS = 8


def make_data(
    model: nnx.Module, processor: Processor, work: Path, *, samples: int, batch_size: int, seed: int, max_new_tokens: int,
    word_share: float = 0.0, lists: int = 0,
) -> None:  # fmt: skip
    """Writes `encoder.safetensors` (encoder outputs of all clips) and `data.jsonl`.

    A row has the question (or a list of words), the instruction that it is answered under (or null), the answer's
    tokens (null where it is only to be repeated) and whether the answer ended by itself.

    The voices speak on all cores while the device answers.
    """
    questions = ask_questions(
        model, processor, samples=samples, batch_size=batch_size, seed=seed, word_share=word_share
    )
    print(f"{len(questions)} distinct questions of {samples} samples", flush=True)
    texts = questions + word_lists(processor, lists, seed)
    # The voices yield to the process that feeds the device.
    with voice_processes(os.cpu_count() or 1, niceness=10) as pool:
        clips = pool.map(speech_features, texts, [processor.mel] * len(texts), [seed] * len(texts), chunksize=16)
        answers = answer_questions(
            model, processor, questions, max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed
        )
        print(f"{len(answers)} of {len(questions)} answered; the others, alarming or declined, are repeated", flush=True)
        features = {}
        with Progress(len(texts), "speaking", "clips") as progress:
            for i, clip in enumerate(clips):
                if clip is not None:
                    features[i] = clip
                progress.update()
    kept = sorted(features)
    encode_clips(model, [features[i] for i in kept], work / "encoder.safetensors")
    rows = []
    for i in kept:
        answer, ended = answers.get(i, (None, False))
        instruction = draw_instruction(i, seed)
        rows.append({"question": texts[i], "instruction": instruction, "answer": answer, "ended": ended})
    write_jsonl(work / "data.jsonl", rows)


def speech_features(question: str, mel: MelConfig, seed: int) -> tuple[np.ndarray, int] | None:
    """One question spoken in its own voice, as float16 features; None where it cannot be spoken or is too long."""
    try:
        waveform = speak(question, draw_voice(question, seed))
    except UserError:  # one of 30,000 questions that no voice can say
        return None
    if len(waveform) > MAX_SECONDS * mel.sampling_rate:
        return None
    features, frames = log_mel(waveform, mel)
    return features.astype(np.float16), frames


def encode_clips(model: nnx.Module, features: list[tuple[np.ndarray, int]], file: Path) -> None:
    """The encoder's outputs, before the projector, of all clips one after the other; row 0 belongs to none."""
    graphdef, state = nnx.split(model)
    encode = jax.jit(lambda state, x, lengths: nnx.merge(graphdef, state).audio_tower(x, lengths))
    lengths = [array.shape[1] for array, _ in features]
    counts = [audio_token_count(frames) for _, frames in features]
    offsets = np.cumsum([1, *counts])
    rows = np.zeros((offsets[-1], model.config.audio.d_model), np.float16)
    with Progress(len(features), "encoding audio", "clips") as progress:
        for selection in batches_in_buckets(lengths, ENCODER_BATCH, bucket_lengths(lengths, 4, 4)):
            arrays, frames = pad_features([features[i] for i in selection.indices], selection.length)
            output = np.asarray(encode(state, arrays, frames), np.float16)
            for place, i in enumerate(selection.indices):
                rows[offsets[i] : offsets[i] + counts[i]] = output[place, : counts[i]]
            progress.update(int(selection.weights.sum()))
    with atomic_path(file) as temporary:
        save_file(temporary, {"rows": rows, "counts": np.asarray(counts, np.int32)})


def load_bank(work: Path, model: nnx.Module) -> AudioBank:
    """The encoder's outputs on the device, in the model's dtype."""
    entries, _ = read_header(work / "encoder.safetensors")
    counts = entries["counts"].array().tolist()
    array = jnp.asarray(np.asarray(entries["rows"].array()), model.multi_modal_projector.kernel.dtype)
    return AudioBank(array, tuple(int(o) for o in np.cumsum([1, *counts])[:-1]), tuple(counts))
