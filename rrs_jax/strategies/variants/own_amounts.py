"""Each question moved by an amount of its own along the safety vector (`rrs.amount=own`), after ACTOR
(arXiv 2507.04250).

û is the safety vector at length 1. A harmful question goes up to κ, the median of ⟨V, û⟩ over the vanilla
model's refused states, and one that is there already stays: V0 + û·[κ − ⟨V0, û⟩]₊. A harmless one goes down
to τ, the 95th percentile over the kept questions under t, over all harmless ones where none is kept:
V0 − û·[⟨V0, û⟩ − τ]₊. û, κ and τ are the vanilla model's in all epochs.
"""

import numpy as np

from rrs_jax.errors import UserError
from rrs_jax.strategies.variants.variant import Materials, Variant

KEPT_PERCENT = 95


class OwnAmounts(Variant):
    @classmethod
    def asked(cls, samples, config) -> bool:
        return config.rrs.amount == "own"

    def prepare(self, materials: Materials) -> None:
        """Raises UserError where the safety vector is 0."""
        arrays = {name: np.asarray(array, np.float64) for name, array in materials.arrays.items()}
        length = np.linalg.norm(arrays["safety_vector"])
        if not length:
            raise UserError(
                "rrs.amount: the safety vector is 0, so that own has no direction; give another rrs.top_m."
            )
        unit = arrays["safety_vector"] / length
        refused = np.median(arrays["harmful_refusal"] @ unit)
        answered = np.percentile(arrays.get("kept", arrays["benign"]) @ unit, KEPT_PERCENT)
        along = materials.start.astype(np.float64) @ unit
        amounts = np.maximum(np.where(self.samples.harmful, refused - along, along - answered), 0)
        materials.vectors = (amounts[:, None] * unit).astype(np.float32)
