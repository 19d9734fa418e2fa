"""Additions to RRS beyond the paper, one file a variant; those tried on the mini were of little use there.

A variant gives further prompts to extract, other targets, weights or a loss around RRS's (`variant.py`). The
paper's RRS has none of them. `train.text_share`, `train.audio_share` and `train.twins_together` belong to the
draws of a step (`rrs_jax.train.batches`), as do the draws of `train.kept_text_share` and
`train.kept_task_share`, whose targets are here; `data.rewrites_per_pair` belongs to the data.
"""

from rrs_jax.strategies.samples import Samples
from rrs_jax.strategies.variants.category_vectors import CategoryVectors
from rrs_jax.strategies.variants.hinge import Hinge
from rrs_jax.strategies.variants.keep import Keep
from rrs_jax.strategies.variants.own_amounts import OwnAmounts
from rrs_jax.strategies.variants.own_targets import OwnTargets
from rrs_jax.strategies.variants.positions import Positions
from rrs_jax.strategies.variants.projection import Projection
from rrs_jax.strategies.variants.read_share import ReadShare
from rrs_jax.strategies.variants.staying import Staying
from rrs_jax.strategies.variants.twin_direction import TwinDirection
from rrs_jax.strategies.variants.variant import Materials, Variant
from rrs_jax.strategies.variants.weights import Weights
from rrs_jax.strategies.variants.whitening import Whitening

__all__ = ["VARIANTS", "Materials", "Variant", "chosen_variants"]

# In the order in which their hooks are called: a loss is wrapped from the inside, positions before the hinge
# on their first, and weights last; kept samples' states are there before they go part of the way to what is
# read, and amounts are measured from there.
VARIANTS = (
    Positions, Hinge, Keep, Staying, ReadShare, CategoryVectors, TwinDirection, Whitening, Projection,
    OwnAmounts, OwnTargets, Weights,
)  # fmt: skip


def chosen_variants(samples: Samples, config) -> list[Variant]:
    """The variants that a run's config and samples ask for, none for the paper's RRS."""
    return [variant(samples, config) for variant in VARIANTS if variant.asked(samples, config)]
