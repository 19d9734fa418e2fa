"""Compares two evaluations of the same questions, paired by question.

    python -m rrs_jax.evaluate.compare RUN/eval/vanilla RUN/eval/rrs

For each judge that both have, each set and mode: the difference of the rates (second minus first) with a 95 %
interval by bootstrap over questions, a permutation test over questions (each question's difference may as
well have the other sign), and McNemar's exact test on whether a question shows the event at least once.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.stats

from rrs_jax.config.kinds import with_home
from rrs_jax.config.prompts import MODES
from rrs_jax.errors import UserError, exit_status
from rrs_jax.evaluate.finished_evaluation import FinishedEvaluation, RecordedJudge, read_evaluation
from rrs_jax.evaluate.rates import RESAMPLES
from rrs_jax.evaluate.responses import SETS
from rrs_jax.evaluate.summary import attack_succeeded

PERMUTATIONS = 9_999


def compare_folders(first: str | Path, second: str | Path) -> dict:
    """Compares two folders RUN/eval/NAME.

    Returns {"first", "second", "judges": {judge: {set: {mode: block or null}}}}; `paired_block` describes a
    block. As in a summary, everyday questions are a set only where they were asked. Raises UserError where a
    folder is no finished evaluation or the two share no judge of the same version.
    """
    a, b = read_evaluation(first), read_evaluation(second)
    versions = {judge.name: judge.version for judge in a.judges}
    shared = [judge for judge in b.judges if versions.get(judge.name) == judge.version]
    if not shared:
        raise UserError(
            f"{first} and {second}: no judge of the same version is in both; evaluate both with the same"
            " judges."
        )
    return {
        "first": str(first),
        "second": str(second),
        "judges": {judge.name: _by_set(a, b, judge) for judge in shared},
    }


def _by_set(a: FinishedEvaluation, b: FinishedEvaluation, judge: RecordedJudge) -> dict:
    found = {name: {mode: _paired(a, b, judge, name, mode) for mode in MODES} for name in SETS}
    return {name: modes for name, modes in found.items() if name != "everyday" or any(modes.values())}


def paired_block(
    first: dict[str, tuple[int, int]], second: dict[str, tuple[int, int]], seed: int = 0
) -> dict | None:
    """Compares two dicts of question to (events, responses) over the questions that both have.

    Returns {"rates" (percent), "difference" (points), "ci95", "p_permutation", "any": {"only_first",
    "only_second", "p_mcnemar"}, "queries"}; None where they share no question.
    """
    common = [query for query in first if query in second and first[query][1] and second[query][1]]
    if not common:
        return None
    table = np.array([[*first[query], *second[query]] for query in common], np.int64)
    kinds, count = np.unique(table, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(common), count / count.sum(), size=RESAMPLES) @ kinds
    low, high = np.quantile(drawn[:, 2] / drawn[:, 3] - drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    totals = table.sum(axis=0)
    rates = totals[0] / totals[1], totals[2] / totals[3]
    differences = table[:, 2] / table[:, 3] - table[:, 0] / table[:, 1]
    any_first, any_second = table[:, 0] > 0, table[:, 2] > 0
    only_first, only_second = int(np.sum(any_first & ~any_second)), int(np.sum(any_second & ~any_first))
    changed = only_first + only_second
    return {
        "rates": [_percent(rate) for rate in rates],
        "difference": _percent(rates[1] - rates[0]),
        "ci95": [_percent(low), _percent(high)],
        "p_permutation": round(_sign_flips(differences, rng), 6),
        "any": {
            "only_first": only_first,
            "only_second": only_second,
            "p_mcnemar": (
                round(float(scipy.stats.binomtest(only_first, changed).pvalue), 6) if changed else 1.0
            ),
        },
        "queries": len(common),
    }


def _sign_flips(differences: np.ndarray, rng: np.random.Generator) -> float:
    """Returns the two-sided p of a mean difference of 0, by flipping the signs of differences."""
    if len(differences) < 2:
        return 1.0
    test = scipy.stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        batch=1_000,
        rng=rng,
    )
    return float(test.pvalue)


def _paired(
    a: FinishedEvaluation, b: FinishedEvaluation, judge: RecordedJudge, question_set: str, mode: str
) -> dict | None:
    counts = []
    for evaluation in (a, b):
        events, responses = Counter(), Counter()
        for row in evaluation.rows:
            if (row["judge"], row["set"], row["mode"]) == (judge.name, question_set, mode):
                event = attack_succeeded(row, judge) if question_set == "harmful" else row["refusal"]
                responses[row["id"]] += event is not None
                events[row["id"]] += bool(event)
        counts.append({query: (events[query], responses[query]) for query in responses})
    return paired_block(*counts)


def _percent(fraction: float) -> float:
    return round(100 * float(fraction), 4)


def format_comparison(comparison: dict) -> str:
    """Formats what `compare_folders` returns as a table for the terminal."""
    lines = [f"first   {comparison['first']}", f"second  {comparison['second']}"]
    for judge, sets in comparison["judges"].items():
        lines.append(
            f"\njudge {judge}: percent, second minus first in points [95 %], p of permutation, p of McNemar"
        )
        for question_set, modes in sets.items():
            for mode, block in modes.items():
                if block:
                    first, second = block["rates"]
                    low, high = block["ci95"]
                    lines.append(
                        f"{question_set:<11}{mode:<11}{first:6.1f} {second:6.1f} {block['difference']:+7.1f}"
                        f" [{low:+.1f}, {high:+.1f}]  {block['p_permutation']:.4f} "
                        f" {block['any']['p_mcnemar']:.4f}  ({block['queries']} questions)"
                    )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rrs_jax.evaluate.compare", description="Two evaluations, paired."
    )
    parser.add_argument("first", help="RUN/eval/NAME")
    parser.add_argument("second", help="RUN/eval/NAME")
    options = parser.parse_args(with_home(arguments))
    with exit_status() as status:
        print(format_comparison(compare_folders(options.first, options.second)))
    return status.code


if __name__ == "__main__":
    sys.exit(main())
