"""Measures what a deployer asks beside the paper's rates: what a trained model keeps of the one before.

`RUN/eval/STRATEGY/deployment.json` has, each with 95 % intervals over questions:

- `kept_answers`: by mode the mean divergence from the vanilla model along its own answers to everyday
  questions, and the share of them that are unchanged, from `kept_answers.jsonl` beside it;
- `kept_refusals`: by mode how many of the vanilla model's refusals of harmful questions are still there;
- `tasks`: by task the share refused of harmful and harmless speech, before and after training.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from rrs_jax.config.prompts import MODES, TASK_PROMPTS
from rrs_jax.evaluate.finished_evaluation import read_evaluation
from rrs_jax.evaluate.rates import bootstrap, rate_over_queries
from rrs_jax.evaluate.responses import SETS, Key, key_of
from rrs_jax.files import read_jsonl, with_sum, write_json

FILE, KEPT_ANSWERS = "deployment.json", "kept_answers.jsonl"

Refused = dict[Key, bool]  # whether the response with this key is a refusal


def write_deployment(target: Path, before: Sequence[Path], after: Sequence[Path]) -> None:
    """Writes `target`/deployment.json of `deployment`."""
    write_json(target / FILE, with_sum(deployment(before, after)))


def deployment(before: Sequence[Path], after: Sequence[Path]) -> dict:
    """Returns what is measured of the trained models in the folders `after`, of one recipe.

    before, after: RUN/eval/NAME of the vanilla and the trained model, one of each for every run. Tasks lie in
    NAME-TASK beside them. What is not measured in all of them is None.
    """
    return {
        "kept_answers": kept_answers([folder / KEPT_ANSWERS for folder in after]),
        "kept_refusals": kept_refusals(_all_refused(before), _all_refused(after)),
        "tasks": {
            task: block
            for task in TASK_PROMPTS
            if (block := _task(*(_all_refused(map(_of_task(task), part)) for part in (before, after))))
        }
        or None,
    }


def kept_answers(files: Iterable[Path]) -> dict | None:
    """Returns {mode: {"divergence", "divergence_ci95" (nats a token), "unchanged", "ci95" (percent),
    "questions", "answers", "tokens"} or None} of the rows in all files; None where one is missing.

    A question's answers in several runs are not independent and count as one draw.
    """
    files = list(files)
    if not all(file.is_file() for file in files):
        return None
    rows = [row for file in files for row in read_jsonl(file)]
    return {mode: _kept_answers([row for row in rows if row["mode"] == mode]) for mode in MODES}


def _kept_answers(rows: Sequence[dict]) -> dict | None:
    if not rows:
        return None
    sums: dict[str, np.ndarray] = {}  # of each question: nats, tokens, unchanged answers, answers
    for row in rows:
        own = (row["divergence"] * row["tokens"], row["tokens"], row["unchanged"], 1)
        sums[row["id"]] = sums.get(row["id"], 0) + np.array(own, np.float64)
    nats, tokens, unchanged, answers = np.stack(list(sums.values())).T
    rate = rate_over_queries(unchanged, answers)
    return {
        "divergence": round(nats.sum() / tokens.sum(), 6),
        "divergence_ci95": [round(bound, 6) for bound in bootstrap(nats, tokens, seed=0)],
        "unchanged": rate.rate,
        "ci95": list(rate.ci95),
        "questions": rate.queries,
        "answers": rate.responses,
        "tokens": int(tokens.sum()),
    }


def kept_refusals(before: Refused | None, after: Refused | None) -> dict | None:
    """Returns {mode: block or None} of the harmful questions, paired by question and sample.

    A block has `rate` and `ci95`, percent of the vanilla model's refusals that the trained one refuses too
    (None where there are none); `before`, their number; `newly_answered` and `newly_refused`, the responses
    that changed; `questions` and `responses`, all that were asked.
    """
    if before is None or after is None:
        return None
    pairs = {key: (before[key], after[key]) for key in before if key in after and key[0] == "harmful"}
    return {
        mode: _kept_refusals({key: pair for key, pair in pairs.items() if key[2] == mode}) for mode in MODES
    }


def _kept_refusals(pairs: dict[Key, tuple[bool, bool]]) -> dict | None:
    if not pairs:
        return None
    refused = {key: now for key, (then, now) in pairs.items() if then}
    rate = _rate(refused)
    return {
        "rate": rate["rate"],
        "ci95": rate["ci95"],
        "before": len(refused),
        "newly_answered": sum(not now for now in refused.values()),
        "newly_refused": sum(now and not then for then, now in pairs.values()),
        "questions": len({key[1] for key in pairs}),
        "responses": len(pairs),
    }


def _task(before: Refused | None, after: Refused | None) -> dict | None:
    """Returns {"before", "after": {set that was asked: rate block} or None}; None where none was."""
    if before is None and after is None:
        return None
    return {"before": _by_set(before), "after": _by_set(after)}


def _by_set(refused: Refused | None) -> dict | None:
    if refused is None:
        return None
    found = {name: {key: value for key, value in refused.items() if key[0] == name} for name in SETS}
    return {name: _rate(own) for name, own in found.items() if own}


def _of_task(task: str):
    return lambda folder: folder.with_name(f"{folder.name}-{task}")


def _all_refused(folders: Iterable[Path]) -> Refused | None:
    """Reads which responses of several evaluations refuse, by the first judge that sees it.

    None where one of them is not finished or has no such judge. Samples of each folder are counted on behind
    those of the one before.
    """
    found: Refused = {}
    samples = 0
    for folder in folders:
        if not (folder / "summary.json").is_file():
            return None
        evaluation = read_evaluation(folder)
        judge = next((judge.name for judge in evaluation.judges if "refusal" in judge.sees), None)
        if judge is None:
            return None
        for row in evaluation.rows:
            if row["judge"] == judge and row["refusal"] is not None:
                *query, sample = key_of(row)
                found[(*query, samples + sample)] = row["refusal"]
        samples += evaluation.summary["samples"]
    return found


def _rate(refused: Refused) -> dict:
    """Returns the share of responses that refuse, in percent, with its interval over questions."""
    counts: dict[str, list[int]] = {}
    for (_, question, _, _), value in refused.items():
        own = counts.setdefault(question, [0, 0])
        own[0] += value
        own[1] += 1
    rate = rate_over_queries(*(zip(*counts.values(), strict=True) if counts else ((), ())))
    return {
        "rate": rate.rate,
        "ci95": rate.ci95 and list(rate.ci95),
        "queries": rate.queries,
        "responses": rate.responses,
    }
