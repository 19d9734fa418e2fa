"""Which of the evaluation questions are asked."""

from collections import defaultdict
from collections.abc import Sequence


def chosen_rows(rows: Sequence[dict], split: str, limit: int | None) -> list[dict]:
    """The rows of a half, and of each label at most `limit` of them, in their order.

    `choose` and `check` are halves with no question in common: of each category (of borderline questions,
    each style) the pairs by turns, a question with its twin. What is chosen on one is to be measured on the
    other.
    """
    if split != "all":
        place: dict[str, int] = {}  # of a pair, within its category
        seen: dict[str, int] = defaultdict(int)
        for row in rows:
            pair = row.get("pair_id") or row["id"]
            if pair not in place:
                place[pair] = seen[row["category"]]
                seen[row["category"]] += 1
        half = 0 if split == "choose" else 1
        rows = [row for row in rows if place[row.get("pair_id") or row["id"]] % 2 == half]
    taken: dict[str, int] = defaultdict(int)
    kept = []
    for row in rows:
        taken[row["label"]] += 1
        if limit is None or taken[row["label"]] <= limit:
            kept.append(row)
    return kept
