"""The trade-off of all strategies: answered harmful questions against refused harmless ones.

The main recipe lies on top, larger and named; marks at one place are moved apart.
"""

import dataclasses
import html
import math
from collections.abc import Sequence

from rrs_jax.report.marks import ROUND, Mark, marks_of
from rrs_jax.report.plots import Axis, Plot
from rrs_jax.report.results import TITLES, Results
from rrs_jax.report.summaries import MODES, rate_name

SETS = {"orr": "harmless rewrites", "borderline_orr": "borderline questions"}  # fields of a summary
ALL_NAMED = 5  # with so many recipes each one is named at its mark
MAIN_SIZE = 13.0
ROOT_BELOW = 0.2  # of an axis's end, under which a rate wants a square-root scale
OVERLAP = 0.95  # least distance of two marks, in the sum of their radii
PAD = 14  # between the frame and the axes' ends, so that marks at 0 hide no number


@dataclasses.dataclass(frozen=True)
class Point:
    """A recipe in a plane.

    Attributes:
      x, y: the lower end of the interval, the rate, and the upper end, in percent.
      main: the page is about this recipe.
      named: its name stands beside the mark.
    """

    name: str
    mark: Mark
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    main: bool = False
    named: bool = False

    @property
    def size(self) -> float:
        """Radius of the mark."""
        return MAIN_SIZE if self.main else ROUND


@dataclasses.dataclass(frozen=True)
class PaperPoint:
    """The paper's figures for a strategy, in percent."""

    name: str
    mark: Mark
    x: float
    y: float


def tradeoff(results: Results) -> str:
    """Draws a plane for each mode and set of harmless questions."""
    recipes = [recipe for recipe in results.everything if recipe.summary]
    rate = rate_name([recipe.summary for recipe in recipes])
    planes = []
    for field, refused in SETS.items():
        drawn = [_plane_of(mode, field, rate, results) for mode in MODES]
        if any(drawn):
            planes.append(
                f"<h3>Refused {refused}</h3><div class='row planes'>{''.join(filter(None, drawn))}</div>"
            )
    if not planes:
        return ""
    said = (
        f"Across: {rate}, the share of harmful questions that are answered. Up: ORR, the share of harmless"
        " questions that are refused. Both low is best, so the lower left corner is the goal. Lines are 95 %"
        " intervals."
    )
    if 'class="leader' in "".join(planes):
        said += " Marks that would hide each other are moved apart, with a line to their place."
    paper = (
        " Hollow marks without a number are the paper's." if 'class="mark paper' in "".join(planes) else ""
    )
    return f"<p>{html.escape(said)}{paper}</p>{legend_of(results)}{''.join(planes)}"


def legend_of(results: Results) -> str:
    """Returns the names of all evaluated recipes with their marks, by number."""
    marks = marks_of(results)
    recipes = [recipe for recipe in results.everything if recipe.summary]
    recipes.sort(key=lambda recipe: marks[recipe.id].number)
    names = "".join(f"<li>{marks[recipe.id].swatch(recipe.label)}</li>" for recipe in recipes)
    return f"<ul class='names'>{names}</ul>"


def draw_plane(
    points: Sequence[Point],
    labels: tuple[str, str],
    paper: Sequence[PaperPoint] = (),
    size: tuple[int, int] = (400, 380),
) -> Plot:
    """Draws points, the main one last and thus on top; the paper's lie below.

    `labels` are those of the axes, across and up; `size` is width and height.
    """
    x_label, y_label = labels
    title = f"{y_label} against {x_label}"
    x_axis = _axis([point.x for point in points], x_label)
    plot = Plot(x_axis, _axis([point.y for point in points], y_label), title, *size, PAD)
    plot.text(plot.LEFT + 7, plot.height - plot.BOTTOM - 8, "↙ better", "better")
    points = sorted(points, key=lambda point: not point.main)
    places = dodged([(*plot.at(point.x[1], point.y[1]), point.size) for point in points], plot.frame)
    for one in paper:
        if one.x <= plot.x.high and one.y <= plot.y.high:
            tip = f"{one.name} in the paper: {x_label} {one.x}, {y_label} {one.y}"
            plot.mark(plot.at(one.x, one.y), one.mark, tip, size=5.5, kind="paper")
    for point in reversed(points):
        plot.cross(point.x, point.y, f"{point.mark.family}{' main' if point.main else ''}")
    for point, place in reversed(list(zip(points, places, strict=True))):
        true = plot.at(point.x[1], point.y[1])
        if place != true:
            plot.leader(true, place, point.mark.family)
        tip = f"{point.name}: {x_label} {_rate(point.x)}, {y_label} {_rate(point.y)}"
        plot.mark(place, point.mark, tip, size=point.size, kind="main" if point.main else "")
    for point, place in zip(points, places, strict=True):
        if point.named:
            plot.name(place, point.name, point.mark.family, point.size, avoid=places)
    return plot


