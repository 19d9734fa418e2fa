"""The part of the evaluation questions that is asked."""

from collections import defaultdict
from collections.abc import Sequence


def chosen_rows(rows: Sequence[dict], limit: int | None) -> list[dict]:
    """Returns the first `limit` rows of each label in their order; all rows where `limit` is None."""
    taken: dict[str, int] = defaultdict(int)
    kept = []
    for row in rows:
        taken[row["label"]] += 1
        if limit is None or taken[row["label"]] <= limit:
            kept.append(row)
    return kept
