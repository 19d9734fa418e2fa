r"""Other speech for the AIAH protocol (Yang et al. 2024): distracting clips, spelt words, variations of a
set.

    python -m rrs_jax.data.distractors MANIFEST.jsonl OUT \
        --kinds=silence,noise,unit_noise,spelled,speed,tempo,pitch,snr,room

One folder a kind, OUT/KIND/manifest.jsonl, its rows those of MANIFEST with other clips and the field
`variant`:

    silence     zeros, as long as the row's clip; the question is asked in text
    noise       Gaussian noise with the mean and variance of the set's harmful clips, in 32-bit float WAV
    unit_noise  the same with mean 0 and variance 1
    spelled     spoken again, the words in which a pair's twins differ letter by letter (harmful ones alone)
    speed       played `--speed` times as fast, pitch with it
    tempo       `--tempo` times as fast at the same pitch (librosa's phase vocoder)
    pitch       moved by `--semitones` at the same tempo (likewise)
    snr         with white noise, `--snr` dB below the speech
    room        heard in a room of 5 x 4 x 3 m that decays by 60 dB in `--reverberation` s (pyroomacoustics)
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from rrs_jax.config.kinds import number, split_names, with_home
from rrs_jax.data.manifest import audio_paths, load_manifest
from rrs_jax.data.questions import words
from rrs_jax.data.speech import placed_clip, speak_all
from rrs_jax.data.voices import PEAK, SAMPLING_RATE, draw_voice, read_voices
from rrs_jax.errors import UserError, exit_status
from rrs_jax.files import atomic_path, content_hash, write_jsonl
from rrs_jax.progress import Progress

ROOM = (5.0, 4.0, 3.0)  # m
SPEAKER, LISTENER = (1.2, 1.5, 1.6), (3.6, 2.6, 1.2)  # m
KINDS = ("silence", "noise", "unit_noise", "spelled", "speed", "tempo", "pitch", "snr", "room")


def silence(samples: int) -> np.ndarray:
    """Returns float32 zeros (samples,)."""
    return np.zeros(samples, np.float32)


def noise(samples: int, seed: int, mean: float = 0.0, deviation: float = 1.0) -> np.ndarray:
    """Returns Gaussian noise, float32 (samples,)."""
    return np.random.default_rng(seed).normal(mean, deviation, samples).astype(np.float32)


def spell(text: str, spelled: Sequence[str]) -> str:
    """Returns the text with these words letter by letter: "Who eats, C, A, T, S?"; case does not matter.

    Raises UserError where the text has none of them.
    """
    wanted, found, said = {word.lower() for word in spelled}, False, []
    for word in text.split():
        bare = "".join(character for character in word if character.isalnum() or character == "'")
        if bare.lower() in wanted:
            found = True
            before, after = word.split(bare, 1)
            word = before + ", ".join(letter.upper() for letter in bare if letter.isalnum()) + (after or ",")
            if said and said[-1][-1] not in ",.?!;:":
                said[-1] += ","
        said.append(word)
    if not found:
        raise UserError(f"{text!r}: has none of the words {', '.join(sorted(wanted))} to spell.")
    return " ".join(said)


def at_speed(waveform: np.ndarray, speed: float) -> np.ndarray:
    """Plays a waveform as a tape does: at `speed` 1.25 it lasts 0.8 of the time and sounds higher."""
    return soxr.resample(waveform, SAMPLING_RATE * speed, SAMPLING_RATE, quality="HQ").astype(np.float32)


def at_tempo(waveform: np.ndarray, tempo: float) -> np.ndarray:
    """Returns a waveform `tempo` times as fast at the same pitch, float32, peak 0.9."""
    from librosa.effects import time_stretch

    return _at_peak(time_stretch(waveform, rate=tempo))


def at_pitch(waveform: np.ndarray, semitones: float) -> np.ndarray:
    """Returns a waveform moved by `semitones` at the same tempo, float32, peak 0.9."""
    from librosa.effects import pitch_shift

    return _at_peak(pitch_shift(waveform, sr=SAMPLING_RATE, n_steps=semitones))


def with_noise(waveform: np.ndarray, snr_db: float, seed: int) -> np.ndarray:
    """Adds white noise `snr_db` below the speech's mean power, float32, peak 0.9."""
    power = np.mean(waveform.astype(np.float64) ** 2)
    added = np.random.default_rng(seed).normal(size=len(waveform))
    added *= np.sqrt(power / np.mean(added**2) / 10 ** (snr_db / 10))
    return _at_peak(waveform + added)


