"""Speaks many clips: one process a core, each clip cached by its content, so that a killed run continues."""

import contextlib
import hashlib
import math
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile

from rrs_jax.data.bad_rows import BadRows
from rrs_jax.data.service import Refused
from rrs_jax.data.speech_cache import place_clip, speech_folder
from rrs_jax.data.voices import SAMPLING_RATE, Voice, draw_voice, loaded, read_voices, speak
from rrs_jax.distributed.machine import cores, environment
from rrs_jax.errors import SpeechFault, UserError
from rrs_jax.files import atomic_path, content_hash, safe_name
from rrs_jax.progress import Progress, say

CLIP_FORMAT = 1  # part of the cache's key: raise it when `speak` makes other samples of the same waveform
CLIPS_A_WORKER = 32  # fewer are spoken sooner than a further process starts
FLAC_MD5 = slice(26, 42)  # bytes of a file that begins with its STREAMINFO, as every one does
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def clip_path(text: str, voice: Voice, cache: str | Path | None = None) -> Path:
    """Returns a clip's place in the cache: by text, voice and the engine's version."""
    key = content_hash(text, voice.name, voice.version, CLIP_FORMAT)
    return speech_folder(cache) / key[:2] / f"{key}.flac"


def speak_all(
    texts_with_voices: Sequence[tuple[str, Voice]],
    cache: str | Path | None = None,
    workers: int | None = None,
    max_cost_usd: float = 0.0,
) -> list[tuple[Path, float]]:
    """Returns a FLAC file (16 kHz, mono, 16 bits) for each text, and its length in seconds, in the order
    given.

    Paid voices may cost `max_cost_usd`. Raises UserError that lists every text that a voice could not speak,
    when the others are in the cache; otherwise as `try_speak_all`.
    """
    clips = try_speak_all(texts_with_voices, Budget(max_cost_usd), cache, workers)
    if faults := sorted({clip for clip in clips if isinstance(clip, str)}):
        failed = sum(isinstance(clip, str) for clip in clips)
        raise UserError(f"{failed} of {len(clips)} texts could not be spoken:\n" + "\n".join(faults))
    return clips


def clip_fields(clip: tuple[Path, float]) -> dict:
    """Returns the fields `audio` (an absolute path) and `seconds` of a row that has this clip."""
    path, seconds = clip
    return {"audio": str(path.absolute()), "seconds": round(seconds, 3)}


def placed_clip(clip: tuple[Path, float], voice: Voice, folder: Path, name: str) -> dict:
    """Puts a clip at `folder`/audio/NAME.flac; returns `audio`, `voice` and `seconds` of its row."""
    path, seconds = clip
    audio = f"audio/{safe_name(name)}.flac"
    place_clip(path, folder / audio)
    return {"audio": audio, "voice": voice.name, "seconds": round(seconds, 3)}


def speak_missing(
    rows: Sequence[dict],
    voices: str | Iterable[str],
    seed: int,
    max_cost_usd: float,
    *,
    source: str = "data",
    skip_bad: bool = False,
) -> list[dict]:
    """Speaks the rows without a clip, each in a voice drawn from `voices` (names as for `read_voices`).

    They get `audio` (an absolute path), `seconds` and `voice`. How many they are is told, as rows of
    `source`. Returns the rows with a clip, which are all. Raises UserError as `speak_all` does; with
    `skip_bad` a row that cannot be spoken is left out and told.
    """
    mute = [row for row in rows if not row["audio"]]
    if not mute:
        return list(rows)
    say(f"{source}: {len(mute)} of {len(rows)} questions have no clip and are spoken by data.voices")
    drawn = read_voices(voices)
    spoken = [(row["question"], draw_voice(row["question"], seed, drawn)) for row in mute]
    if skip_bad:
        clips = try_speak_all(spoken, Budget(max_cost_usd))
    else:
        clips = speak_all(spoken, max_cost_usd=max_cost_usd)
    bad = BadRows(source, skip_bad)
    for row, (_, voice), clip in zip(mute, spoken, clips, strict=True):
        if not bad.add(row["id"], *([clip] if isinstance(clip, str) else [])):
            row |= clip_fields(clip) | {"voice": voice.name}
    bad.end(len(rows))
    return [row for row in rows if row["audio"]]


