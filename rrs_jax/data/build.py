r"""Builds the paper's training sets from BeaverTails, with speech: Basic, Mirror and Parallel (section 5.1).

    python -m rrs_jax.data.build --source=PKU-Alignment/BeaverTails --out=DATASET \
        --writer=openai:gpt-4-turbo --voices=google --max_cost_usd=3 --exclude=safebench.csv,xstest.csv

Appendices B to D say how. The same command continues where a killed one stopped; no answer and no clip is
bought twice. It makes:

    DATASET/settings.json       seed, source, writer, voices; a command with others is refused
    DATASET/ledger.jsonl        every answer of the writer, as it came
    DATASET/for_a_person.jsonl  questions without an accepted rewrite, for a person to fill in as --edits
    DATASET/{basic,mirror,parallel}/manifest.jsonl, audio/
    DATASET/summary.json        sizes, what was left out and why, clips spoken again
"""

import argparse
import importlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock

from rrs_jax.config.kinds import choice, integer, number, split_names, with_home
from rrs_jax.data.beavertails import REPOSITORY, SPLITS, Question, read_beavertails
from rrs_jax.data.check import MAX_LISTED, check_excluded, clip_faults, text_faults
from rrs_jax.data.edits import read_edits
from rrs_jax.data.questions import MAX_WORDS
from rrs_jax.data.rewrite import Failure, Pair, TooFewPairs, choose_benign, write_mirror
from rrs_jax.data.selection import Pool, make_pool, take
from rrs_jax.data.spoken import SpeechOptions, speak_rows
from rrs_jax.data.tables import read_questions
from rrs_jax.data.voices import Voice, read_voices
from rrs_jax.data.writers import Ledger, OpenAIWriter, Writer
from rrs_jax.errors import UserError, exit_status
from rrs_jax.files import content_hash, file_lock, read_json, write_json, write_jsonl

SETS = ("basic", "mirror", "parallel")
LEDGER, FOR_A_PERSON = "ledger.jsonl", "for_a_person.jsonl"


@dataclass(frozen=True)
class BuildOptions:
    """Sizes and sources of the sets that are built.

    Attributes:
      sets: names of the sets to make.
      basic: pairs of question and answer in Basic.
      per_category: pairs of each category in Mirror, and as many in Parallel.
      seed: of all draws.
      max_words: longer questions are left out.
      exclude: files of evaluation questions that must not be trained on.
      edits: file of a person's rewrites.
      tries: rewrites of a question before it is left to a person.
    """

    sets: tuple[str, ...] = SETS
    basic: int = 1400
    per_category: int = 50
    seed: int = 0
    max_words: int = MAX_WORDS
    exclude: tuple[str, ...] = ()
    edits: str | None = None
    tries: int = 3


