"""Qwen-Audio-Chat in float64 NumPy: plain and slow, one function a formula.

Written from the published description (arXiv 2311.07919 for the encoder and the markers, arXiv 2309.16609 for
the decoder, dynamic NTK and log-n) and the released key names; it shares nothing with rrs_jax. A clip and a
prompt at a time, no padding. `w` is the folder's tensors by their names on disk, `c` the content of
config.json.
"""

import math

import numpy as np

ERF = np.vectorize(math.erf, otypes=[np.float64])


# Encoder


def positions_behind_convolutions(frames: int) -> int:
    """Width 3, padding 1, strides 1 and 2."""
    return (frames - 1) // 2 + 1


def vectors_of_a_clip(frames: int) -> int:
    """Pairs of positions; an odd last position is dropped."""
    return (positions_behind_convolutions(frames) - 2) // 2 + 1


def gelu(x):
    return 0.5 * x * (1 + ERF(x / math.sqrt(2)))


def convolution(x, weight, bias, stride: int):
    """x (in, frames), weight (out, in, 3): a sum of three products at each place, zeros outside."""
    x = np.pad(x, ((0, 0), (1, 1)))
    places = range(0, x.shape[1] - 2, stride)
    return np.stack([np.einsum("oik,ik->o", weight, x[:, p : p + 3]) + bias for p in places], axis=1)


def layer_norm(x, weight, bias):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def encoder_attention(w, name: str, x, heads: int):
    """Over all positions, both ways; the key projection has no bias."""
    q = x @ w[f"{name}.query.weight"].T + w[f"{name}.query.bias"]
    k = x @ w[f"{name}.key.weight"].T
    v = x @ w[f"{name}.value.weight"].T + w[f"{name}.value.bias"]
    size, out = x.shape[1] // heads, []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        out.append(softmax(q[:, part] * size**-0.25 @ (k[:, part] * size**-0.25).T) @ v[:, part])
    return np.concatenate(out, axis=1) @ w[f"{name}.out.weight"].T + w[f"{name}.out.bias"]


def encode(w, c, features, frames: int, cut_positions: int | None = None):
    """Mel (M, frames or more) of one clip to its vectors with both markers' (n + 2, D).

    `cut_positions` is the cut's place in positions behind the convolutions: the clip's own, or that of the
    longest clip of a batch, as the released code has it.
    """
    positions = positions_behind_convolutions(frames)
    x = features[:, : 2 * (cut_positions or positions)].astype(np.float64)
    name = "transformer.audio"
    x = gelu(convolution(x, w[f"{name}.conv1.weight"], w[f"{name}.conv1.bias"], 1))
    x = gelu(convolution(x, w[f"{name}.conv2.weight"], w[f"{name}.conv2.bias"], 2))
    x = x.T[:positions] + w[f"{name}.positional_embedding"][:positions]
    for layer in range(c["audio"]["n_layer"]):
        block = f"{name}.blocks.{layer}"
        h = layer_norm(x, w[f"{block}.attn_ln.weight"], w[f"{block}.attn_ln.bias"])
        x = x + encoder_attention(w, f"{block}.attn", h, c["audio"]["n_head"])
        h = layer_norm(x, w[f"{block}.mlp_ln.weight"], w[f"{block}.mlp_ln.bias"])
        h = gelu(h @ w[f"{block}.mlp.0.weight"].T + w[f"{block}.mlp.0.bias"])
        x = x + h @ w[f"{block}.mlp.2.weight"].T + w[f"{block}.mlp.2.bias"]
    pairs = np.stack([(x[2 * i] + x[2 * i + 1]) / 2 for i in range(vectors_of_a_clip(frames))])
    h = layer_norm(pairs, w[f"{name}.ln_post.weight"], w[f"{name}.ln_post.bias"])
    start, end = w[f"{name}.audio_bos_eos_token.weight"]
    return np.concatenate([start[None], h @ w[f"{name}.proj.weight"].T + w[f"{name}.proj.bias"], end[None]])


# Decoder


def embed(w, c, ids, clips):
    """Word embeddings; each span from a start to an end marker, both included, is overwritten by the next
    clip."""
    x, clips = w["transformer.wte.weight"][ids].copy(), iter(clips)
    start = c["audio"]["audio_start_id"]
    for first, last in zip(np.flatnonzero(ids == start), np.flatnonzero(ids == start + 1), strict=True):
        x[first : last + 1] = next(clips)
    return x


def rms_norm(x, weight, eps: float):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def alpha_of(c, prompt: int) -> float:
    """Dynamic NTK: 1 within the trained length, then 3 up to twice, 7 up to four times as long, ..."""
    if not c["use_dynamic_ntk"]:
        return 1.0
    return max(2 ** math.ceil(math.log2(prompt / c["seq_length"]) + 1) - 1, 1)


def rotate(c, x, position: int, alpha: float):
    """One head's vector (H,): the first half with the second."""
    size = len(x)
    base = c["rotary_emb_base"] * alpha ** (size / (size - 2))
    angles = position / base ** (np.arange(0, size, 2) / size)
    a, b = x[: size // 2], x[size // 2 :]
    return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)])


def log_n(c, position: int) -> float:
    i = position + 1
    return math.log(i, c["seq_length"]) if c["use_logn_attn"] and i > c["seq_length"] else 1.0


def decoder_attention(w, c, name: str, x, alpha: float):
    heads = c["num_attention_heads"]
    fused = x @ w[f"{name}.c_attn.weight"].T + w[f"{name}.c_attn.bias"]
    width = fused.shape[1] // 3
    q, k, v = fused[:, :width], fused[:, width : 2 * width], fused[:, 2 * width :]
    size, out = width // heads, np.zeros_like(q)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        keys = np.stack([rotate(c, row, p, alpha) for p, row in enumerate(k[:, part])])
        for p, row in enumerate(q[:, part]):
            query = rotate(c, row, p, alpha) * log_n(c, p)
            out[p, part] = softmax(keys[: p + 1] @ query / math.sqrt(size)) @ v[: p + 1, part]
    return out @ w[f"{name}.c_proj.weight"].T


def silu(x):
    return x / (1 + np.exp(-x))


def mlp(w, name: str, x):
    gated = (x @ w[f"{name}.w1.weight"].T) * silu(x @ w[f"{name}.w2.weight"].T)
    return gated @ w[f"{name}.c_proj.weight"].T


def decode(w, c, x, prompt: int | None = None):
    """Embeddings (T, D) to the states before and behind every layer, the last one normed: T rows, layers + 1
    of them.

    `prompt`: tokens of the prompt, which fix dynamic NTK's alpha; None where all are.
    """
    alpha, eps = alpha_of(c, prompt or len(x)), c["layer_norm_epsilon"]
    states = [x]
    for layer in range(c["num_hidden_layers"]):
        block = f"transformer.h.{layer}"
        x = x + decoder_attention(w, c, f"{block}.attn", rms_norm(x, w[f"{block}.ln_1.weight"], eps), alpha)
        x = x + mlp(w, f"{block}.mlp", rms_norm(x, w[f"{block}.ln_2.weight"], eps))
        states.append(x)
    states[-1] = rms_norm(x, w["transformer.ln_f.weight"], eps)
    return states


def logits(w, hidden):
    return hidden @ w["lm_head.weight"].T
