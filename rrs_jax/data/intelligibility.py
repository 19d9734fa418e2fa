"""Word errors of voices and of data sets, as a Whisper model hears them.

    pip install faster-whisper
    python -m rrs_jax.data.intelligibility --model=FOLDER --voices=hibari --questions=30
    python -m rrs_jax.data.intelligibility --model=FOLDER --manifest=MANIFEST.jsonl --questions=100

FOLDER holds Whisper in CTranslate2's format, or is the name of one that faster-whisper fetches (`base`). The
model is given each clip alone and writes without sampling. One line a voice, then every clip that it
misheard.
"""

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rrs_jax.config.kinds import integer, with_home
from rrs_jax.data.manifest import audio_paths, load_manifest
from rrs_jax.data.questions import changed_words
from rrs_jax.data.speech import speak_all
from rrs_jax.data.starter import StarterChoice, choose_rows
from rrs_jax.data.voices import read_voices
from rrs_jax.errors import UserError, exit_status
from rrs_jax.files import append_jsonl, content_hash, read_growing_jsonl
from rrs_jax.progress import Progress, say


def word_errors(said: str, heard: str) -> tuple[int, int]:
    """Counts wrong words and all words.

    Marks inside words do not count: "coworker's" is "co-workers".
    """
    said, heard = (re.sub(r"['’-]", "", text) for text in (said, heard))
    return changed_words(said, heard), len(said.split())


class Listener:
    """A Whisper model by faster-whisper on the CPU, 8 bits, greedy.

    `model` is a folder, or a name that faster-whisper fetches. Raises UserError where it cannot be loaded.
    """

    def __init__(self, model: str):
        try:
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise UserError(
                "Listening to clips needs the package faster-whisper; run: pip install faster-whisper"
            ) from error
        try:
            self.model = WhisperModel(model, device="cpu", compute_type="int8")
        except (RuntimeError, ValueError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{model}: faster-whisper cannot load it ({reason}); give a folder or a name."
            ) from error
        self.name = model

    def hear(self, path: str | Path) -> str:
        """Returns the text that is heard in a clip."""
        segments, _ = self.model.transcribe(
            str(path), language="en", beam_size=1, temperature=0.0, without_timestamps=True
        )
        return "".join(segment.text for segment in segments).strip()


def hear_all(
    listener: Listener, texts_with_clips: list[tuple[str, Path]], kept: str | Path | None = None
) -> list[dict]:
    """Hears all clips; returns a row `text`, `heard`, `wrong`, `words` for each.

    `kept` is a file of the rows heard before.
    """
    known = {row["key"]: row for row in read_growing_jsonl(kept, say)} if kept else {}
    heard = []
    with Progress(len(texts_with_clips), "listening to the clips", unit="clips") as progress:
        for text, path in texts_with_clips:
            key = content_hash(listener.name, text, Path(path).read_bytes())
            if key not in known:
                words = listener.hear(path)
                wrong, count = word_errors(text, words)
                known[key] = {"key": key, "text": text, "heard": words, "wrong": wrong, "words": count}
                if kept:
                    append_jsonl(kept, [known[key]])
            heard.append(known[key])
            progress.update()
    return heard


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after one sentence on standard error for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m rrs_jax.data.intelligibility", description="Words that Whisper mishears, by voice."
    )
    add = parser.add_argument
    add("--model", default="base", help="folder or name of a Whisper model for faster-whisper")
    add("--manifest", default="", help="manifest whose clips are heard, in place of the starter questions")
    add("--voices", default="", help="voices with commas between; empty is hibari's")
    add("--questions", type=integer(1).argument, default=30, help="number of questions, evenly over the file")
    asked = parser.parse_args(with_home(arguments))
    with exit_status() as status:
        measure_voices(asked)
    return status.code


def measure_voices(asked: argparse.Namespace) -> None:
    """Prints the share of wrong words by voice, then every clip that was misheard."""
    listener = Listener(asked.model)
    clips: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    if asked.manifest:
        rows = load_manifest(asked.manifest)
        paths = audio_paths(asked.manifest, rows)
        step = max(len(rows) // asked.questions, 1)
        for row, path in list(zip(rows, paths, strict=True))[::step][: asked.questions]:
            clips[row["voice"] or "unknown voice"].append((row["question"], path))
    else:
        rows = [row for row in choose_rows(StarterChoice("train")) if row["label"] == "harmful"]
        questions = [row["question"] for row in rows[:: max(len(rows) // asked.questions, 1)]][
            : asked.questions
        ]
        for voice in read_voices(asked.voices):
            spoken = speak_all([(question, voice) for question in questions])
            clips[voice.name] = [
                (question, path) for question, (path, _) in zip(questions, spoken, strict=True)
            ]
    misheard, total_wrong, total = [], 0, 0
    for voice, members in sorted(clips.items()):
        heard = hear_all(listener, members)
        wrong, words = sum(row["wrong"] for row in heard), sum(row["words"] for row in heard)
        total_wrong, total = total_wrong + wrong, total + words
        print(
            f"{voice}: {100 * wrong / words:.1f} % of {words} words wrong, {len(members)} clips", flush=True
        )
        misheard += [f"{voice}: {row['text']} | {row['heard']}" for row in heard if row["wrong"]]
    print(f"all: {100 * total_wrong / total:.1f} % of {total} words wrong")
    print("\n".join(misheard))


if __name__ == "__main__":
    sys.exit(main())
