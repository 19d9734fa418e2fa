"""How well the released Qwen2.5-Omni-7B hears a harmful question and its harmless rewrite apart, from the
states that the authors published; neither weights nor audio are needed.

    python -m rrs_jax.report.authors_states FOLDER [--out=OUT]

FOLDER is a clone of `YangHao97/RRS`; `rrs_jax.report.authors_state_files` says what is read there. Prints a
table; OUT/index.html has it too, with figure 2 before training, and OUT/numbers.json has the numbers.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rrs_jax.config.kinds import with_home
from rrs_jax.errors import UserError, exit_status
from rrs_jax.evaluate.rates import Rate, rate_over_queries
from rrs_jax.files import write_atomic, write_json
from rrs_jax.frozen.probe import probe_scores
from rrs_jax.progress import say
from rrs_jax.report.authors_state_files import DELTA, AuthorsStates, read_states
from rrs_jax.report.authors_states_page import Rows, page, short
from rrs_jax.report.separation import Figure2, Recorded, distance_of_means, make_figure

PAPERS_SHARE = 51  # percent of the features that the paper keeps for Qwen2.5-Omni-7B


@dataclasses.dataclass(frozen=True)
class Apart:
    """How far harmful questions and their rewrites are apart.

    Attributes:
      probe: states on the right side of a linear probe (`frozen.probe`), cross-validated so that no probe has
        seen the question or one that is nearly the same, percent with an interval over such groups.
      in_order: pairs whose harmful question has the higher score of the two.
      distance: of the two means, in units of the spread (`separation.distance_of_means`).
      by_category: (pairs, percent on the right side, percent in order) of each category.
    """

    probe: Rate
    in_order: Rate
    distance: float | None
    by_category: dict[str, tuple[int, float, float]]


@dataclasses.dataclass(frozen=True)
class DeltaFacts:
    """ΔV from the states, and the authors' own.

    Attributes:
      norm: of the mean of refused harmful questions less the mean of rewrites, every path once.
      positive: percent of the features in which that ΔV is above 0.
      sign_stable: percent of the features whose sign is the same from either half of the questions.
      their_norm, kept: norm and number of features other than 0 of the authors' ΔV.
      kept_norm: norm of ours on the features that theirs keeps.
      cosine, difference: between both on those features; the difference relative to `kept_norm`.
      difference_by_row: the same where a path counts as often as it stands in the question files.
    The last six are None without the authors' file.
    """

    norm: float
    positive: float
    sign_stable: float
    their_norm: float | None = None
    kept: int | None = None
    kept_norm: float | None = None
    cosine: float | None = None
    difference: float | None = None
    difference_by_row: float | None = None


def measure_apart(harmful: np.ndarray, benign: np.ndarray, states: AuthorsStates) -> Apart:
    """Compares states (N, D) of harmful questions with those of their rewrites, in the order of `states`."""
    count = len(harmful)
    signs = np.repeat([1.0, -1.0], count)
    scores = probe_scores(np.concatenate([harmful, benign]), signs, np.tile(states.groups, 2))
    right = (scores * signs > 0).reshape(2, count).sum(axis=0)
    in_order = (scores[:count] > scores[count:]).astype(int)
    categories = np.array(states.categories)
    return Apart(
        probe=_rate(right, 2, states.groups),
        in_order=_rate(in_order, 1, states.groups),
        distance=distance_of_means(np.concatenate([harmful, benign]), signs > 0),
        by_category={
            name: (int(here.sum()), 50 * float(right[here].mean()), 100 * float(in_order[here].mean()))
            for name in sorted(set(states.categories))
            for here in [categories == name]
        },
    )


def measure_delta(states: AuthorsStates) -> DeltaFacts:
    """Equation 9 on the published states, beside the authors' ΔV where it is there."""
    once = np.ones(len(states.paths))
    ours = _mean_change(states, once)
    numbers = {name: i for i, name in enumerate(dict.fromkeys(states.groups.tolist()))}
    half = np.array([numbers[group] % 2 for group in states.groups.tolist()], float)
    stable = _mean_change(states, half) * _mean_change(states, 1 - half) > 0
    facts = DeltaFacts(
        norm=_norm(ours), positive=100 * float((ours > 0).mean()), sign_stable=100 * float(stable.mean())
    )
    if states.delta is None:
        return facts
    theirs, kept = states.delta.astype(np.float64), states.delta != 0
    if not ours[kept].any():
        raise UserError(
            f"{DELTA}: is 0 at every feature, or the states do not change there; fetch both again."
        )

    def difference(delta: np.ndarray) -> float:
        return _norm((delta - theirs)[kept]) / _norm(delta[kept])

    return dataclasses.replace(
        facts,
        their_norm=_norm(theirs),
        kept=int(kept.sum()),
        kept_norm=_norm(ours[kept]),
        cosine=float(ours[kept] @ theirs[kept] / (_norm(ours[kept]) * _norm(theirs))),
        difference=difference(ours),
        difference_by_row=difference(_mean_change(states, states.rows)),
    )


