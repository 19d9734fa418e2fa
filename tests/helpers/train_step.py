"""Random rows for a training step, and a compiled step of a decoder with large weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rrs_jax.distributed.mesh import make_mesh
from rrs_jax.models.audio_encoder import AudioEncoderConfig
from rrs_jax.models.batch import Batch
from rrs_jax.models.decoder_layer import DecoderConfig
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.models.qwen2_audio import Qwen2Audio, Qwen2AudioConfig
from rrs_jax.strategies.rrs import RRS
from rrs_jax.train.step import OptimiserConfig, Rows, TrainStep

LAYERS, ROWS, LENGTH = 8, 2, 16


def random_rows(rng, strategy, size: int, length: int, vocabulary: int) -> Rows:
    ids = rng.integers(3, vocabulary, (size, length)).astype(np.int32)
    batch = Batch(ids, rng.integers(length // 2, length + 1, size).astype(np.int32), np.full_like(ids, -1))
    batch.audio_index[:, 1:4] = rng.integers(0, 9, (size, 3))
    return Rows(
        batch, strategy.examples(np.arange(size)), np.arange(size) % 2 == 0, np.ones(size, np.float32)
    )


@functools.cache
def compiled_step(remat: str, first_layer: int = 0, quantize: str = "none", dropout: float = 0.0):
    """A decoder whose weights are large beside its activations: 32 MB against 32 tokens."""
    text = DecoderConfig(256, 1024, LAYERS, 4, 2, 64, 512, 1e-5, 1000.0, False, quantize=quantize)
    config = Qwen2AudioConfig(AudioEncoderConfig(24, 1, 3, 40, 12, 1500), text, 500)
    mesh = make_mesh(devices=jax.devices()[:1])
    lora = LoRAConfig(rank=1, first_layer=first_layer, dropout=dropout)
    model = Qwen2Audio(config, dtype=jnp.float32, lora=lora)
    strategy = RRS(np.zeros((ROWS, 256), np.float32))
    step = TrainStep(model, strategy, OptimiserConfig(remat=remat), mesh, 1)
    rows = step.place(random_rows(np.random.default_rng(0), strategy, ROWS, LENGTH, 500))
    return step, step.lower(step.init(), jnp.zeros((9, 256)), rows).compile()
