"""Voices: a text goes in, a waveform comes out, nothing is fetched.

A voice is an engine's speaker at a speed and a pitch, and its name says all four:
`ENGINE:SPEAKER:SPEED:SEMITONES`, for example `hibari:heart:0.9:1`. Speed and semitones may be left out.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import soxr

from rrs_jax.data.engines import ENGINES
from rrs_jax.errors import SpeechFault, UserError
from rrs_jax.files import content_hash

SAMPLING_RATE = 16_000  # Hz, of every clip
FRAME = SAMPLING_RATE // 100  # samples
DEFAULT_ENGINE = "hibari"
SPEEDS, SEMITONES = (0.7, 1.4), (-5.0, 5.0)

PEAK = 0.9  # of full scale, of every clip
MARGIN_SECONDS = 0.1  # of the silence before and after the words that a clip keeps
SPEECH_DB = -45.0  # a frame of 10 ms counts as speech above this, relative to the loudest frame
MIN_RMS = 0.01  # of full scale; speech at this peak has 0.05 to 0.2, a click in silence far less
CLIPPED_SHARE = 1e-3  # of the samples at full scale, beyond which the engine overdrives
MAX_WORDS_A_SECOND = 10.0  # hurried speech has 5
MAX_SECONDS = 30.0  # what the models' audio encoders hear
MAX_PAUSE_SECONDS = 2.0  # inside the words; a longer one is a part that the engine left out


@functools.cache
def loaded(engine: type):
    """Returns the engine's one instance in this process."""
    return engine()


@dataclass(frozen=True)
class Voice:
    """A speaker of an engine (see `rrs_jax.data.engines`).

    It speaks at `speed` times its tempo, moved by `semitones`.
    """

    engine: type
    speaker: str
    speed: float = 1.0
    semitones: float = 0.0

    @property
    def name(self) -> str:
        """The voice's name, ENGINE:SPEAKER:SPEED:SEMITONES."""
        return f"{self.engine.name}:{self.speaker}:{self.speed:.10g}:{self.semitones:.10g}"

    @property
    def sample_rate(self) -> int:
        """Rate in Hz at which the waveform of `speak` is to be played.

        Pitch is moved as on a tape, by playing the samples faster or slower than they were made. That moves
        the formants too: a shifted speaker sounds like a smaller or a larger person.
        """
        return round(self.engine.sample_rate * 2 ** (self.semitones / 12))

    @property
    def version(self) -> str:
        """The engine's version, which changes when the same text may sound different."""
        return loaded(self.engine).version

    def speak(self, text: str) -> np.ndarray:
        """Returns float32 (samples,) at `sample_rate`, as the engine gives it.

        The engine's speed undoes the tape's.
        """
        tape = self.sample_rate / self.engine.sample_rate
        return np.asarray(loaded(self.engine).say(text, self.speaker, self.speed / tape), dtype=np.float32)


def read_voices(names: str | Iterable[str] = "") -> tuple[Voice, ...]:
    """Reads voices by name, separated by commas.

    An engine's name stands for its recommended voices, no name for hibari's. Loads the engines, so that a
    missing package is reported before any work. Raises UserError that names every voice it cannot read.
    """
    names = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    names = [name for name in names if name] or [DEFAULT_ENGINE]
    names = [
        voice for name in names for voice in (loaded(ENGINES[name]).voices if name in ENGINES else (name,))
    ]
    voices = [_read_voice(name) for name in names]
    if unknown := [name for name, voice in zip(names, voices, strict=True) if voice is None]:
        raise UserError(
            f"voices {', '.join(unknown)}: no such voice; name an engine ({', '.join(ENGINES)}) or "
            f"ENGINE:SPEAKER:SPEED:SEMITONES with speed {SPEEDS[0]} to {SPEEDS[1]} and {SEMITONES[0]:g} to "
            f"{SEMITONES[1]:g} semitones, for example {ENGINES[DEFAULT_ENGINE].voices[1]}."
        )
    for voice in voices:
        loaded(voice.engine)
    return tuple(dict.fromkeys(voices))


