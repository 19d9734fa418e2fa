"""The authors' own training questions as a data set of this project, with speech.

    python -m rrs_jax.data.authors FOLDER --out=DATASET --held_out=0.2 --exclude=safebench.csv,xstest.csv

FOLDER is a clone of `YangHao97/RRS`; `rrs_jax.data.authors_questions` says what is read there. What it makes:

    DATASET/train/manifest.jsonl, audio/      pairs of harmful question and rewrite, as their files pair them
    DATASET/held_out/manifest.jsonl, audio/   with --held_out: pairs none of whose questions nearly is one of
                                              train, for `data.eval_manifest`
    DATASET/summary.json                      what was found, what was left out and why, sizes, clips spoken

A run takes FOLDER itself as `data.manifest`, and then trains on all pairs.
"""

import argparse
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rrs_jax.config.kinds import with_home
from rrs_jax.data.authors_questions import AUDIO, AuthorsPair, AuthorsQuestions, manifest_rows, read_authors
from rrs_jax.data.authors_split import leave_out, split_by_text
from rrs_jax.data.manifest import load_manifest
from rrs_jax.data.spoken import SpeechOptions, speak_rows
from rrs_jax.data.starter import BORDERLINE, starter_pairs, starter_singles
from rrs_jax.data.tables import read_questions
from rrs_jax.data.voices import read_voices
from rrs_jax.errors import UserError, exit_status
from rrs_jax.files import read_json, write_json
from rrs_jax.progress import say

MAX_LISTED = 20


def training_rows(
    folder: str | Path,
    exclude: Sequence[str | Path] = (),
    eval_manifest: str | Path | None = None,
    skip_bad: bool = False,
) -> list[dict]:
    """Rows of a run's training manifest from the authors' FOLDER, and lines to the user about what was found.

    exclude: files of evaluation questions; eval_manifest: the manifest with which the run evaluates. Pairs
      with a question that nearly is one of theirs or of the starter set's are left out.
    skip_bad: rows of these files that cannot be used are told and left out.
    `audio` is an absolute path, or None for questions that have to be spoken. Raises UserError.
    """
    found = read_authors(folder)
    asked = [] if eval_manifest is None else load_manifest(eval_manifest, False, skip_bad)
    evaluation = evaluation_questions(exclude, skip_bad) + [
        (str(eval_manifest), row["question"]) for row in asked
    ]
    kept, left = leave_out(found.pairs, evaluation)
    for line in describe(folder, found, kept, left):
        say(line)
    return manifest_rows(kept)


def convert(
    folder: str | Path,
    out: str | Path,
    *,
    held_out: float = 0.0,
    seed: int = 0,
    exclude: Sequence[str | Path] = (),
    speech: SpeechOptions = SpeechOptions(),  # noqa: B008 (frozen)
) -> dict[str, Path]:
    """Makes DATASET (`out`) from the authors' FOLDER.

    held_out: share of the pairs, 0 to 1, that training does not get. seed: of that draw and of the voices.
    Returns the paths of the manifests by the names "train" and "held_out". Raises UserError; clips spoken by
    then are kept.
    """
    out = Path(out)
    settings = {"seed": seed, "held_out": held_out}
    _check_settings(out / "summary.json", settings)
    found = read_authors(folder)
    kept, left = leave_out(found.pairs, evaluation_questions(exclude))
    sides = split_by_text(kept, held_out, seed)
    for line in describe(folder, found, kept, left):
        say(line)
    rows = {
        name: manifest_rows(pairs) for name, pairs in zip(("train", "held_out"), sides, strict=True) if pairs
    }
    mute = any(row["audio"] is None for members in rows.values() for row in members)
    voices = read_voices(speech.voices) if mute else ()
    manifests, spoken = speak_rows(out, rows, voices, seed, speech)
    write_json(
        out / "summary.json",
        {"settings": settings, "found": found.counts, "remarks": found.remarks, "left_out": dict(left)}
        | {name: _sizes(members) for name, members in rows.items()}
        | {"spoken": spoken},
    )
    return manifests


