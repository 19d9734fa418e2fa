"""Memory of what a decoder's layers keep for the backward pass."""

import jax

# Elements a token and layer that wait for the backward pass, as multiples of (hidden, mlp) width; fitted to
# the temporary memory of compiled 7 B steps: 14.3, 6.1 and 1.1 GiB at 2,304 tokens.
SAVED = {"none": (15, 4), "dots": (6, 2), "gate": (6, 1), "lean": (6, 0), "full": (2, 0)}


def kept_bytes(text, remat: str, *, layers: int, rows: int, tokens: int, item: int) -> float:
    """Bytes that `rows` of so many tokens, with numbers of `item` bytes, keep in `layers` layers of a decoder
    of the sizes `text` for the backward pass."""
    hidden, mlp = SAVED[remat]
    saved = layers * (hidden * text.hidden_size + mlp * text.intermediate_size)
    if remat in ("gate", "lean"):  # and one layer's gate and up at a time computed again
        saved += (SAVED["dots"][1] - mlp) * text.intermediate_size
    if remat == "full":  # and one layer at a time computed again
        saved += SAVED["none"][0] * text.hidden_size + SAVED["none"][1] * text.intermediate_size
    activations = rows * tokens * saved * item
    if (
        jax.default_backend() != "gpu" or item == 4
    ):  # no flash attention: scores and weights are whole matrices
        scores = 2 * rows * text.num_attention_heads * tokens**2 * 4
        activations += scores * (layers if remat == "none" else 1)
    return activations
