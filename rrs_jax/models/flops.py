"""Arithmetic of the models by layer and position, which decides lengths of batches and estimates."""

import jax

# Operations for which there would have been time while one program is traced, lowered and compiled: about 3 s
# at 330 TFLOP/s on an H100, 0.5 s at 0.1 TFLOP/s on two CPU cores.
PROGRAM_FLOPS = {"gpu": 1e15, "cpu": 5e10}


def decoder_flops(text, layers: int | None = None) -> float:
    """Floating-point operations of one token in the decoder's matrices, or in those of so many `layers`."""
    layer = sum(rows * columns for rows, columns in text.linears().values())
    return 2 * layer * (text.num_hidden_layers if layers is None else layers)


def encoder_flops(audio) -> float:
    """Floating-point operations of one position in the encoder's matrices; a position is two mel frames."""
    return 2 * audio.encoder_layers * (4 * audio.d_model**2 + 2 * audio.d_model * audio.encoder_ffn_dim)


def state_size(text, kept_layers: int = 0) -> int:
    """Count of the numbers in one token's hidden state and its keys and values in so many layers."""
    return text.hidden_size + 2 * kept_layers * text.num_key_value_heads * text.head_dim


def program_price(flops: float, devices: int = 1) -> float:
    """Positions that `devices` could have worked on while a program is compiled; `flops`: of one position, 0
    where an encoder has no layers."""
    return PROGRAM_FLOPS.get(jax.default_backend(), PROGRAM_FLOPS["gpu"]) * devices / max(flops, 1.0)
