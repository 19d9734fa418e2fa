"""Tables 2, 3 and 4 of the paper from the results of runs.

To the paper's columns are added 95 % intervals, the over-rejection of the borderline set, and the paper's own
number where the model is one of its three. `table_formats.py` writes them.
"""

import dataclasses
from collections.abc import Sequence

from rrs_jax.report.results import Recipe, Results, top_key
from rrs_jax.report.summaries import ABSENT, MODES, rate_name

SFT = ("sft_full", "sft_shallow_mirror", "sft_shallow_parallel", "sft_deep")
MAIN = ("sft_shallow_mirror", "rrs", "rrs_without_penalty")


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
      name: in the CSV file.
      group, title: the header's two lines.
      best: "low", "high", or None for a column without a best.
      decimals, signed: how numbers are written.
    """

    name: str
    group: str
    title: str
    best: str | None
    decimals: int = 1
    signed: bool = False


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
      value, ci95: in the column's unit; with None `absent` stands in the cell.
      paper: the paper's number.
      best: the value is the best of its column.
    """

    value: float | None
    ci95: tuple[float, float] | None = None
    paper: float | None = None
    best: bool = False
    absent: str = ABSENT


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
      rows: a title and a cell for each column.
      recipes: the recipe of each row.
      beyond: number of rows at the end that the paper does not have.
      selected: titles that are set in bold.
      head: header of the titles.
    """

    number: int
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    recipes: tuple[Recipe, ...]
    beyond: int = 0
    selected: tuple[str, ...] = ()
    head: str = "Strategy"


def paper_tables(results: Results) -> list[Table]:
    """Returns those of the three tables that have a row besides the vanilla model's."""
    by_key: dict[str, Recipe] = {}
    for recipe in results.recipes:
        if recipe.key and recipe.summary:
            by_key.setdefault(recipe.key, recipe)
    placed = {id(by_key[key]) for key in (*SFT, *MAIN) if key in by_key}
    top = _top_m(results)
    placed |= {id(recipe) for recipe in top}
    others = [recipe for recipe in results.recipes if recipe.summary and id(recipe) not in placed]
    rate = rate_name([recipe.summary for recipe in results.everything if recipe.summary])
    found = [
        _table(
            2,
            f"Safety of the supervised strategies: {rate}, ORR and average NSI.",
            _columns(rate, nsi="average"),
            results,
            [by_key[key] for key in SFT if key in by_key],
        ),
        _table(
            3,
            f"Safety and over-rejection: {rate}, NSI and ORR. Helpfulness (HS) is AIR-Bench's.",
            _columns(rate, nsi="all", hs=True),
            results,
            [by_key[key] for key in MAIN if key in by_key],
            others,
        ),
        _top_table(rate, results, top),
    ]
    return [table for table in found if table]


def _columns(rate: str, nsi: str, hs: bool = False) -> tuple[Column, ...]:
    found = []
    for mode, title in MODES.items():
        found.append(Column(f"{mode}_asr", title.capitalize(), f"{rate} ↓", "low"))
        if nsi == "all":
            found.append(Column(f"{mode}_nsi", title.capitalize(), "NSI ↑", "high", signed=True))
    found += [
        Column("orr", "Over-rejection", "ORR ↓", "low"),
        Column("borderline_orr", "Borderline", "ORR ↓", "low"),
    ]
    if nsi != "none":
        found.append(Column("nsi_average", "All modes", "Avg. NSI ↑", "high", signed=True))
    if hs:
        found.append(Column("hs", "AIR-Bench", "HS ↑", "high", decimals=2))
    return tuple(found)


