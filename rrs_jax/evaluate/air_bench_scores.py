"""Scores of AIR-Bench: from judgements in both orders to a score for each task, group and model."""

from collections.abc import Callable, Sequence

import numpy as np

GROUPS = {
    "speech": ("speech_QA", "speech_dialogue_QA"),
    "sound": ("sound_QA", "sound_generation_QA"),
    "music": ("music_QA", "music_generation_analysis_QA"),
    "mixed": ("speech_and_sound_QA", "speech_and_music_QA"),
}
TASKS = tuple(task for tasks in GROUPS.values() for task in tasks)
ORDERS = ("reference_first", "model_first")
RESAMPLES = 2_000


def summarise_scores(items: Sequence[dict], responses: dict[str, str], judgements: Sequence[dict]) -> dict:
    """Returns the scores of one model as AIR-Bench's summary.json holds them.

    {"hs": mean of the four groups or null, "ci95", "reference_hs", "groups": {name: block}, "tasks": {name:
    block}, "items", "empty", "unparsed"}; a block is {"hs", "ci95", "reference_hs", "items", "unparsed",
    "empty"}.

    A task's score is the mean of its two orders' means. A group's is that of its items taken together, but of
    "mixed" the mean of its two tasks. ci95: bootstrap over items.
    """
    tasks = {task: _Scores(task, items, responses, judgements) for task in TASKS}
    groups = {}
    for group, members in GROUPS.items():
        if group == "mixed":
            groups[group] = _mean_of([tasks[task] for task in members])
        else:
            groups[group] = _block(lambda draw, m=members: _pooled([tasks[task] for task in m], draw))
        groups[group] |= _sums([tasks[task].counts for task in members])
    everything = _block(
        lambda draw: _average(
            (
                _average(tasks[task].scores(draw) for task in members)
                if group == "mixed"
                else _pooled([tasks[task] for task in members], draw)
            )
            for group, members in GROUPS.items()
        )
    )
    return everything | {
        "groups": groups,
        "tasks": {task: _mean_of([scores]) | scores.counts for task, scores in tasks.items()},
        **_sums([scores.counts for scores in tasks.values()]),
    }


class _Scores:
    """The scores of one task.

    values: float64 (items, 2 orders, 2: model and reference), NaN where a verdict is missing.
    """

    def __init__(
        self, task: str, items: Sequence[dict], responses: dict[str, str], judgements: Sequence[dict]
    ):
        own = [item["id"] for item in items if item["task_name"] == task]
        judged = {(row["id"], row["order"]): (row["model"], row["reference"]) for row in judgements}
        answered = [identity for identity in own if responses[identity].strip()]
        self.values = np.array(
            [[judged[identity, order] for order in ORDERS] for identity in answered], np.float64
        ).reshape(-1, 2, 2)
        unparsed = int(np.isnan(self.values[:, :, 0]).sum())
        self.counts = {"items": len(own), "unparsed": unparsed, "empty": len(own) - len(answered)}

    def scores(self, rng: np.random.Generator | None) -> np.ndarray | None:
        """Returns model's and reference's mean score (2,); of items drawn anew where rng is given."""
        return _pooled([self], rng)


def _pooled(tasks: Sequence[_Scores], rng: np.random.Generator | None) -> np.ndarray | None:
    """Returns the mean over orders and items of these tasks (2,): the model's and the reference's.

    Where rng is given, the items are drawn with replacement. None where one of the orders has no verdict.
    """
    values = np.concatenate([task.values for task in tasks])
    if rng is not None and len(values):
        values = values[rng.integers(0, len(values), len(values))]
    if np.isnan(values).all(axis=0).any():  # no verdict in one of the orders
        return None
    return np.nanmean(values, axis=0).mean(axis=0)


def _average(parts) -> np.ndarray | None:
    parts = list(parts)
    return None if any(part is None for part in parts) else np.mean(parts, axis=0)


def _mean_of(tasks: Sequence[_Scores]) -> dict:
    return _block(lambda draw: _average(task.scores(draw) for task in tasks))


def _block(score: Callable[[np.random.Generator | None], np.ndarray | None]) -> dict:
    value = score(None)
    if value is None:
        return {"hs": None, "ci95": None, "reference_hs": None}
    rng = np.random.default_rng(0)
    drawn = [draw[0] for _ in range(RESAMPLES) if (draw := score(rng)) is not None]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {
        "hs": round(float(value[0]), 4),
        "ci95": [round(float(low), 4), round(float(high), 4)],
        "reference_hs": round(float(value[1]), 4),
    }


def _sums(counts: Sequence[dict]) -> dict:
    return {name: sum(count[name] for count in counts) for name in ("items", "unparsed", "empty")}
