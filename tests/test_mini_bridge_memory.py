"""What a bridge's step keeps in memory, as XLA compiles it at the width of `small`, without running it."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from rrs_jax.mini.bridge_batch import DistillationBatch
from rrs_jax.mini.bridge_step import Bridge, LossWeights, fit, make_step
from rrs_jax.mini.model_table import find_model
from rrs_jax.mini.train_bridge import ARGUMENTS
from rrs_jax.models.batch import Batch
from rrs_jax.models.kept_values import kept_bytes
from rrs_jax.models.qwen2_audio import Qwen2Audio, Qwen2AudioConfig

ROWS, HEARD, FRAMES, READ, ANSWER = 64, 176, 400, 112, 16
SIZES = find_model("small").config()
WIDTH, VOCABULARY = SIZES["text_config"]["hidden_size"], SIZES["text_config"]["vocab_size"]
ENCODER_WIDTH = SIZES["audio_config"]["d_model"]


def batch_shapes(answer: int) -> DistillationBatch:
    def ids(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    def batch(length):
        return Batch(input_ids=ids(ROWS, length), lengths=ids(ROWS), audio_index=ids(ROWS, length))

    bins = SIZES["audio_config"]["num_mel_bins"]
    return DistillationBatch(
        spoken=batch(HEARD),
        features=jax.ShapeDtypeStruct((ROWS, bins, FRAMES), jnp.float32),
        feature_lengths=ids(ROWS),
        written=batch(READ),
        answer=ids(ROWS, answer),
        answer_mask=jax.ShapeDtypeStruct((ROWS, answer), jnp.float32),
        spoken_start=ids(ROWS),
        written_start=ids(ROWS),
    )


def sizes(layers: int, encoder_layers: int = 1) -> Qwen2AudioConfig:
    text = SIZES["text_config"] | {"num_hidden_layers": layers}
    audio = SIZES["audio_config"] | {"encoder_layers": encoder_layers}
    return Qwen2AudioConfig.from_hf({"text_config": text, "audio_config": audio})


def kept(remat: str, layers: int) -> float:
    return kept_bytes(sizes(layers).text, remat, layers=layers, rows=ROWS, tokens=HEARD, item=4)


@functools.cache
def temporary_bytes(
    *, layers=2, encoder_layers=1, answer=ANSWER, weights=None, remat="dots", room=1.0
) -> int:
    """Returns the temporary memory of the step in float32, of a model with so many layers, where there is
    just room for this share of what `remat` keeps."""
    config, made = sizes(layers, encoder_layers), []

    def shapes():
        made.append(bridge := Bridge(Qwen2Audio(config, dtype=jnp.float32)))
        return bridge.initial, bridge.base

    initial, base = jax.eval_shape(shapes)
    optimiser = optax.adam(1e-3)
    state = jax.eval_shape(optimiser.init, initial)
    step = make_step(made[0], optimiser, weights, room * kept(remat, layers))
    compiled = step.lower(initial, state, base, batch_shapes(answer)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_no_logits_of_all_answer_tokens_exist():
    longer = temporary_bytes(answer=2 * ANSWER, weights=LossWeights())
    logits = ROWS * ANSWER * VOCABULARY * 4
    assert longer - temporary_bytes(weights=LossWeights()) < 0.1 * logits


def test_an_encoder_layer_keeps_its_input():
    states = ROWS * FRAMES // 2 * ENCODER_WIDTH * 4
    more = temporary_bytes(encoder_layers=3) - temporary_bytes()
    assert more < 1.5 * 2 * states


def test_the_decoder_that_reads_keeps_nothing():
    heard = temporary_bytes(layers=4) - temporary_bytes()
    both = temporary_bytes(layers=4, weights=LossWeights()) - temporary_bytes(weights=LossWeights())
    assert both == pytest.approx(heard, rel=0.02)


def test_rows_to_be_repeated_come_in_parts_that_there_is_room_for():
    """Of half of the rows half is kept, and nothing is computed again."""
    whole = temporary_bytes(layers=6) - temporary_bytes()
    assert temporary_bytes(layers=6, room=0.5) - temporary_bytes(room=0.5) < 0.55 * whole


@pytest.mark.parametrize("remat", ["dots", "gate", "lean"])
def test_the_decoder_keeps_what_there_is_room_for(remat):
    taken = temporary_bytes(layers=6, weights=LossWeights(), remat=remat)
    taken -= temporary_bytes(weights=LossWeights(), remat=remat)
    assert 0.5 < taken / (kept(remat, 6) - kept(remat, 2)) <= 1


@pytest.mark.parametrize(
    "heard, apart, ways",
    [
        (272, False, (1, "lean")),
        (176, False, (1, "gate")),
        (272, True, (4, "dots")),
        (176, True, (2, "dots")),
    ],
)
def test_what_the_default_keeps_of_128_rows_of_small_on_a_gpu(heard, apart, ways, monkeypatch):
    """In bfloat16, where attention keeps no scores: of 128 rows of which 20 tokens are computed once."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    ids = jax.ShapeDtypeStruct((128, heard), jnp.int32)
    spoken = Batch(input_ids=ids, lengths=ids, audio_index=ids)
    batch = batch_shapes(ANSWER).replace(spoken=spoken, prefixes=(20, 14))
    text, memory = (
        Qwen2AudioConfig.from_hf(SIZES).text,
        {flag: default for flag, _, default, _ in ARGUMENTS}["--memory"] * 2**30,
    )
    assert fit(text, batch, 2, memory, apart=apart) == ways
