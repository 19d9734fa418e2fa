"""Figures of representations and rates by epoch, as HTML with inline SVG and the same numbers as a table."""

import html
from collections.abc import Sequence
from typing import NamedTuple

from rrs_jax.files import read_json
from rrs_jax.report.plots import Axis, Plot, axis_over, cloud
from rrs_jax.report.results import FinishedRun, Recipe, Results
from rrs_jax.report.separation import Figure2
from rrs_jax.report.summaries import MODES, rate_name
from rrs_jax.web.page import Html, escaped

ALIKE = (
    "The recorded representations of all questions and epochs are alike, so there is nothing to draw: check"
    " the model's weights, and the strategy's settings."
)


def panels(figure: Figure2, name: str, large: bool = False) -> str:
    """Returns both embeddings of one run, a panel an epoch, and the separation as numbers.

    With `large` the first and the last epoch's t-SNE come first, large, with a sentence what to see in them.
    """
    epochs = list(figure.tsne)
    if all(len({tuple(point) for point in points}) == 1 for points in figure.pca.values()):
        return f"<p>{ALIKE}</p>"
    ends = [epochs[0], epochs[-1]] if large and len(epochs) > 1 else []
    parts = []
    if ends:
        parts.append(f"<p>{html.escape(_what_to_see(figure, *ends))}</p>")
        parts.append(_row(figure, "t-SNE", figure.tsne, ends, name, "panels large"))
    between = [epoch for epoch in epochs if epoch not in ends]
    if between:
        heading = "t-SNE, the epochs between" if ends else "t-SNE"
        parts.append(f"<h4>{heading}</h4>" + _row(figure, "t-SNE", figure.tsne, between, name))
    parts.append(f"<h4>PCA, {100 * figure.explained:.0f} % of the variance</h4>")
    parts.append(_row(figure, "PCA", figure.pca, epochs, name))
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


def _row(
    figure: Figure2,
    title: str,
    points: dict[int, list],
    epochs: Sequence[int],
    name: str,
    kind: str = "panels",
) -> str:
    drawn = "".join(
        f"<figure>{cloud(points[epoch], figure.labels, f'{title} of {name} after epoch {epoch}')}"
        f"<figcaption>{f'After epoch {epoch}' if epoch else 'Epoch 0, vanilla'}</figcaption></figure>"
        for epoch in epochs
    )
    return f"<div class='{kind}'>{drawn}</div>"


def _what_to_see(figure: Figure2, first: int, last: int) -> str:
    """Says in a sentence what the panels of two epochs show, with their separation."""
    before, after = figure.numbers[first], figure.numbers[last]
    said = (
        "What to see: training works where red (harmful) leaves blue (benign) from the left panel to the"
        " right one, and amber (borderline) stays with blue."
    )
    if before["distance"] is not None and after["distance"] is not None:
        said += (
            " Here the means of harmful and benign questions are"
            f" {shown(before['distance'], 2)} spreads apart before and {shown(after['distance'], 2)} after."
        )
    return said


def rates_by_epoch(recipe: Recipe, results: Results, name: Html) -> str | None:
    """Draws rates of answers and ORR of the first seed after each epoch that was evaluated.

    None where none was. `name` stands above it.
    """
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
        f"<figure><figcaption>{name}</figcaption>{plot.svg()}{named}"
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
        """True for a rate of refusals, False for one of answers."""
        return self.field == "rate"


def _rate_series(summaries: dict[int, dict]) -> list[RateSeries]:
    """Returns the rates that are known after some epoch: of answers in each mode, then ORR."""
    rate = rate_name(list(summaries.values()))
    series = [
        RateSeries(
            f"{rate} {title}",
            f"c{place}",
            {epoch: summary["modes"].get(mode) for epoch, summary in summaries.items()},
            "asr",
        )
        for place, (mode, title) in enumerate(MODES.items())
    ]
    for name, kind, field in (
        ("benign", "c3", "orr"),
        ("borderline", "borderline", "borderline_orr"),
        ("everyday", "everyday", "everyday_orr"),
    ):
        blocks = {epoch: summary.get(field) for epoch, summary in summaries.items()}
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


def table_of(rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Returns an HTML table whose first row is its header; cells are escaped, but for those that are Html."""
    head = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in rows[0])
    body = "".join(
        f'<tr><th scope="row">{escaped(row[0])}</th>'
        + "".join(f"<td>{escaped(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows[1:]
    )
    return (
        f'<div class="wide {kind}"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Returns a legend of (name, CSS class) entries."""
    return (
        "<p class='legend'>"
        + "".join(f'<span class="{kind}">{html.escape(name)}</span>' for name, kind in entries)
        + "</p>"
    )


def details(title: str, inner: str) -> str:
    """Returns a part of the page that is folded away under a title, a text or Html."""
    return f"<details><summary>{escaped(title)}</summary>{inner}</details>"


def _rate(block: dict | None, field: str) -> str:
    if not block or block[field] is None:
        return "N/A"
    value = block[field]
    low, high = block["ci95"] or (value, value)
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def shown(value: float | None, decimals: int) -> str:
    """Formats a number; None is a dash."""
    return "–" if value is None else f"{value:.{decimals}f}".replace("-", "−")
