"""A model with 8-bit matrices and random adapters."""

import jax
import jax.numpy as jnp
import numpy as np

from rrs_jax.distributed.mesh import make_mesh
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.weights.load import load_weights

LORA = LoRAConfig(rank=3, alpha=5.0, targets=("q_proj", "v_proj", "up_proj", "down_proj"), first_layer=1)


def load(folder, quantize: str, lora=LORA):
    """Loads the model onto one device; both LoRA matrices are random."""
    model = load_weights(folder, lora=lora, mesh=make_mesh(devices=jax.devices()[:1]), quantize=quantize)
    rng = np.random.default_rng(1)
    for target in lora.targets if lora else ():
        pair = model.lora.pair(target)
        for parameter in (pair.lora_a, pair.lora_b):
            parameter.set_value(jnp.asarray(rng.normal(size=parameter.shape) * 0.1, jnp.float32))
    return model
