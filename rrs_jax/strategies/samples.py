"""Training samples as a strategy sees them: rows of a manifest and what kind each one is."""

import functools
from collections.abc import Sequence

import numpy as np

from rrs_jax.errors import UserError


def check_kinds(samples: "Samples", benign: np.ndarray, strategy: str, which: str = "benign") -> None:
    """Raises UserError where a strategy that sets harmful against benign questions lacks one of the kinds.

    benign: bool (N,), the rows that it takes as benign; which: their name.
    """
    absent = [name for name, rows in (("harmful", samples.harmful), (which, benign)) if not rows.any()]
    if absent:
        raise UserError(
            f"training questions: {strategy} needs harmful and benign ones, and of {len(samples)} questions"
            f" none is {' and none is '.join(absent)}; add some, or choose another strategy."
        )


class Samples:
    """Rows of a training manifest, in their order.

    Attributes:
      rows: dicts with id, pair_id, label ("harmful" or "benign"), category, question, response; also role,
        prefill.
      harmful: bool (N,).
      kept: bool (N,), benign rows with the role "keep", on which the model is to stay as it is.
      mirrored: bool (N,), all other benign rows, which move against the safety vector.
      rewrites: bool (N,), mirrored rows whose pair has a harmful row.
      categories: category of each row.
    """

    def __init__(self, rows: Sequence[dict]):
        self.rows = list(rows)
        self.harmful = np.array([row["label"] == "harmful" for row in rows], bool)
        self.kept = np.array([row.get("role") == "keep" for row in rows], bool) & ~self.harmful
        self.mirrored = ~self.harmful & ~self.kept
        self.categories = [row["category"] for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    @functools.cached_property
    def rewrites(self) -> np.ndarray:
        pairs = {row["pair_id"] for row in self.rows if row["label"] == "harmful"}
        return self.mirrored & np.array([row["pair_id"] in pairs for row in self.rows], bool)

    def keeping(self, benign_target: str) -> np.ndarray:
        """Samples whose target is what the vanilla model has under the very prompt they draw, bool (N,).

        benign_target: the config's `rrs.benign_target`.
        """
        return self.kept | (self.mirrored & (benign_target == "keep"))
