"""A finished evaluation read back from its folder, for what is computed from several of them."""

from dataclasses import dataclass
from pathlib import Path

from rrs_jax.errors import UserError
from rrs_jax.evaluate.summary import ASR_IS_HARMFUL
from rrs_jax.files import read_json, read_jsonl


@dataclass(frozen=True)
class PastJudge:
    """What is known of a judge from its judgements."""

    name: str
    version: str
    sees: frozenset[str]


@dataclass(frozen=True)
class Judged:
    """`judges` in the summary's order; `rows` are the judgements that the summary counts."""

    folder: Path
    summary: dict
    judges: tuple[PastJudge, ...]
    rows: list[dict]


def read_judged(folder: str | Path) -> Judged:
    """Raises UserError where the folder holds no finished evaluation."""
    folder = Path(folder)
    if not (folder / "summary.json").is_file():
        raise UserError(f"{folder}: holds no summary.json; give RUN/eval/NAME of a finished evaluate stage.")
    summary = read_json(folder / "summary.json")
    written = {summary["judge"]: summary} | summary["other_judges"]
    versions = {name: block["judge_version"] for name, block in written.items()}
    current = {
        (row["judge"], row["set"], row["id"], row["mode"], row["sample"]): row
        for row in read_jsonl(folder / "judgements.jsonl")
        if versions.get(row["judge"]) == row["version"] and row["sample"] < summary["samples"]
    }
    rows = list(current.values())
    judges = []
    for name, block in written.items():
        sees = {"harmful"} if block["asr_is"] == ASR_IS_HARMFUL else set()
        if any(row["judge"] == name and row["refusal"] is not None for row in rows):
            sees.add("refusal")
        judges.append(PastJudge(name, versions[name], frozenset(sees)))
    return Judged(folder, summary, tuple(judges), rows)
