"""Reads a finished evaluation back from its folder, for figures that need several of them."""

from dataclasses import dataclass
from pathlib import Path

from rrs_jax.errors import UserError
from rrs_jax.evaluate.summary import ASR_IS_HARMFUL
from rrs_jax.files import read_json, read_jsonl


@dataclass(frozen=True)
class RecordedJudge:
    """A judge as its judgements describe it; the fields are those of `Judge`."""

    name: str
    version: str
    sees: frozenset[str]


@dataclass(frozen=True)
class FinishedEvaluation:
    """The contents of RUN/eval/NAME.

    Attributes:
      summary: the contents of summary.json.
      judges: in the summary's order; the rates of the first one are the summary's.
      rows: the judgements that the summary counts.
    """

    folder: Path
    summary: dict
    judges: tuple[RecordedJudge, ...]
    rows: list[dict]


def read_evaluation(folder: str | Path) -> FinishedEvaluation:
    """Reads RUN/eval/NAME. Raises UserError where the folder holds no finished evaluation."""
    folder = Path(folder)
    if not (folder / "summary.json").is_file():
        raise UserError(f"{folder}: holds no summary.json; give RUN/eval/NAME of a finished evaluate stage.")
    summary = read_json(folder / "summary.json")
    by_judge = {summary["judge"]: summary} | summary["other_judges"]
    versions = {name: block["judge_version"] for name, block in by_judge.items()}
    counted = {
        (row["judge"], row["set"], row["id"], row["mode"], row["sample"]): row
        for row in read_jsonl(folder / "judgements.jsonl")
        if versions.get(row["judge"]) == row["version"] and row["sample"] < summary["samples"]
    }
    rows = list(counted.values())
    judges = []
    for name, block in by_judge.items():
        sees = {"harmful"} if block["asr_is"] == ASR_IS_HARMFUL else set()
        if any(row["judge"] == name and row["refusal"] is not None for row in rows):
            sees.add("refusal")
        judges.append(RecordedJudge(name, versions[name], frozenset(sees)))
    return FinishedEvaluation(folder, summary, tuple(judges), rows)
