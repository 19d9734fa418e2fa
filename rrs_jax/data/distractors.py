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

from rrs_jax.config.kinds import number, split_names, with_home
from rrs_jax.data.manifest import audio_paths, load_manifest
from rrs_jax.data.questions import words
from rrs_jax.data.speech import placed_clip, speak_all
from rrs_jax.data.voices import SAMPLING_RATE, draw_voice, read_voices
from rrs_jax.data.waveforms import (
    at_pitch,
    at_speed,
    at_tempo,
    in_room,
    noise,
    read_waveform,
    silence,
    with_noise,
    write_waveform,
)
from rrs_jax.errors import UserError, exit_status
from rrs_jax.files import content_hash, safe_name, write_jsonl
from rrs_jax.progress import Progress

KINDS = ("silence", "noise", "unit_noise", "spelled", "speed", "tempo", "pitch", "snr", "room")


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
            waveform = read_waveform(path)
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
    ending = "wav" if kind in ("noise", "unit_noise") else "flac"
    audio = f"audio/{safe_name(row['id'])}.{ending}"
    write_waveform(folder / audio, waveform)
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
            waveform = read_waveform(path).astype(np.float64)
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
