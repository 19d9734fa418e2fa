"""Curves of floor, ours and peer over one scale, as an SVG file that stands for itself on a light or a dark
page."""

import dataclasses
from collections.abc import Sequence

from rrs_jax.report.plots import Axis, Plot, axis_over

LABELS = {"batch": "samples a step", "length": "tokens a sample", "rank": "rank of the adapters"}
# Of middle lightness, since an image does not know what it lies on.
COLOURS = {"floor": "#8a8a8a", "ours": "#1f8ecd", "peer": "#d9682a"}
STYLE = (
    "<style>text{font:11px"
    " sans-serif;fill:#8a8a8a}.grid{stroke:#8a8a8a;stroke-opacity:.25}.line{fill:none;stroke-width:2}"
    ".dashed{stroke-dasharray:5 4}"
    + "".join(
        f".{side}{{stroke:{c}}}.{side} circle,text.{side}{{fill:{c};stroke:none}}"
        for side, c in COLOURS.items()
    )
    + "</style>"
)


@dataclasses.dataclass(frozen=True)
class Measured(Axis):
    """An axis with its ticks where something was measured."""

    at: tuple[float, ...] = ()

    def ticks(self) -> list[float]:
        return list(self.at)


def curve(points: Sequence[dict], scale: str, title: str) -> str:
    """points: lines of `comparison.compare`, in the order of the scale."""
    places = [line[scale] for line in points]
    rates = [line[f"{side}_a_second"] for line in points for side in COLOURS if f"{side}_a_second" in line]
    plot = Plot(
        Measured(places[0], places[-1], LABELS[scale], log=True, at=tuple(places)),
        axis_over(rates, "samples a second", zero=True),
        f"{title}: samples a second",
    )
    legend = []
    for side in COLOURS:
        line = [(point[scale], point[f"{side}_a_second"]) for point in points if f"{side}_a_second" in point]
        if not line:
            continue
        plot.line(line, side, dashed=side == "floor")
        for x, y in line:
            plot.dot(x, y, side, f"{side}, {x}: {y:.3g} samples/s")
        legend.append(f'<text class="{side}" x="{plot.LEFT + 8 + 52 * len(legend)}" y="11">{side}</text>')
    plot.marks += legend
    namespace = f'<svg xmlns="http://www.w3.org/2000/svg" width="{plot.width}" height="{plot.height}"'
    return plot.svg().replace("<svg", namespace, 1).replace(">", ">" + STYLE, 1) + "\n"
