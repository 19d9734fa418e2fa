"""Parts that the benchmarks share: sizes of models, lengths of clips and prompts, timing, and the arithmetic
of floors.

Nothing here starts a device: each framework has its own in a process of its own.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterable

import numpy as np

from rrs_jax.inputs.mel import audio_token_count, feature_length
from rrs_jax.mini.model_table import MODELS
from rrs_jax.models.released import RELEASED

GIB = 2**30
SAMPLE_RATE = 16_000
AUDIO_TOKENS, AUDIO_START = 80, 16  # of a prompt of fixed length: a clip of 3.2 seconds, and where it begins
AUDIO_FRAMES = 4 * AUDIO_TOKENS

# Seconds of the starter set's spoken questions at 0, 5, …, 100 % (1,131 clips of the library's own voices,
# mean 2.68).
CLIP_SECONDS = (
    1.60,
    2.02,
    2.14,
    2.21,
    2.28,
    2.35,
    2.40,
    2.46,
    2.50,
    2.56,
    2.61,
    2.65,
    2.70,
    2.75,
    2.82,
    2.88,
    2.98,
    3.08,
    3.24,
    3.45,
    5.88,
)

SMALL = {
    "model_type": "qwen2_audio",
    "audio_token_index": 8000,
    "audio_config": {
        "d_model": 256,
        "encoder_layers": 4,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 1024,
        "num_mel_bins": 80,
    },
    "text_config": {
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "vocab_size": 8192,
        "tie_word_embeddings": False,
    },
}
TINY = SMALL | {
    "audio_config": {
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "num_mel_bins": 80,
    },
    "text_config": {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 8192,
        "tie_word_embeddings": False,
    },
}
SIZES = RELEASED | {"mini": MODELS["mini"].config(), "small": SMALL, "tiny": TINY}
CPU_SIZES = ("small", "tiny")  # the mini counts as one where there is no GPU
MATRIX_UNITS = {
    "H100": 989e12,
    "H200": 989e12,
}  # by a part of the name: 16-bit FLOP a second as the maker states them


class Clock:
    """`now()` in seconds: of the wall, or of the processor's work for this process, which others' work does
    not touch."""

    now = staticmethod(time.perf_counter)

    @classmethod
    def choose(cls, name: str) -> None:
        cls.now = staticmethod({"wall": time.perf_counter, "cpu": time.process_time}[name])


def report(**line: object) -> None:
    print(json.dumps(line), flush=True)


def with_unroll(name: str) -> tuple[str, bool]:
    """A name of `train.remat`, or `extract`, and whether +unroll stands behind it, which is
    `train.unroll`."""
    return name.removesuffix("+unroll"), name.endswith("+unroll")


def clip_seconds(count: int, seed: int = 0) -> np.ndarray:
    """(count,) lengths spread over the starter set's distribution, in random order."""
    places = (np.arange(count) + 0.5) / count
    seconds = np.interp(places, np.linspace(0, 1, len(CLIP_SECONDS)), CLIP_SECONDS)
    return np.random.default_rng(seed).permutation(seconds)


def clip_frames(seconds: Iterable[float]) -> list[int]:
    """Mel frames that count of each clip."""
    return [feature_length(int(s * SAMPLE_RATE)) for s in seconds]


def noise(seconds: float, seed: int) -> np.ndarray:
    """float32 waveform at 16 kHz."""
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(int(seconds * SAMPLE_RATE))).astype(np.float32)


def median_seconds(
    dispatch: Callable[[], object], wait: Callable[[object], object], steps: int, groups: int = 3
) -> float:
    """Seconds of one call: the median over groups of `steps` calls that are dispatched one behind the other
    and waited for together. Two calls go before."""
    for _ in range(2):
        wait(dispatch())
    times = []
    for _ in range(groups):
        start = Clock.now()
        for _ in range(steps):
            last = dispatch()
        wait(last)
        times.append((Clock.now() - start) / steps)
    return statistics.median(times)


# Arithmetic. Matrix products with weights alone are counted: attention's own products, norms, sampling and
# the optimiser are not, so that no way of computing the same thing has a lower floor.


def decoder_weights(text) -> int:
    """Numbers in the matrices of all decoder layers; `text` is a `DecoderConfig`."""
    return text.num_hidden_layers * sum(rows * columns for rows, columns in text.linears().values())


def adapter_weights(text, rank: int) -> int:
    return text.num_hidden_layers * sum(
        rank * (rows + columns) for rows, columns in text.adapted_linears().values()
    )


def forward_flops(text, tokens: float) -> float:
    return 2.0 * decoder_weights(text) * tokens


def step_flops(text, tokens: float, rank: int) -> float:
    """Forward, and backward through frozen matrices; adapters have gradients of their own on top."""
    return (4.0 * decoder_weights(text) + 6.0 * adapter_weights(text, rank)) * tokens


def encoder_flops(audio, width: int, frames: Iterable[int]) -> float:
    """Operations of clips with these counting frames, not padded; `audio` is an `AudioEncoderConfig`, `width`
    the decoder's."""
    total = 0.0
    d, f = audio.d_model, audio.encoder_ffn_dim
    for m in frames:
        positions, tokens = (m - 1) // 2 + 1, audio_token_count(m)
        convolutions = 3 * d * (audio.num_mel_bins * m + d * positions)
        layers = audio.encoder_layers * (4 * d * d + 2 * d * f) * positions
        total += 2.0 * (convolutions + layers + d * width * tokens)
    return total
