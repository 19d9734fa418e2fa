"""Word errors of the voices, as a Whisper model hears them.

    pip install faster-whisper
    python -m rrs_jax.data.intelligibility --model=FOLDER --voices=hibari --questions=30

FOLDER holds Whisper in CTranslate2's format, or is the name of one that faster-whisper fetches (`base`). The model
is given each clip alone and writes without sampling. One line a voice, then every clip that it misheard.
"""

import re

from absl import app, flags

from rrs_jax.data.speech import speak_all
from rrs_jax.data.starter import changed_words, choose_rows
from rrs_jax.data.voices import read_voices


def word_errors(said: str, heard: str) -> tuple[int, int]:
    """Wrong words and all words. Marks inside words do not count: "coworker's" is "co-workers"."""
    said, heard = (re.sub(r"['’-]", "", text) for text in (said, heard))
    return changed_words(said, heard), len(said.split())


def main(_) -> None:
    from faster_whisper import WhisperModel

    asked = flags.FLAGS
    model = WhisperModel(asked.model, device="cpu", compute_type="int8")
    rows = [row for row in choose_rows("train", pairs_per_category=None) if row["label"] == "harmful"]
    questions = [row["question"] for row in rows[:: len(rows) // asked.questions]][: asked.questions]
    misheard = []
    for voice in read_voices(asked.voices):
        wrong = words = seconds = 0
        clips = speak_all([(question, voice) for question in questions])
        for question, (path, length) in zip(questions, clips, strict=True):
            segments, _ = model.transcribe(
                str(path), language="en", beam_size=1, temperature=0.0, without_timestamps=True
            )
            heard = "".join(segment.text for segment in segments).strip()
            errors, count = word_errors(question, heard)
            wrong, words, seconds = wrong + errors, words + count, seconds + length
            if errors:
                misheard.append(f"{voice.name}: {question} | {heard}")
        share, length = 100 * wrong / words, seconds / len(clips)
        print(f"{voice.name}: {share:.1f} % of {words} words wrong, {length:.2f} s a clip", flush=True)
    print("\n".join(misheard))


if __name__ == "__main__":
    flags.DEFINE_string("model", "base", "Folder or name of a Whisper model for faster-whisper.")
    flags.DEFINE_string("voices", "", "Voices with commas between; empty is hibari's.")
    flags.DEFINE_integer("questions", 30, "Number of harmful starter questions.", lower_bound=1, upper_bound=280)
    app.run(main)
