"""A bridge's data: questions, their written answers, and their speech as features, in a work folder."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flax import nnx

from rrs_jax.data.speech import voice_processes
from rrs_jax.data.voices import draw_voice, speak
from rrs_jax.distributed.machine import cores
from rrs_jax.errors import UserError
from rrs_jax.files import atomic_path, read_jsonl, write_jsonl
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

ROWS, FEATURES = "data.jsonl", "features.safetensors"
MAX_SECONDS = 8

Clip = tuple[np.ndarray, int]  # as `log_mel` returns it, in float16


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
    """Writes `features.safetensors` (log-mel features of all clips) and, behind it, `data.jsonl`.

    A row of data.jsonl has what is `Spoken`, the answer's tokens (null where it is only to be repeated) and
    whether the answer ended by itself. What cannot be spoken has no row.
    """
    spoken = _questions_and_copies(model, processor, sizes)
    asked = len(spoken)  # the lists stand behind them
    spoken += [Spoken(text) for text in word_lists(processor, sizes.lists, sizes.seed)]
    with _speaking([row.text for row in spoken], processor.mel, sizes.seed) as clips:
        answers = answer_questions(
            model,
            processor,
            [row.text for row in spoken[:asked]],
            [row.prompt for row in spoken[:asked]],
            max_new_tokens=sizes.max_new_tokens,
            batch_size=sizes.batch_size,
        )
        print(
            f"{len(answers)} of {asked} answered; the others, alarming or declined, are repeated", flush=True
        )
        features = {i: clip for i, clip in enumerate(clips) if clip is not None}
    save_clips(list(features.values()), work / FEATURES)
    rows = []
    for i in features:
        answer, ended = answers.get(i, (None, False))
        rows.append({**vars(spoken[i]), "answer": answer, "ended": ended})
    write_jsonl(work / ROWS, rows)


def _questions_and_copies(model: nnx.Module, processor: Processor, sizes: DataSizes) -> list[Spoken]:
    """Has the decoder ask questions, and returns each with its copy of other words, where it has one."""
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
    return spoken


def speak_again(work: Path, mel: MelConfig, seed: int) -> None:
    """Writes `features.safetensors` anew from the rows of data.jsonl, byte for byte as the first making did.

    Raises UserError where these were made with another seed, or where one of them cannot be spoken.
    """
    file = work / ROWS
    rows = read_jsonl(file)
    if any(row["prompt"] != draw_prompt(row["pair"], seed) for row in rows if row["pair"] is not None):
        raise UserError(
            f"{file}: its prompts are not those of --seed={seed}; give the seed with which it was made, or"
            " delete it, and all data are made anew."
        )
    spoken: list[Clip] = []
    with _speaking([row["text"] for row in rows], mel, seed) as clips:
        for number, (row, clip) in enumerate(zip(rows, clips, strict=True), start=1):
            if clip is None:
                raise UserError(
                    f"{file}, line {number}: the voice cannot say {row['text']!r} within {MAX_SECONDS} s, as"
                    " it did where the file was made; install the hibari-tts of there, or delete the file,"
                    " and all data are made anew."
                )
            spoken.append(clip)
    save_clips(spoken, work / FEATURES)


@contextlib.contextmanager
def _speaking(texts: list[str], mel: MelConfig, seed: int) -> Iterator[Iterator[Clip | None]]:
    """Begins to speak the texts on all cores, and gives what `speech_features` returns of each.

    The device may work meanwhile: the voices yield to the process that feeds it.
    """
    count = len(texts)
    with voice_processes(cores(), niceness=10) as pool:
        clips = pool.map(speech_features, texts, [mel] * count, [seed] * count, chunksize=16)
        yield _counted(clips, count)


def _counted(clips: Iterator[Clip | None], count: int) -> Iterator[Clip | None]:
    with Progress(count, "speaking", "clips") as progress:
        for clip in clips:
            yield clip
            progress.update()


def speech_features(question: str, mel: MelConfig, seed: int) -> Clip | None:
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


def save_clips(clips: list[Clip], file: Path) -> None:
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


def load_clips(work: Path) -> list[Clip]:
    """Reads what `save_clips` wrote."""
    entries, _ = read_header(work / FEATURES, "delete it, and it is made again")
    features, frames, lengths = (entries[name].array() for name in ("features", "frames", "feature_lengths"))
    ends = np.cumsum(frames)
    return [
        (features[end - count : end].T, int(length))
        for end, count, length in zip(ends, frames, lengths, strict=True)
    ]
