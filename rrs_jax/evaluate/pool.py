"""Pools several runs of one recipe with different seeds to one summary.

    python -m rrs_jax.evaluate.pool RUN0 RUN1 RUN2 --name=rrs --out=POOLED
    python -m rrs_jax.report.table POOLED

POOLED/eval/{vanilla,rrs}/summary.json count all responses of all runs, those of one question together. Their
intervals are over questions, for these seeds; "seeds" holds what differs between seeds: each run's rate, the
mean, the standard deviation, and Student's 95 % interval of the mean over seeds.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.stats

from rrs_jax.config.kinds import with_home
from rrs_jax.config.prompts import MODES
from rrs_jax.errors import UserError, exit_status
from rrs_jax.evaluate.deployment import FILE, write_deployment
from rrs_jax.evaluate.finished_evaluation import FinishedEvaluation, read_evaluation
from rrs_jax.evaluate.summary import summarise
from rrs_jax.files import with_sum, write_json


def pool(folders: Sequence[str | Path], vanilla: dict | None = None) -> dict:
    """Returns the summary of several folders RUN/eval/NAME together, with "seeds".

    `vanilla` is the pooled summary of the models before training, for NSI. Raises UserError where judges,
    their versions or the questions differ.
    """
    parts = [read_evaluation(folder) for folder in folders]
    _check_alike(parts)
    first, rows, offset = parts[0], [], 0
    for part in parts:  # a sample of its own for each response: judges' agreement pairs by it
        rows += [row | {"sample": row["sample"] + offset} for row in part.rows]
        offset += part.summary["samples"]
    summary = summarise(
        rows,
        first.judges,
        name=first.summary["name"],
        model=first.summary["model"],
        strategy=first.summary["strategy"],
        samples=offset,
        vanilla=vanilla,
    )
    summaries = [part.summary for part in parts]
    return summary | {
        "seeds": {
            "runs": [str(part.folder) for part in parts],
            "modes": {
                mode: over_seeds([_rate(s["modes"].get(mode), "asr") for s in summaries]) for mode in MODES
            },
            "orr": over_seeds([_rate(s["orr"], "rate") for s in summaries]),
            "borderline_orr": over_seeds([_rate(s["borderline_orr"], "rate") for s in summaries]),
            **_everyday_over_seeds(summaries),
            "nsi_average": over_seeds([(s["nsi"] or {}).get("average") for s in summaries], least=-100.0),
        }
    }


def _everyday_over_seeds(summaries: Sequence[dict]) -> dict:
    """Returns the rate of refused everyday questions, nothing where none were asked."""
    asked = [summary["everyday_orr"] for summary in summaries if "everyday_orr" in summary]
    return {"everyday_orr": over_seeds([_rate(block, "rate") for block in asked])} if asked else {}


def _check_alike(parts: Sequence[FinishedEvaluation]) -> None:
    """Raises UserError where judges, their versions, questions or modes differ."""
    first, *others = parts
    for other in others:
        if other.judges != first.judges:
            raise UserError(
                f"{other.folder}: was judged by others than {first.folder}; evaluate both with the same"
                " judges."
            )
        if _asked(other.rows) != _asked(first.rows):
            raise UserError(
                f"{other.folder}: was asked other questions or modes than {first.folder}; they cannot be"
                " pooled."
            )


def pool_runs(runs: Sequence[str | Path], name: str, target: str | Path) -> None:
    """Writes `target`/eval/NAME/summary.json of several runs.

    The models before training are pooled too where all runs have evaluated them.
    """
    suffix = name.partition("-")[2]
    before = "vanilla" + (f"-{suffix}" if suffix else "")
    folders = {each: [Path(run) / "eval" / each for run in runs] for each in (before, name)}
    vanilla = None
    if all((folder / "summary.json").is_file() for folder in folders[before]):
        vanilla = pool(folders[before])
        write_json(Path(target) / "eval" / before / "summary.json", with_sum(vanilla))
    if name != before:
        write_json(Path(target) / "eval" / name / "summary.json", with_sum(pool(folders[name], vanilla)))
    if name != before and all((folder / FILE).is_file() for folder in folders[name]):
        write_deployment(Path(target) / "eval" / name, folders[before], folders[name])


def _asked(rows: Sequence[dict]) -> set:
    return {(row["set"], row["id"], row["mode"]) for row in rows}


def _rate(block: dict | None, field: str) -> float | None:
    return block[field] if block else None


def over_seeds(rates: Sequence[float | None], least: float = 0.0) -> dict | None:
    """Returns each rate, their mean and standard deviation, and Student's interval of the mean.

    The interval ends where a rate does, at `least` and 100. None where a rate is missing.
    """
    if any(rate is None for rate in rates):
        return None
    mean = float(np.mean(rates))
    if len(rates) < 2:
        return {"rates": list(rates), "mean": round(mean, 4), "sd": None, "ci95": None}
    sd = float(np.std(rates, ddof=1))
    half = float(scipy.stats.t.ppf(0.975, len(rates) - 1)) * sd / len(rates) ** 0.5
    return {
        "rates": list(rates),
        "mean": round(mean, 4),
        "sd": round(sd, 4),
        "ci95": [round(max(mean - half, least), 4), round(min(mean + half, 100.0), 4)],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rrs_jax.evaluate.pool", description="Several seeds as one."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder of one seed")
    parser.add_argument("--name", default="rrs", help="evaluation in each run (default: rrs)")
    parser.add_argument("--out", required=True, help="folder to write eval/NAME/summary.json in")
    options = parser.parse_args(with_home(arguments))
    with exit_status() as status:
        pool_runs(options.runs, options.name, options.out)
        print(f"{options.out}: {len(options.runs)} runs pooled; python -m rrs_jax.report.table {options.out}")
    return status.code


if __name__ == "__main__":
    sys.exit(main())