def dodged(
    circles: Sequence[tuple[float, float, float]], frame: tuple[float, float, float, float]
) -> list[tuple[float, float]]:
    """Moves marks, each x, y and a radius, apart where they would hide each other; earlier ones stay.

    Each takes the free place on the narrowest ring about its own that lies in `frame` (left, top, right,
    bottom). Returns the places.
    """
    left, top, right, bottom = frame
    found: list[tuple[float, float, float]] = []
    for x, y, size in circles:
        candidates = [(x, y)]
        for ring in range(1, 40):
            reach, parts = ring * size / 3, 4 * ring + 4
            angles = [2 * math.pi * part / parts for part in range(parts)]
            candidates += [(x + reach * math.cos(a), y - reach * math.sin(a)) for a in angles]
        a, b = next(
            (
                (a, b)
                for a, b in candidates
                if left <= a <= right
                and top <= b <= bottom
                and all(math.dist((a, b), other[:2]) >= OVERLAP * (size + other[2]) for other in found)
            ),
            (x, y),
        )
        found.append((round(a, 1), round(b, 1), size))
    return [(x, y) for x, y, _ in found]


def _plane_of(mode: str, field: str, rate: str, results: Results) -> str:
    """Draws the plane of one mode and set; "" where no recipe was asked in it."""
    recipes, marks = [recipe for recipe in results.everything if recipe.summary], marks_of(results)
    known = [
        (recipe, block, entry)
        for recipe in recipes
        if (block := recipe.summary["modes"].get(mode))
        and block["asr"] is not None
        and (entry := recipe.summary[field])
        and entry["rate"] is not None
    ]
    if not known:
        return ""
    points = [
        Point(
            TITLES.get(recipe.key, recipe.name),
            marks[recipe.id],
            _interval(block, "asr"),
            _interval(entry, "rate"),
            recipe is results.main,
            len(known) <= ALL_NAMED or recipe in (results.main, results.vanilla),
        )
        for recipe, block, entry in known
    ]
    x_label, y_label = f"{rate} {MODES[mode]}, %", "ORR, %" if field == "orr" else "ORR borderline, %"
    paper = _of_the_paper(mode, results, marks) if field == "orr" else ()
    plot = draw_plane(points, (x_label, y_label), paper)
    return f"<figure>{plot.svg()}</figure>"


def _of_the_paper(mode: str, results: Results, marks: dict[tuple, Mark]) -> list[PaperPoint]:
    own = {recipe.key: marks[recipe.id] for recipe in results.everything if recipe.key}
    return [
        PaperPoint(TITLES[key], own[key], row[mode], row["orr"])
        for key, row in results.paper.items()
        if key in TITLES and key in own and row.get(mode) is not None
    ]


def _axis(values: Sequence[tuple[float, float, float]], label: str) -> Axis:
    """Returns an axis from 0 to beyond all intervals; with a square-root scale where a rate is small."""
    high = next(end for end in (10, 20, 40, 60, 80, 100) if end >= max(value[2] for value in values))
    root = min(value[1] for value in values) < ROOT_BELOW * high
    return Axis(0, high, f"{label} (square-root scale)" if root else label, root=root)


def _interval(block: dict, field: str) -> tuple[float, float, float]:
    low, high = block["ci95"] or (block[field], block[field])
    return low, block[field], high


def _rate(values: tuple[float, float, float]) -> str:
    low, value, high = values
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"
