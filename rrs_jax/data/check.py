"""Checks that every training set must pass, whoever made it: built, starter or a user's own."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import soundfile

from rrs_jax.data.duplicates import QuestionIndex
from rrs_jax.data.questions import unspeakable
from rrs_jax.data.rewrite import rewrite_fault
from rrs_jax.data.tables import read_questions
from rrs_jax.data.voices import SAMPLING_RATE, clip_fault
from rrs_jax.errors import UserError
from rrs_jax.files import reason_of

MAX_LISTED = 20


def check_excluded(questions: Iterable[str], files: Sequence[str | Path], skip_bad: bool = False) -> None:
    """Raises UserError where a question is, or nearly is, one of the evaluation questions in `files`.

    skip_bad: rows of the files that cannot be read are told and left out, and are no error.
    """
    if not files:
        return
    texts = ((path, text) for path in files for text in read_questions(path, skip_bad))
    index = QuestionIndex(((str(path), text), text) for path, text in texts)
    met = [(question, found[0]) for question in questions if (found := index.near(question))]
    if met:
        listed = [f"  {question!r}: {text!r} of {path}" for question, (path, text) in met[:MAX_LISTED]]
        more = [f"  and {len(met) - MAX_LISTED} more"] if len(met) > MAX_LISTED else []
        raise UserError(
            f"data.exclude: {len(met)} training questions are or nearly are evaluation questions; take them"
            " out of the manifest:\n" + "\n".join(listed + more)
        )


def text_faults(rows: Sequence[dict], *, rewritten: bool) -> list[str]:
    """Returns a sentence for everything that is wrong with a training set's questions.

    rewritten: a pair's benign question is the rewrite of its harmful one (Mirror, the starter set), and is
      judged as such.
    """
    faults, pairs = [], defaultdict(dict)
    for row in rows:
        pairs[row["pair_id"]][row["label"]] = row
        if reason := unspeakable(row["question"]):
            faults.append(f"{row['id']}: {row['question']!r} cannot be spoken: {reason}")
    index = QuestionIndex((row, row["question"]) for row in rows)
    for row in rows:
        for other in index.near(row["question"]):
            same_pair = rewritten and other["pair_id"] == row["pair_id"] and other["label"] != row["label"]
            if other["id"] > row["id"] and not same_pair:
                faults.append(
                    f"{row['id']}: {row['question']!r} is nearly equal to {other['id']}:"
                    f" {other['question']!r}"
                )
    if rewritten:
        for name, pair in pairs.items():
            if set(pair) != {"harmful", "benign"}:
                faults.append(
                    f"{name}: has {' and '.join(sorted(pair))}, not one harmful and one benign question"
                )
            elif fault := rewrite_fault(pair["harmful"]["question"], pair["benign"]["question"]):
                faults.append(f"{name}: {pair['benign']['question']!r} {fault}")
        counts = Counter(row["category"] for row in rows if row["label"] == "harmful")
        if len(set(counts.values())) > 1:
            faults.append(f"the categories have unequal numbers of pairs: {dict(counts)}")
    return faults


def clip_faults(questions: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """Returns a sentence for every clip with a wrong format, loudness, silence or length."""
    faults = []
    for question, path in zip(questions, paths, strict=True):
        try:
            info = soundfile.info(path)
            waveform, _ = soundfile.read(path, dtype="float32")
        except (OSError, soundfile.LibsndfileError) as error:
            faults.append(f"{path}: cannot be read ({reason_of(error)})")
            continue
        if (info.samplerate, info.channels, info.format) != (SAMPLING_RATE, 1, "FLAC"):
            faults.append(f"{path}: is {info.format}, {info.samplerate} Hz, {info.channels} channels")
        elif fault := clip_fault(waveform, len(question.split())):
            faults.append(f"{path}: {fault.rstrip(',')}".replace(": gives", ": has"))
    return faults
