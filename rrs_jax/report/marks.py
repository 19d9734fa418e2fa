"""The mark of each strategy, alike on the whole page: a colour a family, a shape in it, and one number.

The paper's four SFT strategies keep the numbers ① to ④ that they have there, the vanilla model is 0, and the
others are counted from 5 on.
"""

import dataclasses
import html
import math

from rrs_jax.report.results import PAPER_NUMBERS, Recipe, Results
from rrs_jax.web.page import Html

FAMILIES = ("vanilla", "sft", "rrs", "plus", "rival")  # classes of the page's colours
SHAPES = ("circle", "square", "diamond", "triangle", "pentagon", "drop", "hexagon", "plus")
ROUND = 9.0  # radius of a mark, in an SVG's units


@dataclasses.dataclass(frozen=True)
class Mark:
    """A strategy's mark.

    Attributes:
      family: one of FAMILIES.
      shape: one of SHAPES.
      number: shown in it.
    """

    family: str
    shape: str
    number: int

    def svg(self, x: float, y: float, size: float = ROUND, numbered: bool = True) -> str:
        """Returns the mark's shape, of radius `size` about (x, y), with its number."""
        number = ""
        if numbered:
            lower = {"triangle": 0.12, "drop": -0.12}.get(self.shape, 0) * size
            number = f'<text x="{x:g}" y="{y + 3.6 * size / ROUND + lower:g}">{self.number}</text>'
        return _shape(self.shape, x, y, size) + number

    def swatch(self, name: str) -> Html:
        """Returns the mark and a name for a table or legend, as HTML; the name is escaped."""
        shape = f'<svg class="mark {self.family}" viewBox="-12 -12 24 24" aria-hidden="true">'
        middle = {"triangle": 0.25, "drop": -0.25}.get(self.shape, 0) * ROUND  # or its tip is cut off
        return Html(f'<span class="strategy">{shape}{self.svg(0, middle)}</svg>{html.escape(name)}</span>')


def marks_of(results: Results) -> dict[tuple, Mark]:
    """Returns the mark of each recipe by its id; within a family the main recipe comes first."""
    ordered = sorted(
        results.everything,
        key=lambda recipe: (
            FAMILIES.index(family(recipe)),
            recipe is not results.main,
            _paper_number(recipe),
        ),
    )
    marks, free, members = {}, max(PAPER_NUMBERS.values()) + 1, dict.fromkeys(FAMILIES, 0)
    for recipe in ordered:
        own = family(recipe)
        number = PAPER_NUMBERS.get(recipe.key, 0 if own == "vanilla" else free)
        free += number == free
        marks[recipe.id] = Mark(own, SHAPES[members[own] % len(SHAPES)], number)
        members[own] += 1
    return marks


def names_of(results: Results) -> dict[tuple, Html]:
    """Returns each recipe's mark with its label, by the recipe's id."""
    marks = marks_of(results)
    return {recipe.id: marks[recipe.id].swatch(recipe.label) for recipe in results.everything}


def family(recipe: Recipe) -> str:
    """Returns the family of a recipe, one of FAMILIES."""
    strategy = "vanilla" if recipe.key == "vanilla" else recipe.runs[0].strategy
    if strategy in ("vanilla", "rrs"):
        return strategy
    return next(
        (name for name, start in (("sft", "sft_"), ("plus", "rrs_")) if strategy.startswith(start)), "rival"
    )


def _paper_number(recipe: Recipe) -> int:
    return PAPER_NUMBERS.get(recipe.key, 0)


def _shape(kind: str, x: float, y: float, size: float) -> str:
    """Returns the SVG element of a shape, all of about the same area."""
    if kind == "circle":
        return f'<circle class="shape" cx="{x:g}" cy="{y:g}" r="{size:g}"/>'
    if kind == "plus":
        arm, reach = 0.45 * size, 1.15 * size
        corners = [(arm, -reach), (arm, -arm), (reach, -arm), (reach, arm), (arm, arm), (arm, reach)]
        corners += [(-a, -b) for a, b in corners]
    else:
        sides, factor, turn = {
            "square": (4, 1.25, 45),
            "diamond": (4, 1.3, 0),
            "triangle": (3, 1.5, 0),
            "pentagon": (5, 1.15, 0),
            "drop": (3, 1.5, 180),
            "hexagon": (6, 1.1, 90),
        }[kind]
        angles = [math.radians(turn + 360 * side / sides) for side in range(sides)]
        corners = [(factor * size * math.sin(angle), -factor * size * math.cos(angle)) for angle in angles]
    points = " ".join(f"{round(x + dx, 1):g},{round(y + dy, 1):g}" for dx, dy in corners)
    return f'<polygon class="shape" points="{points}"/>'
