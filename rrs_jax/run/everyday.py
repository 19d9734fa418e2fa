"""The questions of `evaluate.everyday`: plain ones, which a trained model is to answer as the one before."""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from rrs_jax.data.manifest import load_manifest
from rrs_jax.data.speech import speak_missing
from rrs_jax.data.starter import StarterChoice, choose_rows
from rrs_jax.errors import UserError
from rrs_jax.evaluate.question_subset import chosen_rows
from rrs_jax.run.data_stage import rows_with_sound, skips_bad_rows


def read_everyday(config: ConfigDict) -> list[dict]:
    """Returns the questions of `evaluate.everyday`, none where it is None and at most `evaluate.limit`, with
    the label everyday and absolute paths of the clips that they have.

    Raises UserError that lists every bad row, and where one is not harmless.
    """
    source, limit = config.evaluate.everyday, config.evaluate.limit
    if source is None:
        return []
    if source == "starter":
        choice = StarterChoice("eval", pairs_per_category=0, everyday=None, seed=config.data.seed)
        return chosen_rows([row | {"audio": None} for row in choose_rows(choice)], limit)
    path = Path(source)
    rows = load_manifest(path, need_audio=False, skip_bad=skips_bad_rows(config))
    if other := [row["id"] for row in rows if row["label"] not in ("benign", "everyday")]:
        raise UserError(
            f"evaluate.everyday: {path} has {len(other)} questions that are labelled neither everyday nor"
            f" benign ({other[0]}); give plain questions on which the model is to stay as it was."
        )
    rows = [
        row | {"label": "everyday", "audio": row["audio"] and str((path.parent / row["audio"]).absolute())}
        for row in rows
    ]
    return chosen_rows(rows, limit)


def spoken_everyday(config: ConfigDict, modes: Sequence[str]) -> list[dict]:
    """Returns the questions as `read_everyday`, spoken where one of the modes has a clip.

    Raises UserError that lists every bad clip.
    """
    rows = read_everyday(config)
    if not rows or set(modes) == {"text_only"}:
        return rows
    return speak_missing(
        rows_with_sound(rows, "evaluate.everyday", config),
        config.data.voices,
        config.data.seed,
        config.data.max_cost_usd,
        source="evaluate.everyday",
        skip_bad=skips_bad_rows(config),
    )


def with_everyday(rows: Sequence[dict], everyday: Sequence[dict], limit: int | None) -> list[dict]:
    """Returns the evaluation's rows with those of `everyday` behind them that they lack, at most `limit` of
    each label."""
    asked = {row["question"] for row in rows if row["label"] == "everyday"}
    return chosen_rows([*rows, *(row for row in everyday if row["question"] not in asked)], limit)