def build(
    out: str | Path,
    questions: Sequence[Question],
    writer: Writer | None,
    options: BuildOptions,
    speech: SpeechOptions,
) -> dict[str, Path]:
    """Makes the sets asked for and returns each one's manifest by name.

    Raises UserError; what is done by then is kept, and the same call continues.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with file_lock(out / ".lock", seconds=0):
            return _build(out, questions, writer, options, speech)
    except filelock.Timeout as error:
        raise UserError(
            f"{out}: another command is building here; wait for it or choose another --out."
        ) from error


def _build(out: Path, questions, writer, options: BuildOptions, speech: SpeechOptions) -> dict[str, Path]:
    excluded = [text for path in options.exclude for text in read_questions(path)]
    voices = _keep_settings(out, questions, writer, options, speech)
    pool = make_pool(questions, excluded, seed=options.seed, max_words=options.max_words)
    ledger = Ledger(out / LEDGER, writer) if writer else None
    rows, facts = _choose(out, pool, ledger, options, excluded)
    for name in options.sets:
        if name != "basic" and (faults := text_faults(rows[name], rewritten=name == "mirror")):
            raise AssertionError(f"{name}: " + "\n".join(faults))  # the builder keeps what the check asks
        check_excluded([row["question"] for row in rows[name]], options.exclude)
    manifests, spoken = speak_rows(out, rows, voices, options.seed, speech)
    for name, manifest in manifests.items():
        clips = [manifest.parent / row["audio"] for row in rows[name]]
        if faults := clip_faults([row["question"] for row in rows[name]], clips):
            listed = "\n".join(faults[:MAX_LISTED])
            raise UserError(
                f"{manifest.parent}: {len(faults)} clips are damaged; delete them and the cache's:\n{listed}"
            )
    write_json(out / "summary.json", facts | {"dropped": dict(pool.dropped)} | spoken)
    return manifests


def _keep_settings(
    out: Path, questions, writer, options: BuildOptions, speech: SpeechOptions
) -> tuple[Voice, ...]:
    """Returns the voices of the folder's first command.

    A live list may have changed since, and every draw with it. Sizes, exclusions and edits may change from
    command to command. Raises UserError where what decides the draws does.
    """
    path = out / "settings.json"
    settings = {
        "seed": options.seed,
        "source": content_hash([vars(question) for question in questions]),
        "writer": writer.name if writer else None,
        "voices_asked": list(speech.voices),
    }
    if not path.exists():
        voices = read_voices(speech.voices)
        write_json(path, settings | {"voices": [voice.name for voice in voices]})
        return voices
    before = read_json(path)
    if changed := [name for name in settings if before.get(name) != settings[name]]:
        raise UserError(
            f"{out}: was begun with another {', '.join(changed)} (settings.json); give the same or choose"
            " another --out."
        )
    return read_voices(before["voices"])


def _choose(
    out: Path, pool: Pool, ledger: Ledger | None, options: BuildOptions, excluded
) -> tuple[dict, dict]:
    """Returns the rows of every set asked for, without speech, and counts for the summary."""
    rows: dict[str, list[dict]] = {}
    facts: dict = {"sizes": {}}
    if "basic" in options.sets:
        pairs = take("questions with a safe answer", pool.answered, options.basic, "--basic")
        rows["basic"] = [
            _row("basic", question, question.kind, question.text, answer) for question, answer in pairs
        ]
    if {"mirror", "parallel"} & set(options.sets):
        edits = _read_edits(out, pool, options.edits) if options.edits else {}
        pairs, failures = _mirror(out, pool, ledger, options, edits, excluded)
        rows["mirror"] = [
            row for pair in pairs for row in _pair_rows("mirror", pair.question, pair.benign, pair.writer)
        ]
        facts["for_a_person"] = len(failures)
        facts["words_changed_by"] = dict(Counter(pair.writer for pair in pairs))
    if "parallel" in options.sets:
        chosen, refused = choose_benign(pool, len(pairs), ledger)
        drawn = zip(pairs, chosen, strict=True)
        rows["parallel"] = [
            row for pair, other in drawn for row in _pair_rows("parallel", pair.question, other.text, None)
        ]
        facts["benign_by_label_harmful_by_writer"] = len(refused)
    rows = {name: rows[name] for name in options.sets}
    facts["sizes"] = {name: dict(Counter(row["label"] for row in members)) for name, members in rows.items()}
    return rows, facts


def _read_edits(out: Path, pool: Pool, path: str) -> dict[str, str | None]:
    if Path(path).resolve() == (out / FOR_A_PERSON).resolve():
        raise UserError(
            f"--edits: {path} is written anew by this command; give a copy of it under another name."
        )
    return read_edits(path, pool)


def _mirror(out, pool, ledger, options: BuildOptions, edits, excluded) -> tuple[list[Pair], list[Failure]]:
    person = out / FOR_A_PERSON
    try:
        pairs, failures = write_mirror(
            pool, options.per_category, ledger, edits=edits, excluded=excluded, tries=options.tries
        )
    except TooFewPairs as error:
        write_jsonl(person, [failure.row() for failure in error.failures])
        raise UserError(
            f"{error} They are in {person}: fill in `benign` in a copy and give it as --edits."
        ) from error
    write_jsonl(person, [failure.row() for failure in failures])
    return pairs, failures


def _pair_rows(name: str, question: Question, benign: str, writer: str | None) -> list[dict]:
    harmful = _row(name, question, "harmful", question.text, None)
    twin = harmful | {"id": harmful["pair_id"] + "-benign", "label": "benign", "question": benign}
    if name == "parallel":
        twin["category"] = "none"
    return [harmful, twin | ({"rewritten_by": writer} if writer else {})]


def _row(name: str, question: Question, label: str, text: str, answer: str | None) -> dict:
    pair = f"{name}-{content_hash(question.key)[:12]}"
    return {
        "id": f"{pair}-{label}",
        "pair_id": pair,
        "label": label,
        "category": question.category or "none",
        "question": text,
        "response": answer,
    }


def make_writer(asked: argparse.Namespace) -> Writer | None:
    """Makes the writer that the flags name, None for `none`. Raises UserError."""
    kind, _, model = asked.writer.partition(":")
    if kind == "none":
        return None
    if kind not in ("openai", "local") or not model:
        raise UserError(
            f"--writer: {asked.writer!r} is none of openai:MODEL, local:FOLDER (or local:mini) and none."
        )
    if kind == "openai":
        return OpenAIWriter(
            model,
            asked.writer_url or None,
            concurrency=asked.concurrency,
            timeout=asked.timeout,
            first_wait=asked.first_wait,
            temperature=asked.temperature,
        )
    # By name: this package needs no model, and a local writer loads JAX, which the others do without.
    local_writer = importlib.import_module("rrs_jax.generate.local_writer")
    return local_writer.LocalWriter(model, dtype=asked.dtype)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after one sentence on standard error for a user's mistake."""
    asked = _parser().parse_args(with_home(arguments))
    with exit_status() as status:
        _run(asked)
    return status.code


