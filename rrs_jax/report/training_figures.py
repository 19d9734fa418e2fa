"""Figures of the training: losses by step, and which features the safety vector has."""

from collections.abc import Mapping, Sequence

import numpy as np

from rrs_jax.files import content_hash, read_growing_jsonl
from rrs_jax.progress import say
from rrs_jax.report.figures import legend
from rrs_jax.report.plots import Axis, Plot, axis_over
from rrs_jax.report.results import FinishedRun, Recipe
from rrs_jax.web.page import Html
from rrs_jax.weights.safetensors_io import load_file

BINS = 61
MOST_STEPS = 100  # places of a loss curve; longer ones are averaged


def loss_curves(run: FinishedRun, title: str, name: Html) -> str | None:
    """Draws the loss of harmful and of benign questions, and the penalty where there is one.

    None without metrics. `title` is read aloud, `name` stands above it.
    """
    rows = read_growing_jsonl(run.path / "metrics.jsonl", say, mend=False)  # it may still be written
    if not rows:
        return None
    groups = np.array_split(np.arange(len(rows)), min(MOST_STEPS, len(rows)))
    series = {}
    for field, kind in (("loss_harmful", "harmful"), ("loss_benign", "benign"), ("penalty", "c4")):
        means = [_mean([rows[i].get(field) for i in group]) for group in groups]
        if any(value for value in means):
            series[field.replace("_", ", ")] = kind, means
    values = [
        value for _, means in series.values() for value in means if value is not None and np.isfinite(value)
    ]
    positive = [value for value in values if value > 0]
    if not positive:
        return None
    log = max(positive) > 20 * min(positive)
    floor = max(min(positive), max(positive) * 1e-6) if log else 0
    axis = axis_over([max(value, floor) for value in values], "loss", zero=not log, log=log)
    plot = Plot(axis_over([0, rows[-1]["step"]], "step"), axis, f"Losses of {title}", 380, 250)
    at = [float(np.mean([rows[i]["step"] for i in group])) for group in groups]
    for kind, means in series.values():
        plot.line(
            [(x, value) for x, value in zip(at, means, strict=True) if value is not None and value >= floor],
            kind,
        )
    for place, group in enumerate(groups):
        first, last = rows[group[0]]["step"], rows[group[-1]]["step"]
        plot.strip(first - 1, last, _losses_at(place, first, last, series))
    return (
        f"<figure><figcaption>{name}</figcaption>{plot.svg()}"
        f"{legend([(name, kind) for name, (kind, _) in series.items()])}</figure>"
    )


def _losses_at(place: int, first: int, last: int, series: dict) -> str:
    """Returns the means of one group of steps, for its tip."""
    steps = f"step {first}" if first == last else f"steps {first} to {last}"
    said = [f"{name} {means[place]:.4g}" for name, (_, means) in series.items() if means[place] is not None]
    return f"{steps}: {'; '.join(said)}"


def contributions(recipes: Sequence[Recipe], names: Mapping[tuple, Html]) -> str:
    """Draws a histogram of w·Δv̄ for each different safety vector; the selected part stands out.

    `names` are the recipes' names by their ids.
    """
    parts, seen = [], set()
    for recipe in recipes:
        path = recipe.runs[0].path / "representations.safetensors"
        if not path.is_file():
            continue
        arrays, metadata = load_file(path)
        if not {"contribution", "safety_vector"} <= arrays.keys():  # another strategy's file
            continue
        values, kept = arrays["contribution"], arrays["safety_vector"] != 0
        if (key := content_hash(values.tobytes(), kept.tolist())) in seen:
            continue
        seen.add(key)
        name, top_m = names[recipe.id], metadata["top_m"]
        parts.append(_histogram(values.astype(np.float64), kept, recipe.title, name, top_m))
    return f"<div class='row'>{''.join(parts)}</div>" if parts else ""


def _histogram(values: np.ndarray, kept: np.ndarray, title: str, name: Html, top_m: str) -> str:
    """Draws counts on a logarithmic axis.

    The few features outside of the middle 99 % are in the outermost bars.
    """
    reach = float(np.quantile(np.abs(values), 0.99)) or float(np.abs(values).max()) or 1.0
    edges = np.linspace(-reach, reach, BINS + 1)
    place = np.clip(np.digitize(values, edges) - 1, 0, BINS - 1)
    total, inside = (np.bincount(place[which], minlength=BINS) for which in (slice(None), kept))
    plot = Plot(
        axis_over([-reach, reach], "w·Δv̄ of a feature, in logits"),
        Axis(0.7, 10 ** np.ceil(np.log10(total.max() + 1)), "features", True),
        f"Contributions of {title}",
        420,
        260,
    )
    for left, right, count, selected in zip(edges[:-1], edges[1:], total, inside, strict=True):
        if count:
            tip = f"{left:.4f} to {right:.4f}: {count} features, {selected} of them selected"
            plot.bar(left, right, 0.7, count, "c7", tip)
            if selected:
                plot.bar(left, right, 0.7, selected, "harmful", tip)
    if kept.any() and not kept.all():
        cut = min(max(float(values[kept].min()), -reach), reach)
        plot.rule(cut, top_m if top_m == "positive" else f"top {float(top_m):g} %")
    whole, part = values.sum(), values[kept].sum()
    facts = (
        f"{kept.sum()} of {len(values)} features; they raise the refusal token's logit by {part:.2f}, "
        f"all together by {whole:.2f}"
    )
    return f"<figure><figcaption>{name}: {facts}</figcaption>{plot.svg()}</figure>"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
