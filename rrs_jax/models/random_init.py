"""Random weights for tests and benchmarks, made on the device in the parameters' own shardings."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from rrs_jax.distributed.mesh import parameter_sharding
from rrs_jax.models.lora import LoRAParam


def random_model(build, *, seed: int = 0, mesh: Mesh | None = None) -> nnx.Module:
    """`build()` gives the module; frozen matrices become normal with std 1/sqrt(in), vectors normal around
    their own initial value, LoRA as PEFT starts it."""
    model = nnx.eval_shape(build)
    graphdef, lora, state = nnx.split(model, LoRAParam, ...)
    flat = []
    for index, (path, leaf) in enumerate(nnx.to_flat_state(state)):
        name = ".".join(map(str, path))
        sharding = parameter_sharding(mesh, name, leaf.shape) if mesh else None
        make = jax.jit(_random, static_argnums=(1, 2, 3), out_shardings=sharding)
        flat.append(
            (
                path,
                leaf.replace(
                    make(jax.random.fold_in(jax.random.key(seed), index), name, leaf.shape, leaf.dtype)
                ),
            )
        )
    zeros = [
        (path, leaf.replace(jnp.zeros(leaf.shape, leaf.dtype))) for path, leaf in nnx.to_flat_state(lora)
    ]
    model = nnx.merge(graphdef, nnx.from_flat_state(zeros), nnx.from_flat_state(flat))
    if getattr(model, "lora", None) is not None:
        model.lora.initialise(jax.random.key(seed))
    return model


def _random(key: jax.Array, name: str, shape: tuple[int, ...], dtype) -> jax.Array:
    if dtype == jnp.int8:
        return jax.random.randint(key, shape, -127, 128, jnp.int8)
    if dtype == jnp.float8_e4m3fn:
        return jax.random.uniform(key, shape, jnp.bfloat16, -127, 127).astype(dtype)
    sample = jax.random.normal(key, shape, dtype)
    if name.endswith("kernel"):
        return sample * shape[-2] ** -0.5
    if name.endswith(("embed_tokens", "lm_head")):
        return sample * shape[-1] ** -0.5
    if name.endswith("scale"):  # of 8-bit matrices: their own scale is that of a width of 4096
        return jnp.full(shape, 3**0.5 / 127 / 64, dtype)
    return sample * 0.1 + (1.0 if name.endswith("norm.weight") else 0.0)
