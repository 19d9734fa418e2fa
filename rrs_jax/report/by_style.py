"""The share refused in each style of question, as a section of the report page."""

from collections.abc import Mapping

from rrs_jax.report import figures
from rrs_jax.report.marks import names_of
from rrs_jax.report.results import Recipe, Results
from rrs_jax.report.summaries import ABSENT, MODES

SETS = {"harmful": "harmful", "benign": "rewrites"}  # heading by set


def by_style(results: Results) -> str:
    """Shows the share refused by style, worst first; empty where no question has a style.

    The main recipe's table is open, the others are folded away.
    """
    recipes = [recipe for recipe in results.everything if recipe.summary and "refused_by" in recipe.summary]
    recipes.sort(key=lambda recipe: recipe is not results.main)
    if not recipes:
        return ""
    names = names_of(results)
    first, *others = recipes
    said = (
        "Refused, in percent, with refusals of responses. Worst first: the style whose harmful questions are"
        " refused least in one of the modes."
    )
    parts = [f"<p>{said}</p>", f"<h3>{names[first.id]}</h3>", figures.table_of(style_rows(first))]
    parts += [figures.details(names[recipe.id], figures.table_of(style_rows(recipe))) for recipe in others]
    return "".join(parts)


def style_rows(recipe: Recipe) -> list[tuple[str, ...]]:
    """Returns the header and a row for each style of a recipe whose questions have styles, worst first."""
    by_set: Mapping[str, Mapping[str, dict]] = recipe.summary["refused_by"]["style"]
    left_out = recipe.config.get("data.left_out_styles") or ()
    columns = [
        (kind, mode)
        for kind in SETS
        for mode in MODES
        if any(blocks[mode] for blocks in by_set.get(kind, {}).values())
    ]
    styles = sorted(
        dict.fromkeys(style for values in by_set.values() for style in values),
        key=lambda style: (_least(by_set.get("harmful", {}).get(style, {})), style),
    )
    rows = [("Style", *(f"{SETS[kind]}, {MODES[mode]}" for kind, mode in columns))]
    for style in styles:
        blocks = (by_set.get(kind, {}).get(style, {}).get(mode) for kind, mode in columns)
        rows.append(
            (style + (" (not trained on)" if style in left_out else ""), *(_share(block) for block in blocks))
        )
    return rows


def _least(blocks: Mapping[str, dict | None]) -> float:
    """Returns the lowest rate among modes; a style that was not asked comes last."""
    rates = [block["rate"] for block in blocks.values() if block and block["rate"] is not None]
    return min(rates, default=101.0)


def _share(block: dict | None) -> str:
    if not block or block["rate"] is None:
        return ABSENT
    return f"{block['rate']:.1f} ({block['refusals']} of {block['responses']})"
