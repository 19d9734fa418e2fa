"""A bridge's data: questions, their written answers, and their speech as features, in a work folder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flax import nnx

from rrs_jax.data.speech import voice_processes
from rrs_jax.data.voices import draw_voice, speak
from rrs_jax.distributed.machine import cores
from rrs_jax.errors import UserError
from rrs_jax.files import atomic_path, write_jsonl
from rrs_jax.inputs.mel import MelConfig, log_mel
from rrs_jax.inputs.processor import Processor
from rrs_jax.mini.bridge_questions import (
    answer_questions,
    ask_questions,
    draw_prompt,
    exchange_words,
    word_lists,
)
from rrs_jax.progress import Progress
from rrs_jax.weights.safetensors_io import read_header, save_file

MAX_SECONDS = 8

Clip = tuple[np.ndarray, int]  # as `log_mel` returns it, in float16
Answer = tuple[list[int], bool]  # token ids, and whether the answer ended by itself


@dataclass(frozen=True)
class DataSizes:
    """How much data the bridge is trained on.

    Attributes:
      samples: openings that the decoder is asked to continue to a question.
      word_share: share of them that are asked with a word of the decoder's vocabulary.
      lists: lists of random words that are spoken and only repeated.
      max_new_tokens: most tokens of an answer.
      batch_size: rows in flight while the decoder generates.
      seed: of all draws.
    """

    samples: int
    max_new_tokens: int
    batch_size: int
    seed: int
    word_share: float = 0.0
    lists: int = 0


@dataclass(frozen=True)
class Spoken:
    """A text to be spoken: a question of a pair, or words that are only repeated, which have no pair.

    Attributes:
      text: the words.
      pair: number of the question; its copy with other words has the same.
      prompt: text beside the question, the same for both of a pair; None for none.
    """

    text: str
    pair: int | None = None
    prompt: str | None = None


def make_bridge_data(model: nnx.Module, processor: Processor, work: Path, sizes: DataSizes) -> None:
    """Writes `features.safetensors` (log-mel features of all clips) and `data.jsonl`.

    A row of data.jsonl has what is `Spoken`, the answer's tokens (null where it is only to be repeated) and
    whether the answer ended by itself.
    """
    questions = ask_questions(
        model,
        processor,
        samples=sizes.samples,
        batch_size=sizes.batch_size,
        seed=sizes.seed,
        word_share=sizes.word_share,
    )
    copies = exchange_words(questions, sizes.seed)
    spoken = [
        Spoken(text, pair, draw_prompt(pair, sizes.seed))
        for pair, both in enumerate(zip(questions, copies, strict=True))
        for text in both
        if text is not None
    ]
    pairs = len(spoken) - len(questions)
    print(f"{len(questions)} distinct questions of {sizes.samples} samples, {pairs} with a copy", flush=True)
    spoken += [Spoken(text) for text in word_lists(processor, sizes.lists, sizes.seed)]
    features, answers = _speak_and_answer(model, processor, spoken, sizes)
    kept = sorted(features)
    save_clips([features[i] for i in kept], work / "features.safetensors")
    rows = []
    for i in kept:
        answer, ended = answers.get(i, (None, False))
        rows.append({**vars(spoken[i]), "answer": answer, "ended": ended})
    write_jsonl(work / "data.jsonl", rows)


def _speak_and_answer(
    model: nnx.Module, processor: Processor, spoken: list[Spoken], sizes: DataSizes
) -> tuple[dict[int, Clip], dict[int, Answer]]:
    """Speaks the texts on all cores while the device answers the questions.

    Returns clips and answers by their texts' places; what cannot be spoken or is not answered is absent.
    """
    texts = [row.text for row in spoken]
    questions = [row for row in spoken if row.pair is not None]  # before the lists
    # The voices yield to the process that feeds the device.
    with voice_processes(cores(), niceness=10) as pool:
        clips = pool.map(
            speech_features, texts, [processor.mel] * len(texts), [sizes.seed] * len(texts), chunksize=16
        )
        answers = answer_questions(
            model,
            processor,
            [row.text for row in questions],
            [row.prompt for row in questions],
            max_new_tokens=sizes.max_new_tokens,
            batch_size=sizes.batch_size,
        )
        print(
            f"{len(answers)} of {len(questions)} answered; the others, alarming or declined, are repeated",
            flush=True,
        )
        features = {}
        with Progress(len(texts), "speaking", "clips") as progress:
            for i, clip in enumerate(clips):
                if clip is not None:
                    features[i] = clip
                progress.update()
    return features, answers


def speech_features(question: str, mel: MelConfig, seed: int) -> tuple[np.ndarray, int] | None:
    """Speaks one question in its own voice and returns its log-mel features in float16.

    None where it cannot be spoken or is too long.
    """
    try:
        waveform = speak(question, draw_voice(question, seed))
    except UserError:  # one of 30,000 questions that no voice can say
        return None
    if len(waveform) > MAX_SECONDS * mel.sampling_rate:
        return None
    features, frames = log_mel(waveform, mel)
    return features.astype(np.float16), frames


def save_clips(clips: list[tuple[np.ndarray, int]], file: Path) -> None:
    """Writes all clips' frames one behind the other.

    Beside them stand how many frames each clip has, and how many of them count in the encoder's mask.
    """
    tensors = {
        "features": np.concatenate([features.T for features, _ in clips]),
        "frames": np.array([features.shape[1] for features, _ in clips], np.int32),
        "feature_lengths": np.array([length for _, length in clips], np.int32),
    }
    with atomic_path(file) as temporary:
        save_file(temporary, tensors)


def load_clips(work: Path) -> list[tuple[np.ndarray, int]]:
    """Reads what `save_clips` wrote."""
    entries, _ = read_header(work / "features.safetensors")
    features, frames, lengths = (entries[name].array() for name in ("features", "frames", "feature_lengths"))
    ends = np.cumsum(frames)
    return [
        (features[end - count : end].T, int(length))
        for end, count, length in zip(ends, frames, lengths, strict=True)
    ]
