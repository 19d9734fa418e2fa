"""The summaries of runs, RUN/eval/NAME/summary.json: read back, and how they and their rates are written."""

import functools
import re
from collections.abc import Sequence
from pathlib import Path

from rrs_jax.config.vocabulary import task_of
from rrs_jax.errors import UserError
from rrs_jax.files import read_json
from rrs_jax.progress import say

MODES = {"audio_text": "audio-text", "text_only": "text-only", "audio_only": "audio-only"}
FIELDS = ("judge", "modes", "orr", "borderline_orr", "nsi")
ABSENT = "N/A"


def read_summaries(runs: Sequence[str | Path], vanilla_once: bool = False) -> list[dict]:
    """Reads every summary of these run folders, but for tasks', and adds "run": vanilla first in each run,
    then by name.

    With `vanilla_once` the model before training comes in the first run alone. Raises UserError where a run
    has no evaluation or a summary lacks a field.
    """
    summaries = []
    for run in map(Path, runs):
        paths = sorted(
            (path for path in run.glob("eval/*/summary.json") if task_of(path.parent.name) is None),
            key=lambda path: (not is_vanilla(path.parent.name), path),
        )
        if not paths:
            raise UserError(f"{run}: holds no eval/NAME/summary.json; run the evaluate stage on it first.")
        for folder in sorted(path.parent for path in run.glob("eval/*/responses.jsonl")):
            if not (folder / "summary.json").is_file():
                _say_once(f"{folder}: has answers and no summary.json, so it is left out; run evaluate again")
        for path in paths:
            summary = read_json(path)
            lacking = [field for field in FIELDS if field not in summary]
            if lacking:
                raise UserError(f"{path}: has no {', '.join(lacking)}; run the evaluate stage again.")
            if (
                vanilla_once
                and is_vanilla(path.parent.name)
                and any(path.parent.name == other["name"] for other in summaries)
            ):
                continue
            helpfulness = path.parent / "air_bench" / "summary.json"
            air_bench = read_json(helpfulness) if helpfulness.is_file() else None
            summaries.append({"name": path.parent.name, **summary, "run": run.name, "air_bench": air_bench})
    return summaries


@functools.cache
def _say_once(sentence: str) -> None:
    say(sentence)


def is_vanilla(evaluation: str) -> bool:
    """Also in another setting or on other questions, whose name stands behind."""
    return evaluation.partition("-")[0] == "vanilla"


def recipe_of(run: str) -> str:
    """Returns a run's name without the ending -seedN of one recipe's further seeds."""
    return re.sub(r"-seed\d+$", "", run)


def label_of(summary: dict, several_runs: bool) -> str:
    """Returns the label of an evaluation; of several runs with the run's name."""
    return f"{summary['run']}: {summary['name']}" if several_runs else summary["name"]


def rate_name(summaries: Sequence[dict]) -> str:
    """Returns the word for the rate of answers: compliance where the judges see refusals alone, else ASR."""
    compliance = [is_compliance(summary) for summary in summaries]
    return (
        "compliance" if compliance and all(compliance) else "ASR or compliance" if any(compliance) else "ASR"
    )


def is_compliance(summary: dict) -> bool:
    """Returns whether the summary's judge sees refusals alone, so that its rate is an upper bound of ASR."""
    return summary.get("asr_is", "").startswith("compliance")


def interval_text(ci95: Sequence[float] | None) -> str:
    """Formats an interval; None is empty."""
    return f"[{ci95[0]:.1f}, {ci95[1]:.1f}]" if ci95 else ""


def cell(block: dict | None, field: str) -> str:
    """Formats a rate with its interval."""
    if block is None or block[field] is None:
        return ABSENT
    return f"{block[field]:.1f} {interval_text(block['ci95'])}"
