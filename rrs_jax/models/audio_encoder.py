"""Whisper-style audio encoder of Qwen2-Audio (Radford et al. 2022; Chu et al. 2024)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from rrs_jax.models.layers import LayerNorm, Linear, attention, gelu
from rrs_jax.models.stack import LayerScan, scan_layers


@dataclasses.dataclass(frozen=True)
class AudioEncoderConfig:
    """Sizes of an audio encoder, under the names of its config.json."""

    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    num_mel_bins: int
    max_source_positions: int


class Convolution(nnx.Module):
    """One-dimensional, width 3, padding 1; the kernel is (3, in, out)."""

    def __init__(self, in_features: int, out_features: int, *, stride: int, dtype):
        self.kernel = nnx.Param(jnp.zeros((3, in_features, out_features), dtype))
        self.bias = nnx.Param(jnp.zeros((out_features,), dtype))
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.lax.conv_general_dilated(
            x, self.kernel[...], (self.stride,), [(1, 1)], dimension_numbers=("NWC", "WIO", "NWC")
        )
        return y + self.bias[...]


class EncoderLayer(nnx.Module):
    """Pre-norm block: full attention over the clip's own positions, then a GELU MLP."""

    def __init__(self, config: AudioEncoderConfig, *, dtype, stack: tuple[int, ...]):
        d, f = config.d_model, config.encoder_ffn_dim
        self.num_heads = config.encoder_attention_heads
        self.self_attn_layer_norm = LayerNorm(d, dtype=dtype, stack=stack)
        self.q_proj = Linear(d, d, bias=True, dtype=dtype, stack=stack)
        self.k_proj = Linear(d, d, bias=False, dtype=dtype, stack=stack)
        self.v_proj = Linear(d, d, bias=True, dtype=dtype, stack=stack)
        self.out_proj = Linear(d, d, bias=True, dtype=dtype, stack=stack)
        self.final_layer_norm = LayerNorm(d, dtype=dtype, stack=stack)
        self.fc1 = Linear(d, f, bias=True, dtype=dtype, stack=stack)
        self.fc2 = Linear(f, d, bias=True, dtype=dtype, stack=stack)

    def __call__(self, x: jax.Array, lengths: jax.Array) -> jax.Array:
        h = self.self_attn_layer_norm(x)
        q, k, v = (
            projection(h).reshape(*h.shape[:2], self.num_heads, -1)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        x = x + self.out_proj(attention(q, k, v, causal=False, key_lengths=lengths).reshape(h.shape))
        h = gelu(self.fc1(self.final_layer_norm(x)))
        return x + self.fc2(h)


class AudioEncoder(nnx.Module):
    """Log-mel features to pooled hidden states, 25 a second.

    The released model computes 30 seconds for every clip and hides what is past the end; here only the
    frames given are computed. The numbers are the same as long as the two frames behind the clip's end,
    which the convolutions touch, hold what the padded 30-second spectrogram holds there.
    """

    def __init__(self, config: AudioEncoderConfig, *, dtype):
        self.config = config
        d = config.d_model
        self.conv1 = Convolution(config.num_mel_bins, d, stride=1, dtype=dtype)
        self.conv2 = Convolution(d, d, stride=2, dtype=dtype)
        self.embed_positions = nnx.Param(jnp.zeros((config.max_source_positions, d), dtype))
        self.layers = EncoderLayer(config, dtype=dtype, stack=(config.encoder_layers,))
        self.layer_norm = LayerNorm(d, dtype=dtype)

    def __call__(
        self, input_features: jax.Array, feature_lengths: jax.Array, *, differentiable: bool = False
    ) -> jax.Array:
        """Hidden states (C, frames // 4, d_model) of log-mel (C, bins, frames) with valid frames (C,); frames
        is a multiple of 4.

        The layers have a derivative if `differentiable`, for which each layer's input is kept and the layer
        computed again; otherwise nothing has."""
        x = jnp.swapaxes(input_features, 1, 2).astype(self.conv1.kernel.dtype)
        x = gelu(self.conv1(x))
        x = gelu(self.conv2(x))
        x = x + self.embed_positions[...][: x.shape[1]]
        lengths = (feature_lengths - 1) // 2 + 1
        graphdef, stacks = nnx.split(self.layers)

        def step(x, frozen, trained, lengths):
            return nnx.merge(graphdef, trained if differentiable else frozen)(x, lengths), None

        places = (None, stacks) if differentiable else (stacks, None)
        scan = LayerScan(step, 0, self.config.encoder_layers, remat="full")
        x, _ = scan_layers(scan, x, *places, lengths)
        clips, positions, width = x.shape
        x = x.reshape(clips, positions // 2, 2, width).mean(axis=2)
        return self.layer_norm(x)