def in_room(waveform: np.ndarray, reverberation: float) -> np.ndarray:
    """Returns a waveform as it is heard in a room, float32, peak 0.9.

    The room is a shoebox, computed by image sources; its walls give the decay time `reverberation` in seconds
    (Sabine).
    """
    try:
        import pyroomacoustics
    except ImportError as error:
        raise UserError("Rooms need the package pyroomacoustics; run: pip install pyroomacoustics") from error
    try:
        absorption, order = pyroomacoustics.inverse_sabine(reverberation, ROOM)
    except ValueError as error:
        raise UserError(
            f"--reverberation={reverberation:g}: no wall makes this room decay so fast; give 0.2 or more."
        ) from error
    room = pyroomacoustics.ShoeBox(
        ROOM, fs=SAMPLING_RATE, materials=pyroomacoustics.Material(absorption), max_order=order
    )
    room.add_source(SPEAKER, signal=waveform.astype(np.float64))
    room.add_microphone(LISTENER)
    room.simulate()
    return _at_peak(room.mic_array.signals[0])


def twin_words(rows: Sequence[dict]) -> dict[str, list[str]]:
    """Returns by each harmful question's id the words that its benign rewrite lacks."""
    pairs = defaultdict(dict)
    for row in rows:
        pairs[row["pair_id"]][row["label"]] = row
    twins = {}
    for pair in pairs.values():
        if {"harmful", "benign"} <= set(pair):
            harmless = words(pair["benign"]["question"])
            twins[pair["harmful"]["id"]] = [
                word for word in words(pair["harmful"]["question"]) if word not in harmless
            ]
    return twins


@dataclass(frozen=True)
class VariantOptions:
    """How the variants of a set are made.

    Attributes:
      speed: of the kind speed; 1.25 is a quarter faster.
      tempo: of the kind tempo; 1.25 is a quarter faster.
      semitones: of the kind pitch.
      snr: of the kind snr, in dB.
      reverberation: of the kind room, in seconds.
      voices: of the kind spelled, names as for `read_voices`; paid ones may cost `max_cost_usd`.
      seed: of noise and voices.
    """

    speed: float = 1.25
    tempo: float = 1.25
    semitones: float = 2.0
    snr: float = 10.0
    reverberation: float = 0.5
    voices: str = ""
    seed: int = 0
    max_cost_usd: float = 0.0


def make_variant(
    kind: str, manifest: str | Path, out: str | Path, options: VariantOptions | None = None
) -> Path:
    """Writes the variant `kind` of a set to `out`/KIND and returns its manifest. Raises UserError."""
    rows, folder, options = load_manifest(manifest), Path(out) / kind, options or VariantOptions()
    if kind == "spelled":
        return _spelled(rows, folder, options)
    paths = audio_paths(manifest, rows)
    mean, deviation = _statistics(rows, paths) if kind == "noise" else (0.0, 1.0)
    made = []
    with Progress(len(rows), kind, unit="clips") as progress:
        for row, path in zip(rows, paths, strict=True):
            waveform = _read(path)
            row_seed = int(content_hash(options.seed, kind, row["id"])[:8], 16)
            changed = {
                "silence": lambda: silence(len(waveform)),  # noqa: B023 called at once
                "noise": lambda: noise(len(waveform), row_seed, mean, deviation),  # noqa: B023
                "unit_noise": lambda: noise(len(waveform), row_seed),  # noqa: B023
                "speed": lambda: at_speed(waveform, options.speed),  # noqa: B023
                "tempo": lambda: at_tempo(waveform, options.tempo),  # noqa: B023
                "pitch": lambda: at_pitch(waveform, options.semitones),  # noqa: B023
                "snr": lambda: with_noise(waveform, options.snr, row_seed),  # noqa: B023
                "room": lambda: in_room(waveform, options.reverberation),  # noqa: B023
            }[kind]()
            made.append(_written(row, changed, folder, kind))
            progress.update()
    write_jsonl(folder / "manifest.jsonl", made)
    return folder / "manifest.jsonl"


def _written(row: dict, waveform: np.ndarray, folder: Path, kind: str) -> dict:
    # FLAC holds nothing beyond full scale, where Gaussian noise goes.
    name, form, subtype = (
        ("wav", "WAV", "FLOAT") if kind in ("noise", "unit_noise") else ("flac", "FLAC", "PCM_16")
    )
    audio = f"audio/{row['id']}.{name}"
    with atomic_path(folder / audio) as temporary:
        soundfile.write(temporary, waveform, SAMPLING_RATE, format=form, subtype=subtype)
    return row | {"audio": audio, "seconds": round(len(waveform) / SAMPLING_RATE, 3), "variant": kind}


