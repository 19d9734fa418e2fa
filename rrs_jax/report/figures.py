"""The report page's figures: from files of runs to HTML with inline SVG and the same numbers as a table."""

import html
from collections.abc import Sequence
from typing import NamedTuple

from rrs_jax.files import read_json
from rrs_jax.report.plots import Axis, Plot, axis_over, cloud
from rrs_jax.report.results import TITLES, FinishedRun, Recipe, Results
from rrs_jax.report.separation import Figure2
from rrs_jax.report.table import MODES

COLOURS = 8  # classes c0 to c7 of the page


def panels(figure: Figure2, name: str) -> str:
    """Returns both embeddings of one run, a panel an epoch, and the separation as numbers."""
    parts = []
    for title, points in (("t-SNE", figure.tsne), ("PCA", figure.pca)):
        drawn = "".join(
            f"<figure>{cloud(points[epoch], figure.labels, f'{title} of {name} after epoch {epoch}')}"
            f"<figcaption>Epoch {epoch}</figcaption></figure>"
            for epoch in points
        )
        share = f", {100 * figure.explained:.0f} % of the variance" if title == "PCA" else ""
        parts.append(f"<h4>{title}{share}</h4><div class='panels'>{drawn}</div>")
    rows = [("Epoch", "Silhouette", "Linear probe, % right", "Distance of means, in spreads")]
    rows += [
        (
            str(epoch),
            *(
                shown(numbers[field], decimals)
                for field, decimals in (("silhouette", 3), ("probe", 1), ("distance", 2))
            ),
        )
        for epoch, numbers in figure.numbers.items()
    ]
    return "".join(parts) + table_of(rows)


def rates_by_epoch(recipe: Recipe, results: Results) -> str | None:
    """Draws ASR and ORR of the first seed after each epoch that was evaluated; None where none was."""
    run = recipe.runs[0]
    found = _epoch_summaries(run, results)
    if len(found) < 2 or not any(0 < epoch < int(run.config["train.epochs"]) for epoch in found):
        return None
    series = _rate_series(found)
    title = f"Rates of {recipe.title} by epoch"
    plot = Plot(axis_over(list(found), "epoch", zero=True), Axis(0, 100, "percent"), title, 440, 290)
    for one in series:
        known = [
            (epoch, block) for epoch, block in one.blocks.items() if block and block[one.field] is not None
        ]
        plot.band([(epoch, *(block["ci95"] or [block[one.field]] * 2)) for epoch, block in known], one.kind)
        plot.line([(epoch, block[one.field]) for epoch, block in known], one.kind, dashed=one.over_refusal)
        for epoch, block in known:
            tip = f"{one.name}, epoch {epoch}: {_rate(block, one.field)}"
            plot.dot(epoch, block[one.field], one.kind, tip, hollow=one.over_refusal)
    rows = [("Epoch", *(one.name for one in series))]
    rows += [(str(epoch), *(_rate(one.blocks[epoch], one.field) for one in series)) for epoch in found]
    named = legend([(one.name, one.kind) for one in series])
    return (
        f"<figure><figcaption>{html.escape(recipe.title)}</figcaption>{plot.svg()}{named}"
        f"{details('Numbers', table_of(rows))}</figure>"
    )


class RateSeries(NamedTuple):
    """One rate by epoch: its CSS class, the summaries' blocks, and the rate's field in them."""

    name: str
    kind: str
    blocks: dict[int, dict | None]
    field: str

    @property
    def over_refusal(self) -> bool:
        """True for a rate of refusals, False for ASR."""
        return self.field == "rate"


def _rate_series(summaries: dict[int, dict]) -> list[RateSeries]:
    """Returns the rates that are known after some epoch: ASR of each mode, then ORR."""
    series = [
        RateSeries(
            f"ASR {title}",
            f"c{place}",
            {epoch: summary["modes"].get(mode) for epoch, summary in summaries.items()},
            "asr",
        )
        for place, (mode, title) in enumerate(MODES.items())
    ]
    for name, kind, field in (("benign", "c3", "orr"), ("borderline", "borderline", "borderline_orr")):
        blocks = {epoch: summary[field] for epoch, summary in summaries.items()}
        series.append(RateSeries(f"ORR {name}", kind, blocks, "rate"))
    return [
        one for one in series if any(block and block[one.field] is not None for block in one.blocks.values())
    ]


def _epoch_summaries(run: FinishedRun, results: Results) -> dict[int, dict]:
    """Returns summaries by epoch.

    Epoch 0 is the model before training, the last one the run's own evaluation.
    """
    found = {}
    for path in run.path.glob("eval/epochs/*"):
        if folder := run.evaluation(run.strategy, int(path.name)):
            found[int(path.name)] = read_json(folder / "summary.json")
    if folder := run.evaluation("vanilla"):
        found[0] = read_json(folder / "summary.json")
    elif results.vanilla:
        found[0] = results.vanilla.summary
    if folder := run.evaluation(run.strategy):
        found[int(run.config["train.epochs"])] = read_json(folder / "summary.json")
    return dict(sorted(found.items()))


