"""Evaluation questions to listen to, with the models' answers before and after training."""

import base64
import contextlib
import dataclasses
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from rrs_jax.data.reasoning import answer_of
from rrs_jax.errors import UserError
from rrs_jax.evaluate.finished_evaluation import read_evaluation
from rrs_jax.files import read_jsonl
from rrs_jax.inputs.audio import SAMPLING_RATE, read_audio
from rrs_jax.report.figures import details
from rrs_jax.report.results import Recipe, Results
from rrs_jax.report.summaries import MODES

EACH = {"harmful": 4, "benign": 3, "borderline": 3, "everyday": 2}  # questions shown of each set
FIRST = 2  # strategies whose answers are not folded away: vanilla and the main recipe
LETTERS = 400  # of an answer
CLIP_SECONDS = 12  # of a question's audio
COMPRESSION = 0.9  # of libsndfile's MP3, 0 to 1: about 25 kbit/s for speech


@dataclasses.dataclass(frozen=True)
class Sample:
    """One question with its answers.

    Attributes:
      answers: title of a recipe, its first answer in audio-text mode (or the first mode asked), and whether
        its judge says refusal (None: unknown).
      clip: the question's audio file; None where it is not there any more.
    """

    question: str
    label: str
    category: str
    mode: str
    clip: Path | None
    answers: list[tuple[str, str, bool | None]]


def choose_samples(results: Results) -> list[Sample]:
    """Chooses questions of each set.

    By turns a question whose verdict changed between the model before training and the main recipe, and one
    whose did not, in the order of the questions and from different categories as long as there are some.
    """
    if results.vanilla is None or results.main is None:
        return []
    shown = [results.vanilla, results.main]
    shown += [recipe for recipe in results.recipes if recipe.summary and recipe is not results.main]
    answers = [_answers(recipe) for recipe in shown]
    clips = _clips([run.path for recipe in shown for run in recipe.runs])
    chosen = []
    for label, wanted in EACH.items():
        rows = [row for key, row in answers[0].items() if key[0] == label and key in answers[1]]
        keys = {row["id"]: (label, row["id"]) for row in rows}
        changed = [
            row
            for row in rows
            if _verdicts(answers, keys[row["id"]])[0] != _verdicts(answers, keys[row["id"]])[1]
        ]
        same = [row for row in rows if row not in changed]
        for row in _alternating(changed, same, wanted):
            key = keys[row["id"]]
            said = [
                (recipe.title, own[key]["response"], own[key]["refusal"])
                for recipe, own in zip(shown, answers, strict=True)
                if key in own
            ]
            chosen.append(Sample(row["question"], label, row["category"], row["mode"], clips.get(key), said))
    return chosen


def html_samples(samples: Sequence[Sample]) -> str:
    """Returns the samples as HTML.

    Answers to harmful questions are folded away; everything that a model or a manifest says is escaped.
    """
    parts = []
    for sample in samples:
        first, others = sample.answers[:FIRST], sample.answers[FIRST:]
        answers = _answers_table(first)
        if others:
            answers += details(f"{len(others)} other strategies", _answers_table(others))
        answers = details("Answers, which may be harmful", answers) if sample.label == "harmful" else answers
        audio = "<p><small>Its clip is not there any more.</small></p>"
        if sample.clip is not None:
            with contextlib.suppress(UserError):  # it was replaced by something else since
                clip = base64.b64encode(compressed(sample.clip)).decode()
                audio = (
                    f'<audio controls preload="none" aria-label="{html.escape(sample.question)}" '
                    f'src="data:audio/mpeg;base64,{clip}"></audio>'
                )
        parts.append(
            f'<article class="sample"><p class="question"><b class="{sample.label}">{sample.label}</b>'
            f" {html.escape(sample.question)} <small>{html.escape(sample.category)},"
            f" {MODES[sample.mode]}</small></p>{audio}{answers}</article>"
        )
    return "".join(parts)


def _answers_table(answers: Sequence[tuple[str, str, bool | None]]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{html.escape(title)}</th>'
        f'<td class="{_verdict(refusal)}">{_verdict(refusal)}</td>'
        f"<td>{_shown(answer)}</td></tr>"
        for title, answer, refusal in answers
    )
    return f"<div class='wide'><table class='answers'>{rows}</table></div>"


def compressed(clip: Path) -> bytes:
    """Returns the beginning of a clip as MP3, which every browser plays.

    It is the sound that the model hears, at 16 kHz: MP3 knows few sampling rates and two channels. Raises
    UserError where the clip is no audio.
    """
    stream = io.BytesIO()
    soundfile.write(
        stream,
        np.clip(read_audio(clip)[: CLIP_SECONDS * SAMPLING_RATE], -1, 1),
        SAMPLING_RATE,
        format="MP3",
        bitrate_mode="CONSTANT",
        compression_level=COMPRESSION,
    )
    return stream.getvalue()


def _answers(recipe: Recipe) -> dict[tuple[str, str], dict]:
    """Returns first answers of the first seed by set and id, with the first judge's verdict.

    Each is in the first mode of `MODES` that was asked.
    """
    folder = recipe.runs[0].evaluation("vanilla" if recipe.key == "vanilla" else recipe.runs[0].strategy)
    if folder is None:
        return {}
    evaluation = read_evaluation(folder)
    verdicts = {
        (row["set"], row["id"], row["mode"], row["sample"]): row["refusal"]
        for row in evaluation.rows
        if row["judge"] == evaluation.summary["judge"]
    }
    found: dict[tuple[str, str], dict] = {}
    order = list(MODES)
    for row in read_jsonl(folder / "responses.jsonl"):
        key, old = (row["set"], row["id"]), found.get((row["set"], row["id"]))
        if row["sample"] == 0 and (old is None or order.index(row["mode"]) < order.index(old["mode"])):
            found[key] = row | {"refusal": verdicts.get((*key, row["mode"], 0))}
    return found


def _verdicts(answers: Sequence[dict], key: tuple[str, str]) -> tuple[bool | None, bool | None]:
    return answers[0][key]["refusal"], answers[1][key]["refusal"]


def _alternating(first: list[dict], second: list[dict], wanted: int) -> list[dict]:
    """Returns rows of both lists by turns, new categories before others."""
    chosen: list[dict] = []
    lists = [list(first), list(second)]
    while len(chosen) < wanted and any(lists):
        source = lists[len(chosen) % 2] or lists[1 - len(chosen) % 2]
        seen = {row["category"] for row in chosen}
        row = next((row for row in source if row["category"] not in seen), source[0])
        source.remove(row)
        chosen.append(row)
    return chosen


def _clips(runs: Sequence[Path]) -> dict[tuple[str, str], Path]:
    """Returns the audio files that are still there, by set and id."""
    found = {}
    for run in runs:
        manifest = run / "data" / "eval" / "manifest.jsonl"
        for row in read_jsonl(manifest) if manifest.is_file() else []:
            path = manifest.parent / (row["audio"] or "")
            if row["audio"] and path.is_file():
                found.setdefault((row["label"], row["id"]), path)
    return found


def _verdict(refusal: bool | None) -> str:
    return {True: "refused", False: "answered", None: "unjudged"}[refusal]


def _shown(answer: str) -> str:
    """Returns the beginning of what follows the model's thoughts, as HTML."""
    said = answer_of(answer)
    if said is None:
        return "<i>ends inside its thoughts</i>"
    return html.escape(_cut(said)) or "<i>empty</i>"


def _cut(answer: str) -> str:
    answer = answer.strip()
    return answer if len(answer) <= LETTERS else answer[:LETTERS].rsplit(" ", 1)[0] + " …"
