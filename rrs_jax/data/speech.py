"""Many spoken clips: one process a core, each clip cached by its content, so that a killed run goes on."""

import math
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import soundfile

from rrs_jax.data.voices import SAMPLING_RATE, Voice, speak
from rrs_jax.errors import UserError
from rrs_jax.files import atomic_path, content_hash
from rrs_jax.progress import Progress

CLIP_FORMAT = 1  # part of the cache's key: raise it when `speak` makes other samples of the same waveform
CLIPS_A_WORKER = 32  # fewer are spoken sooner than a further process starts


def speech_folder(cache: str | Path | None = None) -> Path:
    """Where clips are kept: `cache`, else `speech` in $RRS_JAX_CACHE, else in ~/.cache/rrs_jax."""
    if cache is None:
        cache = Path(os.environ.get("RRS_JAX_CACHE") or "~/.cache/rrs_jax") / "speech"
    return Path(cache).expanduser()


def clip_path(text: str, voice: Voice, cache: str | Path | None = None) -> Path:
    """A clip's place in the cache: by text, voice and the engine's version."""
    key = content_hash(text, voice.name, voice.version, CLIP_FORMAT)
    return speech_folder(cache) / key[:2] / f"{key}.flac"


def speak_all(
    texts_with_voices: Sequence[tuple[str, Voice]], cache: str | Path | None = None, workers: int | None = None
) -> list[tuple[Path, float]]:
    """A FLAC file (16 kHz, mono, 16 bits) for each text, and its length in seconds, in the given order.

    Clips in the cache are not spoken again. workers: processes; None is one a core.
    Raises UserError that lists every text that a voice could not speak; the others are in the cache by then.
    """
    paths = [clip_path(text, voice, cache) for text, voice in texts_with_voices]
    seconds = {path: length for path in set(paths) if (length := _clip_seconds(path)) is not None}
    missing = {
        path: (text, voice)
        for path, (text, voice) in zip(paths, texts_with_voices, strict=True)
        if path not in seconds
    }
    faults = []
    if missing:
        clips = [(path, text, voice) for path, (text, voice) in missing.items()]
        workers = min(workers or os.cpu_count() or 1, math.ceil(len(clips) / CLIPS_A_WORKER))
        with Progress(len(clips), "speaking", unit="clips") as progress:
            for path, length, fault in _run(clips, workers):
                seconds[path] = length
                if fault:
                    faults.append(fault)
                progress.update()
    if faults:
        raise UserError(f"{len(faults)} of {len(paths)} texts could not be spoken:\n" + "\n".join(sorted(set(faults))))
    return [(path, seconds[path]) for path in paths]


def _run(clips: list[tuple[Path, str, Voice]], workers: int) -> Iterator[tuple[Path, float, str | None]]:
    if workers == 1:
        yield from map(_write_clip, clips)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of JAX, and may then hang
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        yield from pool.map(_write_clip, clips, chunksize=8)
    finally:
        pool.shutdown(cancel_futures=True)


def _write_clip(clip: tuple[Path, str, Voice]) -> tuple[Path, float, str | None]:
    """Path, seconds, and what is wrong where there is no clip."""
    path, text, voice = clip
    try:
        waveform = speak(text, voice)
    except UserError as error:
        return path, 0.0, str(error)
    with atomic_path(path) as temporary:  # a full disk stops the whole work
        soundfile.write(temporary, waveform, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return path, len(waveform) / SAMPLING_RATE, None


def _clip_seconds(path: Path) -> float | None:
    """None where the clip is not there, or was damaged: it is then spoken again."""
    try:
        return soundfile.info(path).duration
    except (OSError, soundfile.LibsndfileError):
        return None