def _read_voice(name: str) -> Voice | None:
    engine, *rest = name.split(":")
    if engine not in ENGINES or not 1 <= len(rest) <= 3 or not rest[0]:
        return None
    try:
        speed, semitones = float((rest[1:2] or ["1"])[0]), float((rest[2:3] or ["0"])[0])
    except ValueError:
        return None
    if not (SPEEDS[0] <= speed <= SPEEDS[1] and SEMITONES[0] <= semitones <= SEMITONES[1]):
        return None
    return Voice(ENGINES[engine], rest[0], speed, semitones)


def draw_voice(text: str, seed: int, voices: tuple[Voice, ...] | None = None, attempt: int = 0) -> Voice:
    """Draws one voice at random, as in appendix B; the same for the same text, seed and voices.

    voices: None is hibari's. attempt: takes a later voice in their order, where the first ones failed.
    """
    voices = voices or read_voices()
    return voices[(int(content_hash(seed, text), 16) + attempt) % len(voices)]


def speak(text: str, voice: Voice) -> np.ndarray:
    """Speaks a text: float32 (samples,), 16 kHz, peak 0.9, with 0.1 s of silence at either end.

    Raises SpeechFault where the voice gives silence, an overdriven or broken waveform, or one whose length
    cannot be that of the text.
    """
    raw = voice.speak(text)
    if reason := _raw_fault(raw):
        raise SpeechFault(f"voice {voice.name}: {reason} for {text!r}; choose another voice.")
    waveform = _trim(soxr.resample(raw, voice.sample_rate, SAMPLING_RATE, quality="HQ"))
    waveform *= PEAK / np.abs(waveform).max()
    if reason := clip_fault(waveform, len(text.split())):
        raise SpeechFault(
            f"voice {voice.name}: {reason} for {text!r}; reword the text or choose another voice."
        )
    return waveform


def _trim(waveform: np.ndarray) -> np.ndarray:
    """Takes off the silence before and after the words, but for the margins."""
    speech = _speech_frames(waveform)
    margin = round(MARGIN_SECONDS * SAMPLING_RATE)
    start, stop = speech[0] * FRAME - margin, (speech[-1] + 1) * FRAME + margin
    return waveform[max(start, 0) : stop]


def _speech_frames(waveform: np.ndarray) -> np.ndarray:
    """Returns the numbers of the frames of 10 ms that are not silence beside the loudest one."""
    frames = np.pad(waveform, (0, -len(waveform) % FRAME)).reshape(-1, FRAME)
    loudness = np.sqrt(np.mean(frames**2, axis=1))
    return np.flatnonzero(loudness > loudness.max() * 10 ** (SPEECH_DB / 20))


def _raw_fault(waveform: np.ndarray) -> str | None:
    if waveform.ndim != 1 or len(waveform) == 0:
        return "gives no samples"
    if not np.isfinite(waveform).all():
        return "gives NaN or infinite samples"
    if np.abs(waveform).max() < 1e-3:
        return "gives silence"
    if np.mean(np.abs(waveform) >= 0.999) > CLIPPED_SHARE:
        return "gives a clipped waveform"
    return None


def clip_fault(waveform: np.ndarray, words: int) -> str | None:
    """Returns what is wrong with a finished clip of so many words, 16 kHz; None where nothing is."""
    seconds = len(waveform) / SAMPLING_RATE
    if np.sqrt(np.mean(waveform**2)) < MIN_RMS:
        return "gives near silence"
    if words > MAX_WORDS_A_SECOND * seconds:
        return f"gives {seconds:.2f} s, too short for {words} words,"
    if seconds > MAX_SECONDS:
        return f"gives {seconds:.0f} s, more than the {MAX_SECONDS:g} s that the models hear,"
    pause = np.diff(_speech_frames(waveform)).max(initial=1) * FRAME / SAMPLING_RATE
    if pause > MAX_PAUSE_SECONDS:
        return f"gives a pause of {pause:.1f} s between words"
    return None
