"""Shares refused in styles and categories that a training left out, and in what it kept.

from rrs_jax.evaluate.left_out import left_out_rates
found = left_out_rates("RUN/eval/rrs", styles=("role_play",), categories=("self_harm",))
found["styles"]["harmful"]["audio_text"]["rate"]       # percent refused in the left-out styles
"""

from collections.abc import Collection
from pathlib import Path

from rrs_jax.errors import UserError
from rrs_jax.evaluate.finished_evaluation import read_evaluation
from rrs_jax.evaluate.summary import refused_by


def left_out_rates(
    folder: str | Path, styles: Collection[str] = (), categories: Collection[str] = ()
) -> dict:
    """Returns the shares refused in parts of an evaluation's pairs, those of the first judge.

    Of a folder RUN/eval/NAME the questions with a style are taken. The parts:
      styles: questions of a left-out style, whatever their category.
      categories: questions of a left-out category, whatever their style.
      kept: questions of neither.
      by_style, by_category: {name: part} of each one that is left out.
    A part is {"harmful", "benign": {mode: {"rate" and "ci95" in percent, "queries", "responses", "refusals",
    ...}}}, a mode that was not asked None; a part without questions is empty.

    Raises UserError where the folder is no finished evaluation, or none of its questions is of a style or
    category that is named.
    """
    evaluation = read_evaluation(folder)
    rows = [row for row in evaluation.rows if row.get("style")]
    for field, names in (("style", styles), ("category", categories)):
        if absent := sorted(set(names) - {row[field] for row in rows}):
            raise UserError(
                f"{folder}: no question has the {field} {', '.join(absent)}; name those that it asks."
            )
    parts = [
        *(("styles", row) for row in rows if row["style"] in styles),
        *(("categories", row) for row in rows if row["category"] in categories),
        *(("kept", row) for row in rows if row["style"] not in styles and row["category"] not in categories),
    ]
    judge = evaluation.judges[0]
    found = _turned(refused_by([row | {"part": part} for part, row in parts], judge, "part"))
    singles = {
        f"by_{field}": {
            name: part for name, part in _turned(refused_by(rows, judge, field)).items() if name in names
        }
        for field, names in (("style", styles), ("category", categories))
    }
    return {part: found.get(part, {}) for part in ("styles", "categories", "kept")} | singles


def _turned(by_set: dict[str, dict[str, dict]]) -> dict[str, dict[str, dict]]:
    """Turns {set: {name: rates}} into {name: {set: rates}}."""
    names = dict.fromkeys(name for values in by_set.values() for name in values)
    return {name: {each: values[name] for each, values in by_set.items() if name in values} for name in names}
