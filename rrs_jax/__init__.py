"""RRS-JAX: reshaping the representation space of audio language models (Yang et al. 2025) in JAX and Flax.

import rrs_jax
model = rrs_jax.load_model(path, dtype="float32")
batch = rrs_jax.make_batch(model, questions, prompt)
reps = rrs_jax.extract_reps(model, batch)                 # (B, D) float32
vector = rrs_jax.safety_vector(harmful_refusal, benign, model.head_row("I"), top_m=51)
"""

__version__ = "0.1.0"
_EXPORTS = ("LoadedModel", "PreparedBatch", "extract_reps", "load_model", "make_batch", "safety_vector")
__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str):
    if name in _EXPORTS:  # JAX takes seconds to import, a config error should not
        from rrs_jax import api

        return getattr(api, name)
    raise AttributeError(f"module 'rrs_jax' has no attribute {name!r}")