def tradeoff(results: Results) -> str:
    """Draws a plane for each mode: ASR against ORR.

    The ORR of benign questions is filled, that of borderline ones hollow.
    """
    recipes = [recipe for recipe in results.everything if recipe.summary]
    planes = [_tradeoff_plane(mode, title, recipes, results.paper) for mode, title in MODES.items()]
    names = "".join(
        f'<li class="{colour(place)}">{html.escape(recipe.title)}</li>'
        for place, recipe in enumerate(recipes)
    )
    said = "Filled: benign questions; hollow: borderline ones." + (
        " Squares: the paper's." if results.paper else ""
    )
    return (
        f"<p>{said} Both low is best.</p><ol class='names'>{names}</ol><div"
        f" class='row'>{''.join(planes)}</div>"
    )


def _tradeoff_plane(mode: str, title: str, recipes: Sequence[Recipe], paper: dict[str, dict]) -> str:
    """Draws the plane of one mode; "" where no recipe was asked in it."""
    points = [
        (number, recipe, block)
        for number, recipe in enumerate(recipes, start=1)
        if (block := recipe.summary["modes"].get(mode)) and block["asr"] is not None
    ]
    if not points:
        return ""
    plot = Plot(*_plane(points, title), f"ORR against ASR, {title}", 400, 360)
    for number, recipe, block in points:
        _draw_recipe(plot, number, recipe, block, title)
    for key, row in paper.items():
        if (
            key in TITLES
            and row.get(mode) is not None
            and row["orr"] <= plot.y.high
            and row[mode] <= plot.x.high
        ):
            tip = f"{TITLES[key]} in the paper: ASR {title} {row[mode]}, ORR {row['orr']}"
            plot.dot(row[mode], row["orr"], "faint", tip, square=True)
    return f"<figure>{plot.svg()}</figure>"


def _draw_recipe(plot: Plot, number: int, recipe: Recipe, block: dict, title: str) -> None:
    """Draws a recipe's two points with their intervals, joined by a line."""
    orr, borderline = recipe.summary["orr"], recipe.summary["borderline_orr"]
    both = [entry["rate"] for entry in (orr, borderline) if entry and entry["rate"] is not None]
    if len(both) == 2:
        plot.line([(block["asr"], rate) for rate in both], "faint")
    for name, entry, hollow in (("borderline", borderline, True), ("benign", orr, False)):
        if entry and entry["rate"] is not None:
            plot.cross(_interval(block, "asr"), _interval(entry, "rate"), colour(number - 1))
            rates = f"ASR {title} {_rate(block, 'asr')}, ORR {name} {_rate(entry, 'rate')}"
            tip = f"{recipe.title}: {rates}"
            plot.dot(block["asr"], entry["rate"], colour(number - 1), tip, hollow, str(number))


def _plane(points: Sequence[tuple[int, Recipe, dict]], title: str) -> tuple[Axis, Axis]:
    """Returns both axes, with a square-root scale, from 0 to beyond all intervals."""
    across = [_interval(block, "asr")[2] for _, _, block in points]
    rates = [
        entry
        for _, recipe, _ in points
        for entry in (recipe.summary["orr"], recipe.summary["borderline_orr"])
    ]
    up = [_interval(entry, "rate")[2] for entry in rates if entry and entry["rate"] is not None]
    high = [
        next(end for end in (10, 20, 40, 60, 80, 100) if end >= max(values, default=0))
        for values in (across, up)
    ]
    return Axis(0, high[0], f"ASR {title}, % (square-root scale)", root=True), Axis(
        0, high[1], "ORR, %", root=True
    )


def table_of(rows: Sequence[Sequence[str]]) -> str:
    """Returns an HTML table whose first row is its header; all cells are escaped."""
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in rows[0])
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows[1:]
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Returns a legend of (name, CSS class) entries."""
    return (
        "<p class='legend'>"
        + "".join(f'<span class="{kind}">{html.escape(name)}</span>' for name, kind in entries)
        + "</p>"
    )


def details(title: str, inner: str) -> str:
    """Returns a part of the page that is folded away under a title."""
    return f"<details><summary>{html.escape(title)}</summary>{inner}</details>"


def colour(place: int) -> str:
    """Returns the CSS class of the n-th colour."""
    return f"c{place % COLOURS}"


def _interval(block: dict, field: str) -> tuple[float, float, float]:
    low, high = block["ci95"] or (block[field], block[field])
    return low, block[field], high


def _rate(block: dict | None, field: str) -> str:
    if not block or block[field] is None:
        return "N/A"
    low, value, high = _interval(block, field)
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def shown(value: float | None, decimals: int) -> str:
    """Formats a number; None is a dash."""
    return "–" if value is None else f"{value:.{decimals}f}".replace("-", "−")
