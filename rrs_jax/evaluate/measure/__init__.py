r"""Judges answers that came from anywhere and computes their rates.

    python -m rrs_jax.evaluate.measure ANSWERS.jsonl --judges=phrases,llm:default --judge_url=URL \
        --judge_model=NAME --out=RUN/eval/NAME

ANSWERS.jsonl: one answer a line: `question`, `response`, `label` (harmful, benign, borderline, everyday), and
where known `id`, `mode` (audio_text), `category`, `style`, `sample`. Writes judgements.jsonl and
summary.json, as the evaluate stage does.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rrs_jax.config.kinds import split_names, with_home
from rrs_jax.config.prompts import MODES
from rrs_jax.data.values import category_of, text_of
from rrs_jax.errors import UserError, exit_status
from rrs_jax.evaluate.endpoint import EndpointConfig
from rrs_jax.evaluate.judges.judge import JudgeSettings
from rrs_jax.evaluate.judges.registry import make_judges
from rrs_jax.evaluate.judges.unreadable import check_readable
from rrs_jax.evaluate.responses import SETS, judge_responses
from rrs_jax.evaluate.summary import summarise
from rrs_jax.files import content_hash, read_json, read_jsonl, replace_surrogates, write_json


def measure(
    answers: Sequence[dict],
    judges: Sequence[str] = ("phrases",),
    *,
    settings: JudgeSettings | None = None,
    folder: str | Path | None = None,
    name: str = "model",
    vanilla: dict | None = None,
) -> dict:
    """Judges these answers (rows as in ANSWERS.jsonl) and returns their summary.

    Args:
      judges: names as in evaluate.judges; the first one's rates are the summary's.
      folder: keeps judgements.jsonl, so that a restart judges only what is new; None keeps nothing.
      vanilla: summary of the model before training, for NSI.

    Raises UserError that lists every answer that lacks something, and where more than a tenth of a judge's
    verdicts cannot be read.
    """
    rows = _rows(answers)
    made = make_judges(judges, settings)
    with tempfile.TemporaryDirectory() as temporary:
        judgements = judge_responses(Path(folder or temporary) / "judgements.jsonl", rows, made)
    check_readable(judgements)
    samples = max(row["sample"] for row in rows) + 1
    return summarise(judgements, made, name=name, model=name, strategy=name, samples=samples, vanilla=vanilla)


def _rows(answers: Sequence[dict]) -> list[dict]:
    rows, faults, counted = [], [], Counter()
    for number, answer in enumerate(answers, start=1):
        try:
            answer = answer | _texts(answer)
        except ValueError as reason:
            faults.append(f"answer {number}: {reason}")
            continue
        mode = answer.get("mode", "audio_text")
        if fault := _fault(answer, mode):
            faults.append(f"answer {number} {fault}")
        else:
            identity = replace_surrogates(answer["id"] or content_hash(answer["question"]))
            key = answer["label"], identity, mode
            sample = answer.get("sample", counted[key])
            counted[key] += 1
            rows.append(
                {
                    "set": answer["label"],
                    "id": identity,
                    "mode": mode,
                    "category": replace_surrogates(answer["category"]),
                    "sample": sample,
                    "question": replace_surrogates(answer["question"]),
                    "response": replace_surrogates(answer["response"]),
                }
                | ({"style": replace_surrogates(answer["style"])} if answer["style"] else {})
            )
    twice = [
        key for key, n in Counter((r["set"], r["id"], r["mode"], r["sample"]) for r in rows).items() if n > 1
    ]
    faults += [f"set, id, mode and sample {key} occur twice" for key in twice]
    if faults or not rows:
        raise UserError(f"answers: {'; '.join(faults[:20]) or 'there are none'}.")
    return rows


def _fault(answer: dict, mode: object) -> str | None:
    """Returns what is wrong with an answer, None where nothing is."""
    sample = answer.get("sample", 0)
    if missing := [field for field in ("question", "response", "label") if answer.get(field) is None]:
        return f"has no {', '.join(missing)}"
    if answer["label"] not in SETS or mode not in MODES:
        return (
            f"has label {answer['label']!r} in mode {mode!r}; labels are {', '.join(SETS)}, modes"
            f" {', '.join(MODES)}"
        )
    if not isinstance(sample, int) or isinstance(sample, bool) or sample < 0:
        return f"has sample {sample!r}, give a whole number of 0 or more"
    return None


def _texts(answer: dict) -> dict[str, str | None]:
    """An answer's fields as texts, by the rules of every other file; raises ValueError with the reason."""
    texts = {}
    for field in ("question", "response", "label", "id", "category", "style"):
        value = answer.get(field)
        if field == "response" and isinstance(value, str):
            texts[field] = value  # an empty answer is one
            continue
        try:
            texts[field] = category_of(value) if field == "category" else text_of(value)
        except ValueError as reason:
            raise ValueError(f"{field} {reason}") from reason
    return texts


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rrs_jax.evaluate.measure", description="Judges answers of a file."
    )
    parser.add_argument("answers", help="JSON lines: question, response, label")
    parser.add_argument(
        "--judges", default="phrases", help="names with commas between; the first one's rates count"
    )
    parser.add_argument("--judge_url", help="OpenAI-compatible server of llm judges")
    parser.add_argument("--judge_model", help="the judge, as that server calls it")
    parser.add_argument("--vanilla", help="summary.json of the model before training, for NSI")
    parser.add_argument("--out", help="folder to keep judgements.jsonl and summary.json in")
    options = parser.parse_args(with_home(arguments))
    with exit_status() as status:
        server = EndpointConfig(options.judge_url, options.judge_model) if options.judge_url else None
        summary = measure(
            read_jsonl(options.answers, halves=True),  # a model's answer may be cut within a character
            split_names(options.judges),
            settings=JudgeSettings(server),
            folder=options.out,
            name=Path(options.out or options.answers).stem,
            vanilla=read_json(options.vanilla) if options.vanilla else None,
        )
        if options.out:
            write_json(Path(options.out) / "summary.json", summary)
        print(json.dumps(summary, indent=2, ensure_ascii=False))
    return status.code