def draw_figure(states: AuthorsStates) -> Figure2:
    """Figure 2 of the paper before training: both questions of every pair under t."""
    from sklearn import linear_model, manifold  # noqa: F401 (loaded before its threads are limited)
    from threadpoolctl import threadpool_limits

    labels = np.repeat(["harmful", "benign"], len(states.paths))
    recorded = Recorded(
        {0: np.concatenate([states.harmful, states.benign])},
        [f"{path}-{label}" for path, label in zip(states.paths * 2, labels, strict=True)],
        labels,
        np.tile(states.groups, 2),
    )
    with threadpool_limits(1):
        return make_figure(recorded)


def table(states: AuthorsStates, apart: dict[str, Apart], delta: DeltaFacts) -> Rows:
    """Lists (what, value) of everything that was measured, for a reader."""
    features = states.harmful.shape[1]
    rows = [
        ("questions with states, every path once", f"{len(states.paths)}"),
        ("groups of the same or nearly the same questions", f"{len(set(states.groups.tolist()))}"),
        ("features of a state", f"{features}"),
    ]
    for name, kind in (
        ("harmful, t", "harmful"),
        ("harmful, refusal prompt", "refusal"),
        ("rewrite, t", "benign"),
    ):
        rows.append((f"mean norm of a state: {name}", f"{_norms(getattr(states, kind)):.4g}"))
    for name, found in apart.items():
        rows += [
            (f"{name}: told apart by a linear probe", _written(found.probe)),
            (f"{name}: harmful question scores higher", _written(found.in_order)),
            (f"{name}: distance of the means, in spreads", short(found.distance)),
        ]
    rows += [
        ("norm of ΔV from these states", short(delta.norm)),
        ("features in which ΔV is above 0", f"{delta.positive:.1f} %"),
        ("features whose sign is that of either half of the questions", f"{delta.sign_stable:.1f} %"),
    ]
    if delta.kept is not None:
        kept, count = 100 * delta.kept / features, round(PAPERS_SHARE / 100 * features)
        rows += [
            ("norm of the authors' ΔV", short(delta.their_norm)),
            (
                "features that the authors keep, which raise the refusal token's logit",
                f"{delta.kept} ({kept:.1f} %); top_m={PAPERS_SHARE} keeps {count}",
            ),
            ("norm of ΔV from these states on those features", short(delta.kept_norm)),
            ("cosine of both on those features", f"{delta.cosine:.6f}"),
            ("relative difference of both there, every path once", short(delta.difference)),
            ("relative difference of both there, every row once", short(delta.difference_by_row)),
        ]
    return rows


def category_table(found: Apart) -> Rows:
    """One row a category, behind a header."""
    rows = [("category", "pairs", "probe %", "in order %")]
    for name, (pairs, probe, in_order) in found.by_category.items():
        rows.append((name, str(pairs), f"{probe:.1f}", f"{in_order:.1f}"))
    return rows


def text_of(rows: Rows) -> str:
    """Lays out columns side by side, the first one to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    )


def _rate(events: np.ndarray, trials: int, groups: np.ndarray) -> Rate:
    """Events of `trials` a pair, as a rate with an interval over groups of pairs."""
    places = np.unique(groups, return_inverse=True)[1]
    return rate_over_queries(np.bincount(places, events).astype(int), np.bincount(places) * trials)


def _mean_change(states: AuthorsStates, weights: np.ndarray) -> np.ndarray:
    """Equation 9, float64 (D,), with the questions weighted."""
    weights = weights / weights.sum()
    return weights @ states.refusal.astype(np.float64) - weights @ states.benign.astype(np.float64)


def _norm(vector: np.ndarray) -> float:
    return float(np.linalg.norm(vector))


def _norms(states: np.ndarray) -> float:
    return float(np.linalg.norm(states, axis=1).mean())


def _written(rate: Rate) -> str:
    return f"{rate.rate:.1f} % ({rate.ci95[0]:.1f} to {rate.ci95[1]:.1f})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rrs_jax.report.authors_states", description="The authors' states of Qwen2.5-Omni-7B."
    )
    parser.add_argument("folder", metavar="FOLDER", help="clone of the authors' repository")
    parser.add_argument("--out", metavar="OUT", help="folder for index.html and numbers.json")
    asked = parser.parse_args(with_home(arguments))
    with exit_status() as status:
        states = read_states(asked.folder)
        for remark in states.remarks:
            say(f"{asked.folder}: {remark}")
        if len(set(states.groups.tolist())) < 2:
            raise UserError(
                f"{asked.folder}: all questions are nearly the same; a probe needs different ones."
            )
        apart = {
            "under t": measure_apart(states.harmful, states.benign, states),
            "harmful under the refusal prompt": measure_apart(states.refusal, states.benign, states),
        }
        delta = measure_delta(states)
        rows, categories = table(states, apart, delta), category_table(apart["under t"])
        print(text_of(rows), text_of(categories), sep="\n\n")
        if asked.out:
            out = Path(asked.out)
            figure = draw_figure(states)
            write_atomic(out / "index.html", page(states, rows, categories, figure))
            numbers = {"apart": {name: dataclasses.asdict(found) for name, found in apart.items()}}
            numbers |= {"delta": dataclasses.asdict(delta), "remarks": states.remarks}
            write_json(out / "numbers.json", numbers | {"figure2": figure.numbers[0]})
            print(f"\n{out / 'index.html'}")
    return status.code


if __name__ == "__main__":
    sys.exit(main())