def _run(asked: argparse.Namespace) -> None:
    if not asked.out:
        raise UserError("--out: give the folder that the data set is to be written to.")
    if unknown := [name for name in asked.sets if name not in SETS]:
        raise UserError(f"--sets: {', '.join(unknown)} is none of {', '.join(SETS)}.")
    options = BuildOptions(
        sets=tuple(name for name in SETS if name in asked.sets),
        basic=asked.basic,
        per_category=asked.per_category,
        seed=asked.seed,
        max_words=asked.max_words,
        exclude=asked.exclude,
        edits=asked.edits or None,
        tries=asked.tries,
    )
    speech = SpeechOptions(
        voices=asked.voices,
        max_cost_usd=asked.max_cost_usd,
        listener=asked.listener or None,
        max_word_errors=asked.max_word_errors,
    )
    writer = make_writer(asked)
    if isinstance(writer, OpenAIWriter) and not (Path(asked.out) / LEDGER).exists():
        writer.try_out()  # before the source is fetched and read
    questions = read_beavertails(asked.source, asked.split)
    kinds = Counter(question.kind for question in questions)
    counts = ", ".join(f"{kinds[kind]} {kind}" for kind in sorted(kinds))
    print(f"{asked.source}: {counts} questions", file=sys.stderr)
    manifests = build(asked.out, questions, writer, options, speech)
    print(json.dumps(read_json(Path(asked.out) / "summary.json"), indent=2, ensure_ascii=False))
    for name, manifest in manifests.items():
        print(f"{name}: {manifest}")


# Name, type, default and meaning of each flag.
ARGUMENTS = (
    ("--source", str, REPOSITORY, "hub repository, or a .jsonl, .jsonl.gz, .jsonl.xz or .parquet file"),
    ("--split", choice(*SPLITS).argument, SPLITS[0], f"split of the hub repository: {', '.join(SPLITS)}"),
    ("--out", str, "", "folder of the data set"),
    ("--sets", split_names, SETS, "sets to make, by commas: basic, mirror, parallel"),
    ("--basic", integer(1).argument, 1400, "question-answer pairs of Basic"),
    ("--per_category", integer(1).argument, 50, "harmful questions of each category in Mirror and Parallel"),
    ("--seed", integer(0).argument, 0, "seed of all draws"),
    ("--max_words", integer(3).argument, MAX_WORDS, "longer questions are left out"),
    ("--exclude", split_names, (), "files of evaluation questions not to be trained on, by commas"),
    ("--writer", str, "none", "who rewrites: openai:MODEL, local:FOLDER, local:mini, or none (only --edits)"),
    ("--writer_url", str, "", "base URL of an OpenAI-compatible endpoint; empty is $OPENAI_BASE_URL"),
    ("--temperature", number().argument, None, "sent to the endpoint; by default none is sent"),
    ("--dtype", choice("bfloat16", "float32").argument, "bfloat16", "number type of a local writer"),
    ("--concurrency", integer(1).argument, 8, "calls to the endpoint at once"),
    ("--timeout", number(0.01).argument, 60.0, "seconds that one call may take"),
    ("--first_wait", number(0).argument, 1.0, "seconds before a call is repeated; doubles from try to try"),
    ("--tries", integer(1).argument, 3, "rewrites of a question before it is left to a person"),
    ("--edits", str, "", "a person's rewrites: lines with `harmful` and `benign`, null to leave one out"),
    ("--voices", split_names, (), "google, hibari, flite, espeak or voices, by commas; empty is hibari"),
    ("--max_cost_usd", number(0).argument, 0.0, "US dollars for paid voices; the estimate is told first"),
    ("--listener", str, "", "Whisper folder or name: clips that it mishears are spoken again"),
    ("--max_word_errors", number(0).argument, 0.5, "share of wrong words from which a clip is spoken again"),
)  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rrs_jax.data.build",
        description="The paper's training sets from BeaverTails.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for name, kind, default, meaning in ARGUMENTS:
        parser.add_argument(name, type=kind, default=default, help=meaning)
    return parser


if __name__ == "__main__":
    sys.exit(main())