def _table(
    number: int,
    caption: str,
    columns: tuple[Column, ...],
    results: Results,
    recipes: Sequence[Recipe],
    beyond: Sequence[Recipe] = (),
) -> Table | None:
    """Returns a table with the vanilla model first; None where there is no other row."""
    if not recipes and not beyond:
        return None
    first = [results.vanilla] if results.vanilla else []
    rows = [
        (recipe, _cells(columns, recipe.summary, recipe.hs, results.paper.get(recipe.key)))
        for recipe in (*first, *recipes, *beyond)
    ]
    if (
        not any(cells[-1].value is not None or cells[-1].paper is not None for _, cells in rows)
        and columns[-1].name == "hs"
    ):
        columns, rows = columns[:-1], [(recipe, cells[:-1]) for recipe, cells in rows]
        caption = caption.replace(" Helpfulness (HS) is AIR-Bench's.", "")
    marked = _marked(columns, [cells for _, cells in rows], skip=len(first))
    titled = tuple((recipe.title, cells) for (recipe, _), cells in zip(rows, marked, strict=True))
    return Table(number, caption, columns, titled, tuple(recipe for recipe, _ in rows), len(beyond))


def _top_m(results: Results) -> list[Recipe]:
    """Returns the RRS recipes by their shares of features, ascending."""
    found = [
        recipe
        for recipe in results.recipes
        if recipe.summary and (recipe.key == "rrs" or (recipe.key or "").startswith("top"))
    ]
    return sorted(found, key=lambda recipe: float(top_key(recipe.config["rrs.top_m"])[3:]))


def _top_table(rate: str, results: Results, recipes: list[Recipe]) -> Table | None:
    if not recipes:
        return None
    columns = _columns(rate, nsi="none")
    rows = []
    for recipe in recipes:
        share = recipe.config["rrs.top_m"]
        title = "Top-51% (positive)" if share == "positive" else f"Top-{float(share):g}%"
        rows.append((title, _cells(columns, recipe.summary, None, results.paper.get(top_key(share)))))
    selected = tuple(title for (title, _), recipe in zip(rows, recipes, strict=True) if recipe.key == "rrs")
    return Table(
        4,
        f"RRS with other shares of safety features: {rate} and ORR. Bold: the share of table 3.",
        columns,
        tuple(rows),
        tuple(recipes),
        selected=selected,
    )


def _cells(
    columns: Sequence[Column], summary: dict, hs: float | None, paper: dict | None
) -> tuple[Cell, ...]:
    return tuple(_cell(column.name, summary, hs, paper or {}) for column in columns)


def _cell(name: str, summary: dict, hs: float | None, paper: dict) -> Cell:
    if name == "hs":
        return Cell(hs, paper=paper.get("hs"), absent="–")
    if name == "nsi_average":
        return Cell((summary["nsi"] or {}).get("average"), paper=paper.get("nsi_average"), absent="–")
    if name.endswith("_nsi"):
        mode = name.removesuffix("_nsi")
        absent = ABSENT if summary["modes"].get(mode) is None else "–"
        return Cell((summary["nsi"] or {}).get(mode), paper=paper.get("nsi", {}).get(mode), absent=absent)
    if name.endswith("_asr"):
        mode = name.removesuffix("_asr")
        return _rate(summary["modes"].get(mode), "asr", paper.get(mode))
    return _rate(summary[name], "rate", paper.get(name))


def _rate(block: dict | None, field: str, paper: float | None) -> Cell:
    if not block or block[field] is None:
        return Cell(None, paper=paper)
    return Cell(block[field], tuple(block["ci95"]) if block["ci95"] else None, paper)


def _marked(columns: Sequence[Column], rows: list[tuple[Cell, ...]], skip: int) -> list[tuple[Cell, ...]]:
    """Marks the best of each column's rows behind the first `skip`, as the paper does."""
    marked = [list(cells) for cells in rows]
    for place, column in enumerate(columns):
        values = [cells[place].value for cells in rows[skip:] if cells[place].value is not None]
        if column.best is None or len(values) < 2:
            continue
        best = min(values) if column.best == "low" else max(values)
        for cells in marked[skip:]:
            if cells[place].value == best:
                cells[place] = dataclasses.replace(cells[place], best=True)
    return [tuple(cells) for cells in marked]
