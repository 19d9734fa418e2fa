"""The next token from logits, as transformers' `generate` chooses it."""

import dataclasses

import jax
import jax.numpy as jnp

# Widths in which the vocabulary, and then its best chunks, are searched for large logits.
CHUNK, PART = 128, 16
SPARE = 12  # candidates beyond top_k, for logits that are exactly equal
TOP_P_CANDIDATES = 128  # where top_k does not say how many tokens can be kept


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
        """Settings of a folder's generation_config.json; an override of None leaves the folder's value.

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
    """The next token of each row, int32 (B,), from float32 logits (B, V).

    `seen` (B, V) marks the tokens of the prompt and of the answer so far; `keys` (B,) are random keys, one a
    row, so that a row's answer does not depend on its neighbours.
    """
    logits = penalised(logits, seen, config)
    if config.greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / config.temperature
    if not config.top_k and config.top_p >= 1.0:
        return _draw(keys, logits)
    values, tokens, complete = candidates(logits, config)
    chosen = _pick(keys, values, tokens)
    if complete is None:
        return chosen

    def from_all(_):
        """Draws from the whole vocabulary where more tokens may be kept than there are candidates; what the
        other rows drew does not change."""
        return jnp.where(complete, chosen, _pick(keys, *_filtered(*_sorted(logits), logits, config)))

    return jax.lax.cond(jnp.all(complete), lambda _: chosen, from_all, None)


def penalised(logits: jax.Array, seen: jax.Array, config: SamplingConfig) -> jax.Array:
    """Logits (B, V), those of tokens `seen` (B, V) lowered by the repetition penalty."""
    if config.repetition_penalty == 1.0:
        return logits
    lowered = jnp.where(logits > 0, logits / config.repetition_penalty, logits * config.repetition_penalty)
    return jnp.where(seen, lowered, logits)


def candidates(logits: jax.Array, config: SamplingConfig) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """The largest logits of each row, their tokens, and which rows are complete.

    Returns (B, count) logits, falling, those that top-k and top-p drop as -inf; int32 (B, count) tokens; and
    bool (B,), rows that have no further token that would be kept (None: all rows).

    A vocabulary is not sorted for this: the `count` chunks with the largest maxima hold the `count` largest
    logits, and so do the `count` best parts of these chunks.
    """
    count = (config.top_k or TOP_P_CANDIDATES) + SPARE
    if logits.shape[-1] < 2 * count * CHUNK:
        values, tokens = _sorted(logits)
        return *_filtered(values, tokens, logits, config), None
    chunks, first = _best(*_chunks(logits), count)
    parts, second = _best(
        chunks[0].reshape(-1, count * CHUNK // PART, PART),
        chunks[1].reshape(-1, count * CHUNK // PART, PART),
        count,
    )
    values, places = jax.lax.top_k(parts[0].reshape(-1, count * PART), count)
    tokens = jnp.take_along_axis(parts[1].reshape(-1, count * PART), places, axis=-1)
    kept, tokens = _filtered(values, tokens, logits, config)
    # Top-p needs everything that top-k keeps, since that adds up to 1; by itself it knows the sum of all.
    least = (
        values[:, config.top_k - 1]
        if config.top_k
        else jnp.min(jnp.where(jnp.isfinite(kept), kept, jnp.inf), axis=-1)
    )
    return kept, tokens, (first < least) & (second < least) & (values[:, -1] < least)


def _filtered(values: jax.Array, tokens: jax.Array, logits: jax.Array, config: SamplingConfig):
    """Falling logits with those that top-k and top-p drop as -inf, and their tokens.

    Top-k keeps everything that is not below the k-th largest. Top-p drops, from the smallest on, what makes
    up 1 - p together; the largest logit always stays. Of equal logits at that border as many stay as in
    transformers, where it depends on torch's sorting which ones; here it is the first tokens.
    """
    if config.top_k and config.top_k < logits.shape[-1]:
        values = jnp.where(values >= values[:, config.top_k - 1 : config.top_k], values, -jnp.inf)
        logits = values
    if config.top_p < 1.0:
        shares = jnp.exp(values - jax.nn.logsumexp(logits, axis=-1, keepdims=True))
        if values.shape == logits.shape:  # the whole row: summed up from the smallest, as transformers does
            dropped = jnp.cumsum(shares[:, ::-1], axis=-1)[:, ::-1] <= jnp.float32(1 - config.top_p)
        else:
            dropped = jnp.cumsum(shares, axis=-1) - shares >= jnp.float32(config.top_p)
        values = jnp.where(dropped.at[:, 0].set(False), -jnp.inf, values)
    return values, tokens


def _sorted(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits of each row, falling, and their tokens."""
    return jax.lax.top_k(logits, logits.shape[-1])


def _chunks(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits (B, V) cut into (B, chunks, CHUNK), filled up with -inf; and the places, (1, chunks, CHUNK)."""
    filled = jnp.pad(logits, [(0, 0), (0, -logits.shape[-1] % CHUNK)], constant_values=-jnp.inf)
    return filled.reshape(len(logits), -1, CHUNK), jnp.arange(filled.shape[-1]).reshape(1, -1, CHUNK)


def _best(values: jax.Array, places: jax.Array, count: int):
    """The `count` chunks (B, count, width) with the largest maxima, with their places; and the least of these
    maxima (B,)."""
    maxima, chosen = jax.lax.top_k(jnp.max(values, axis=-1), count)
    chosen = chosen[..., None]
    places = jnp.broadcast_to(places, values.shape)
    return tuple(jnp.take_along_axis(x, chosen, axis=1) for x in (values, places)), maxima[:, -1]


def _draw(keys: jax.Array, logits: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def _pick(keys: jax.Array, values: jax.Array, tokens: jax.Array) -> jax.Array:
    return jnp.take_along_axis(tokens, _draw(keys, values)[:, None], axis=-1)[:, 0].astype(jnp.int32)