class Budget:
    """The US dollars that may still be spent on paid voices."""

    def __init__(self, usd: float = 0.0):
        self.left = usd

    def take(self, texts_with_voices: Sequence[tuple[str, Voice]]) -> None:
        """Takes the texts' estimated cost off the budget and prints it to standard error.

        Raises UserError where too little is left.
        """
        cost = characters = 0
        for text, voice in texts_with_voices:
            price = getattr(loaded(voice.engine), "price", None)
            if price and (dollars := price(text, voice.speaker, voice.speed)):
                cost, characters = cost + dollars, characters + len(text)
        if cost > self.left:
            # Rounded up, so that the number in the sentence is enough.
            raise UserError(
                f"these voices cost about ${cost:.3f} ({characters} characters that are not in the cache); to"
                f" agree, give {math.ceil(cost * 100) / 100:.2f} or more as max_cost_usd."
            )
        if cost:
            print(f"speaking {characters} characters for about ${cost:.3f}", file=sys.stderr, flush=True)
        self.left -= cost


def try_speak_all(
    texts_with_voices: Sequence[tuple[str, Voice]],
    budget: Budget,
    cache: str | Path | None = None,
    workers: int | None = None,
) -> list[tuple[Path, float] | str]:
    """Returns a clip and its length in seconds for each text, or the sentence that says why there is none.

    Clips in the cache are not spoken again. `workers` is a number of processes; None is one a core. Raises
    UserError before any work where paid voices would cost more than the budget.
    """
    paths = [clip_path(text, voice, cache) for text, voice in texts_with_voices]
    different = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(cores()) as pool:
        known = zip(different, pool.map(_clip_seconds, different), strict=True)
        made: dict[Path, float | str] = {path: seconds for path, seconds in known if seconds is not None}
    missing = {
        path: (path, text, voice)
        for path, (text, voice) in zip(paths, texts_with_voices, strict=True)
        if path not in made
    }
    if missing:
        clips = list(missing.values())
        budget.take([(text, voice) for _, text, voice in clips])
        with Progress(len(clips), "speaking the questions", unit="clips") as progress:
            for path, result in _run(clips, workers or cores()):
                made[path] = result
                progress.update()
    return [made[path] if isinstance(made[path], str) else (path, made[path]) for path in paths]


def _run(clips: list[tuple[Path, str, Voice]], workers: int) -> Iterator[tuple[Path, float | str]]:
    """Speaks the clips: services in threads, since they wait; all else in processes, since it computes."""
    for engine in {clip[2].engine for clip in clips}:
        if service := getattr(loaded(engine), "service", None):
            for (path, _, _), result in service.each(
                _write_clip, [clip for clip in clips if clip[2].engine is engine]
            ):
                yield path, str(result) if isinstance(result, Refused) else result[1]
    computed = [clip for clip in clips if not getattr(loaded(clip[2].engine), "service", None)]
    workers = min(workers, math.ceil(len(computed) / CLIPS_A_WORKER))
    if workers <= 1:
        yield from map(_write_clip, computed)
        return
    with voice_processes(workers) as pool:
        yield from pool.map(_write_clip, computed, chunksize=8)


@contextlib.contextmanager
def voice_processes(workers: int, niceness: int = 0) -> Iterator[ProcessPoolExecutor]:
    """Starts processes that compute with one thread each; what is not begun is dropped at the end.

    With a thread a core in every process, 16 of them on 16 cores spoke a tenth of the clips a second.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of JAX, and may then hang
    with environment(dict.fromkeys(THREAD_VARIABLES, "1")):
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=os.nice, initargs=(niceness,))
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def _write_clip(clip: tuple[Path, str, Voice]) -> tuple[Path, float | str]:
    """Returns path and seconds, or what is wrong where there is no clip."""
    path, text, voice = clip
    try:
        waveform = speak(text, voice)
    except SpeechFault as fault:
        return path, str(fault)
    with atomic_path(path) as temporary:  # a full disk stops the whole work
        soundfile.write(temporary, waveform, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return path, len(waveform) / SAMPLING_RATE


def _clip_seconds(path: Path) -> float | None:
    """Returns the length of a clip; None where it is missing or damaged, and is spoken again.

    FLAC keeps the MD5 of its samples, which libsndfile does not compare.
    """
    if not path.exists():  # which libsndfile tells by the same error as a damaged file
        return None
    try:
        samples, rate = soundfile.read(path, dtype="int16")
        with path.open("rb") as file:
            stated = file.read(FLAC_MD5.stop)[FLAC_MD5]
    except (OSError, soundfile.LibsndfileError):
        stated, samples, rate = b"", np.zeros(0, np.int16), SAMPLING_RATE
    if hashlib.md5(samples.astype("<i2").tobytes(), usedforsecurity=False).digest() != stated:
        say(f"{path}: is damaged and spoken again")
        return None
    return len(samples) / rate