def evaluation_questions(files: Sequence[str | Path] = (), skip_bad: bool = False) -> list[tuple[str, str]]:
    """Lists (where it stands, question) of every evaluation question of the starter set and of `files`.

    skip_bad: rows of the files that cannot be read are told and left out, and are no error.
    """
    questions = []
    for split in BORDERLINE:
        for pair in starter_pairs(split):
            questions += [(f"the starter set's {split}", pair[label]) for label in ("harmful", "benign")]
    for name in (*dict.fromkeys(BORDERLINE.values()), "everyday_check"):
        questions += [(f"the starter set's {name}", row["question"]) for row in starter_singles(name)]
    return questions + [(str(path), text) for path in files for text in read_questions(path, skip_bad)]


def describe(
    folder: str | Path, found: AuthorsQuestions, kept: Sequence[AuthorsPair], left: Sequence[tuple[int, str]]
) -> list[str]:
    """Lines about what FOLDER has, what is odd in it, what is left out, and how many clips are missing."""
    counts = ", ".join(f"{number} {name}" for name, number in found.counts.items())
    lines = [f"{folder}: {counts}", *(f"{folder}: {remark}" for remark in found.remarks)]
    lines += [f"{folder}: row {row} is left out: {reason}" for row, reason in left[:MAX_LISTED]]
    if more := [str(row) for row, _ in left[MAX_LISTED:]]:
        lines.append(f"{folder}: {len(more)} more rows are left out as well: {', '.join(more)}")
    mute = sum(clip is None for pair in kept for clip in pair.clips.values())
    if mute:
        lines.append(
            f"{folder}: {mute} of {2 * len(kept)} questions have no recording in {AUDIO} and are spoken by"
            " data.voices"
        )
    return lines


def _sizes(rows: Sequence[dict]) -> dict:
    harmful = [row for row in rows if row["label"] == "harmful"]
    return {"pairs": len(harmful), "categories": dict(Counter(row["category"] for row in harmful))}


def _check_settings(path: Path, settings: dict) -> None:
    """Refuses a folder that another draw has filled: its held-out questions may be training questions of this
    one."""
    if not path.exists():
        return
    before = read_json(path).get("settings", {})
    if changed := [name for name in settings if before.get(name) != settings[name]]:
        raise UserError(
            f"{path.parent}: was made with another {', '.join(changed)} (summary.json); give the same or"
            " choose another --out."
        )


def _share(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(text)) < 1:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no share; give a number from 0 to below 1")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rrs_jax.data.authors", description="The authors' questions as a data set."
    )
    parser.add_argument("folder", metavar="FOLDER", help="clone of the authors' repository")
    parser.add_argument("--out", required=True, metavar="DATASET", help="folder of the data set")
    parser.add_argument(
        "--held_out",
        type=_share,
        default=0.0,
        metavar="SHARE",
        help="of the pairs, from 0 to below 1; default 0",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw of held-out pairs and voices")
    parser.add_argument(
        "--exclude", type=_names, default=(), metavar="FILES", help="further evaluation questions, by commas"
    )
    parser.add_argument(
        "--voices", type=_names, default=(), help="of missing recordings: names by commas; empty is hibari"
    )
    parser.add_argument("--max_cost_usd", type=float, default=0.0, help="that paid voices may cost")
    asked = parser.parse_args(with_home(arguments))
    with exit_status() as status:
        speech = SpeechOptions(voices=asked.voices, max_cost_usd=asked.max_cost_usd)
        manifests = convert(
            asked.folder,
            asked.out,
            held_out=asked.held_out,
            seed=asked.seed,
            exclude=asked.exclude,
            speech=speech,
        )
        summary = read_json(Path(asked.out) / "summary.json")
        for name, manifest in manifests.items():
            print(f"{name}: {summary[name]['pairs']} pairs in {manifest}")
        print(json.dumps(summary["spoken"]))
    return status.code


if __name__ == "__main__":
    sys.exit(main())