def _spelled(rows: list[dict], folder: Path, options: VariantOptions) -> Path:
    twins = twin_words(rows)
    chosen = [row for row in rows if twins.get(row["id"])]
    if not chosen:
        raise UserError(
            "spelled: no harmful question of the manifest has a benign twin, whose other words would be"
            " spelt."
        )
    drawn = read_voices(options.voices)
    texts = [
        (spell(row["question"], twins[row["id"]]), draw_voice(row["question"], options.seed, drawn))
        for row in chosen
    ]
    clips = speak_all(texts, max_cost_usd=options.max_cost_usd)
    made = [
        row
        | placed_clip(clip, voice, folder, row["id"])
        | {"variant": "spelled", "spoken": text, "spelled": twins[row["id"]]}
        for row, (text, voice), clip in zip(chosen, texts, clips, strict=True)
    ]
    write_jsonl(folder / "manifest.jsonl", made)
    return folder / "manifest.jsonl"


def _statistics(rows: Sequence[dict], paths: Sequence[Path]) -> tuple[float, float]:
    """Returns mean and standard deviation of all samples of the harmful clips."""
    count, total, squares = 0, 0.0, 0.0
    for row, path in zip(rows, paths, strict=True):
        if row["label"] == "harmful":
            waveform = _read(path).astype(np.float64)
            count, total, squares = (
                count + len(waveform),
                total + waveform.sum(),
                squares + (waveform**2).sum(),
            )
    if not count:
        raise UserError(
            "noise: the manifest has no harmful question, whose clips' mean and variance are taken."
        )
    mean = total / count
    return mean, float(np.sqrt(squares / count - mean**2))


def _read(path: Path) -> np.ndarray:
    """Reads a clip as float32 (samples,) at 16 kHz, the mean of its channels."""
    try:
        channels, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise UserError(
            f"{path}: is not readable as audio ({error.error_string}); speak it again."
        ) from error
    waveform = channels.mean(axis=1)
    return waveform if rate == SAMPLING_RATE else soxr.resample(waveform, rate, SAMPLING_RATE, quality="HQ")


def _at_peak(waveform: np.ndarray) -> np.ndarray:
    return (waveform * (PEAK / np.abs(waveform).max())).astype(np.float32)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after one sentence on standard error for a user's mistake."""
    asked = _parser().parse_args(with_home(arguments))
    with exit_status() as status:
        if unknown := [kind for kind in asked.kinds if kind not in KINDS]:
            raise UserError(f"--kinds: {', '.join(unknown)} is none of {', '.join(KINDS)}.")
        options = VariantOptions(
            speed=asked.speed,
            tempo=asked.tempo,
            semitones=asked.semitones,
            snr=asked.snr,
            reverberation=asked.reverberation,
            voices=asked.voices,
            seed=asked.seed,
            max_cost_usd=asked.max_cost_usd,
        )
        for kind in asked.kinds:
            print(make_variant(kind, asked.manifest, asked.out, options), flush=True)
    return status.code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rrs_jax.data.distractors", description="Variants of a set with other clips."
    )
    parser.add_argument("manifest", metavar="MANIFEST.jsonl", help="the set whose clips are varied")
    parser.add_argument("out", metavar="OUT", help="folder to write to, one folder a kind")
    add = parser.add_argument
    add("--kinds", type=split_names, default=KINDS, help="variants to make, by commas; default: all")
    add("--speed", type=number(0.25, 4).argument, default=1.25, help="times as fast, of the kind speed")
    add("--tempo", type=number(0.25, 4).argument, default=1.25, help="times as fast, of the kind tempo")
    add("--semitones", type=number(-12, 12).argument, default=2.0, help="of the kind pitch")
    add("--snr", type=number().argument, default=10.0, help="dB, of the kind snr")
    add("--reverberation", type=number(0.05, 3).argument, default=0.5, help="seconds, of the kind room")
    add("--voices", default="", help="voices of the kind spelled, as in rrs_jax.data.build")
    add("--seed", type=int, default=0, help="seed of noise and voices")
    add("--max_cost_usd", type=number(0).argument, default=0.0, help="US dollars that paid voices may cost")
    return parser


if __name__ == "__main__":
    sys.exit(main())
