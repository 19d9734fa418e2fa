"""The next token from logits, as transformers' `generate` chooses it."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """`greedy` takes the likeliest token; otherwise repetition penalty, temperature, top-k and top-p act in
    this order, as in transformers. `top_k` 0 and `top_p` 1 switch a filter off."""

    max_new_tokens: int = 256
    greedy: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    @classmethod
    def from_generation_config(cls, values: dict, **overrides) -> "SamplingConfig":
        """From a folder's generation_config.json; an override of None leaves the folder's value.

        Greedy decoding asked for by an override also drops the folder's repetition penalty, which
        transformers would keep and which makes greedy answers depend on the prompt's words.
        """
        names = [field.name for field in dataclasses.fields(cls) if field.name != "greedy"]
        merged = {name: values[name] for name in names if values.get(name) is not None}
        merged["greedy"] = not values.get("do_sample", False)
        overrides = {name: value for name, value in overrides.items() if value is not None}
        if overrides.get("greedy") and "repetition_penalty" not in overrides:
            merged["repetition_penalty"] = 1.0
        return cls(**(merged | overrides))


def next_tokens(logits: jax.Array, seen: jax.Array, keys: jax.Array, config: SamplingConfig) -> jax.Array:
    """(B, V) float32 logits to (B,) int32 tokens.

    `seen` (B, V) marks the tokens of the prompt and of the answer so far; `keys` (B,) are random keys, one a
    row, so that a row's answer does not depend on its neighbours.
    """
    if config.repetition_penalty != 1.0:
        penalised = jnp.where(logits > 0, logits / config.repetition_penalty, logits * config.repetition_penalty)
        logits = jnp.where(seen, penalised, logits)
    if config.greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / config.temperature
    if not config.top_k and config.top_p >= 1.0:
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
    values, tokens = jax.lax.top_k(logits, min(config.top_k or logits.shape[-1], logits.shape[-1]))
    probabilities = jax.nn.softmax(values, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    values = jnp.where(before < config.top_p, values, -jnp.inf)
    choice = jax.vmap(jax.random.categorical)(keys, values)
    return jnp.take_along_axis(tokens, choice[:, None], axis=-1)[:, 0].astype(jnp.int32)
