"""Small plots as inline SVG: axes, lines, bars, clouds of points.

Colours are CSS classes of the page, so that they follow light and dark. An element's `data-tip` is what the
page shows when it is hovered, touched or focused.
"""

import dataclasses
import html
import math
from collections.abc import Sequence
from pathlib import Path

from rrs_jax.report.marks import Mark
from rrs_jax.web.page import COLOURS

PLOTS = Path(__file__).parent / "plots.css"
NAME_LETTER = 7.0  # width of a letter of a name, in the SVG's units
Points = Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high` with ticks.

    `log` is a logarithmic scale with powers of ten, `root` a square-root scale that spreads small shares.
    """

    low: float
    high: float
    label: str = ""
    log: bool = False
    root: bool = False

    def place(self, value: float) -> float:
        """Returns the place of a value: 0 at `low`, 1 at `high`."""
        low, high, value = map(self._scaled, (self.low, self.high, value))
        return (value - low) / (high - low) if high > low else 0.5

    def _scaled(self, value: float) -> float:
        if self.log:
            return math.log10(max(value, 1e-300))
        return math.sqrt(max(value, 0)) if self.root else value

    def ticks(self) -> list[float]:
        """Returns the values at which the axis has ticks."""
        if self.root:
            return [tick for tick in (0, 1, 5, 10, 20, 40, 60, 80, 100) if self.low <= tick <= self.high]
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            step = max(1, (last - first) // 5 + 1)
            return [10.0**power for power in range(first, last + 1, step)]
        step = nice_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        return [place * step for place in range(first, math.floor(self.high / step + 1e-9) + 1)]


def nice_step(rough: float) -> float:
    """Returns the next of 1, 2, 5, 10, 20 and so on that is not below `rough`."""
    if not rough > 0:
        return 1.0
    power = 10 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def axis_over(values: Sequence[float], label: str, zero: bool = False, log: bool = False) -> Axis:
    """Returns an axis that holds all values, ends at nice numbers, and begins at 0 where asked."""
    low, high = min(values), max(values)
    if log:
        return Axis(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high) + 1e-9), label, True)
    low = min(low, 0) if zero else low
    step = nice_step((high - low) / 5)
    low = math.floor(low / step + 1e-9) * step
    return Axis(low, max(math.ceil(high / step - 1e-9) * step, low + step), label)


class Plot:
    """A frame with axes, into which marks are drawn; `svg()` returns the whole."""

    LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 42

    def __init__(self, x: Axis, y: Axis, title: str, width: int = 420, height: int = 280, pad: int = 0):
        """Takes the axes, what is read aloud, the size, and the room between frame and axes' ends."""
        self.x, self.y, self.title, self.width, self.height, self.pad = x, y, title, width, height, pad
        self.inner = width - self.LEFT - self.RIGHT, height - self.TOP - self.BOTTOM
        self.marks: list[str] = []

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Returns the place of a point in the SVG's units."""
        wide, high = self.inner[0] - 2 * self.pad, self.inner[1] - 2 * self.pad
        return (
            round(self.LEFT + self.pad + self.x.place(x) * wide, 1),
            round(self.TOP + self.pad + (1 - self.y.place(y)) * high, 1),
        )

    def line(self, points: Points, kind: str, dashed: bool = False) -> None:
        """Draws a line through the points."""
        path = " ".join(f"{x:g},{y:g}" for x, y in (self.at(*point) for point in points))
        self.marks.append(f'<polyline class="line {kind}{" dashed" if dashed else ""}" points="{path}"/>')

    def band(self, points: Sequence[tuple[float, float, float]], kind: str) -> None:
        """Fills the band between the ends of (x, low, high)."""
        upper = [self.at(x, high) for x, _, high in points]
        lower = [self.at(x, low) for x, low, _ in reversed(points)]
        path = " ".join(f"{x:g},{y:g}" for x, y in upper + lower)
        self.marks.append(f'<polygon class="band {kind}" points="{path}"/>')

    @property
    def frame(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom end of the part within the axes."""
        return self.LEFT, self.TOP, self.width - self.RIGHT, self.height - self.BOTTOM

    def dot(self, x: float, y: float, kind: str, tip: str, hollow: bool = False) -> None:
        """Draws a small round dot with a tip of its own."""
        px, py = self.at(x, y)
        self.marks.append(
            f'<g class="dot {kind}{" hollow" if hollow else ""}" {tip_of(tip)}>'
            f'<circle cx="{px:g}" cy="{py:g}" r="4.5"/></g>'
        )

    def mark(self, place: tuple[float, float], mark: Mark, tip: str, size: float, kind: str = "") -> None:
        """Draws a strategy's mark at a place of the SVG; the kind `paper` has no number."""
        inner = mark.svg(*place, size, numbered=kind != "paper")
        self.marks.append(f'<g class="mark {mark.family} {kind}" {tip_of(tip)}>{inner}</g>')

    def leader(self, start: tuple[float, float], end: tuple[float, float], kind: str) -> None:
        """Draws a thin line between two places of the SVG."""
        path = f"M{start[0]:g} {start[1]:g}L{end[0]:g} {end[1]:g}"
        self.marks.append(f'<path class="leader {kind}" d="{path}"/>')

    def text(self, x: float, y: float, text: str, kind: str, anchor: str = "start") -> None:
        """Writes a text at a place of the SVG."""
        self.marks.append(
            f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{html.escape(text)}</text>'
        )

    def name(
        self,
        place: tuple[float, float],
        text: str,
        kind: str,
        size: float,
        avoid: Sequence[tuple[float, float]],
    ) -> None:
        """Writes a name beside a mark, on the side where it covers the fewest of the marks `avoid`."""
        (x, y), wide = place, NAME_LETTER * len(text)
        gap = size + 5
        left, top, right, bottom = self.frame
        sides = [
            (x + gap, y + 4, "start"),
            (x - gap - wide, y + 4, "end"),
            (x - wide / 2, y - gap, "middle"),
            (x - wide / 2, y + gap + 9, "middle"),
            (x + gap - 4, y - gap + 2, "start"),
            (x - gap - wide + 4, y - gap + 2, "end"),
        ]

        def cost(side: tuple[float, float, str]) -> float:
            start, base, _ = side
            outside = max(0, left - start) + max(0, start + wide - right)
            covered = sum(start - 9 < a < start + wide + 9 and base - 18 < b < base + 9 for a, b in avoid)
            return outside + 20 * covered + 60 * (base - 12 < top or base > bottom)

        start, base, anchor = min(sides, key=cost)
        at = {"start": start, "middle": start + wide / 2, "end": start + wide}[anchor]
        self.text(round(at, 1), round(base, 1), text, f"name {kind}", anchor)

    def cross(self, x: tuple[float, float, float], y: tuple[float, float, float], kind: str) -> None:
        """Draws the intervals (low, middle, high) of both directions."""
        (x0, y0), (x1, y1) = self.at(x[0], y[1]), self.at(x[2], y[1])
        (x2, y2), (x3, y3) = self.at(x[1], y[0]), self.at(x[1], y[2])
        self.marks.append(
            f'<path class="whisker {kind}" d="M{x0:g} {y0:g}L{x1:g} {y1:g}M{x2:g} {y2:g}L{x3:g} {y3:g}"/>'
        )

    def bar(self, x0: float, x1: float, y0: float, y1: float, kind: str, tip: str) -> None:
        """Draws a bar from (x0, y0) to (x1, y1) with a tip."""
        (left, bottom), (right, top) = self.at(x0, y0), self.at(x1, y1)
        self.marks.append(
            f'<rect class="bar {kind}" x="{left:g}" y="{top:g}" width="{max(right - left - 0.5, 0.5):g}" '
            f'height="{max(bottom - top, 0):g}" {tip_of(tip, focus=False)}/>'
        )

    def strip(self, x0: float, x1: float, tip: str) -> None:
        """Draws an unseen part of the plot, from top to bottom, that has a tip."""
        left, right = self.at(x0, self.y.low)[0], self.at(x1, self.y.low)[0]
        self.marks.append(
            f'<rect class="strip" x="{left:g}" y="{self.TOP}" width="{max(right - left, 0.5):g}" '
            f'height="{self.inner[1]}" {tip_of(tip, focus=False)}/>'
        )

    def rule(self, x: float, label: str) -> None:
        """Draws a vertical line with a label."""
        px = self.at(x, self.y.low)[0]
        self.marks.append(
            f'<path class="rule" d="M{px:g} {self.TOP}V{self.height - self.BOTTOM}"/>'
            f'<text class="label" x="{px + 4:g}" y="{self.TOP + 11}">{html.escape(label)}</text>'
        )

    def svg(self) -> str:
        """Returns the plot as an SVG element."""
        bottom, right = self.height - self.BOTTOM, self.width - self.RIGHT
        parts = []
        for tick in self.x.ticks():
            px = self.at(tick, self.y.low)[0]
            parts.append(
                f'<path class="grid" d="M{px:g} {self.TOP}V{bottom}"/>'
                f'<text x="{px:g}" y="{bottom + 15}" text-anchor="middle">{written(tick)}</text>'
            )
        for tick in self.y.ticks():
            py = self.at(self.x.low, tick)[1]
            parts.append(
                f'<path class="grid" d="M{self.LEFT} {py:g}H{right}"/>'
                f'<text x="{self.LEFT - 6}" y="{py + 4:g}" text-anchor="end">{written(tick)}</text>'
            )
        middle = self.TOP + self.inner[1] / 2
        parts.append(
            f'<text class="label" x="{self.LEFT + self.inner[0] / 2:g}" y="{self.height - 8}"'
            f' text-anchor="middle">{html.escape(self.x.label)}</text>'
        )
        parts.append(
            f'<text class="label" transform="translate(13 {middle:g}) rotate(-90)" text-anchor="middle">'
            f"{html.escape(self.y.label)}</text>"
        )
        return (
            f'<svg class="plot" viewBox="0 0 {self.width} {self.height}" role="img"'
            f' aria-label="{html.escape(self.title)}">'
            f"{''.join(parts)}{''.join(self.marks)}</svg>"
        )


def standalone(plot: Plot) -> str:
    """Returns the plot as an SVG file that brings its colours along, light and dark."""
    sheets = "".join(sheet.read_text(encoding="utf-8") for sheet in (COLOURS, PLOTS))
    frame = f'<style>{sheets}</style><rect width="100%" height="100%" fill="var(--back)"/>'
    head, rest = plot.svg().split(">", 1)
    size = f'width="{plot.width}" height="{plot.height}"'
    return f'{head} xmlns="http://www.w3.org/2000/svg" {size}>{frame}{rest}\n'


def cloud(points: Sequence[Sequence[int]], labels: Sequence[str], title: str, size: int = 1000) -> str:
    """Draws a panel of points without axes, one path a label, in the order of `by_label`."""
    parts = []
    for label, members in by_label(labels).items():
        path = "".join(f"M{points[i][0]} {size - points[i][1]}z" for i in members)
        parts.append(f'<path class="points {label}" d="{path}"/>')
    margin = size // 25
    box = f"{-margin} {-margin} {size + 2 * margin} {size + 2 * margin}"
    return (
        f'<svg class="cloud" viewBox="{box}" role="img"'
        f' aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
    )


def by_label(labels: Sequence[str]) -> dict[str, list[int]]:
    """Places of the points of each label, in the order in which labels are drawn."""
    present = dict.fromkeys(sorted(labels, key=("everyday", "borderline", "benign", "harmful").index))
    return {label: [i for i, other in enumerate(labels) if other == label] for label in present}


def tip_of(tip: str, focus: bool = True) -> str:
    """Returns the attributes of an element that has a tip; with `focus` it can be reached by keyboard."""
    return f'data-tip="{html.escape(tip)}"' + (
        ' tabindex="0" role="img" aria-label="' + html.escape(tip) + '"' if focus else ""
    )


def written(value: float) -> str:
    """Returns a tick's number, short."""
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        power = math.floor(math.log10(abs(value)) + 1e-9)
        factor = value / 10**power
        return f"{'' if abs(factor - 1) < 1e-6 else f'{factor:g}·'}10{str(power).translate(SUPERSCRIPT)}"
    return f"{value:.6g}".replace("-", "−")


SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
