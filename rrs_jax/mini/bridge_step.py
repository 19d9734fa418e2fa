"""One training step of the mini's bridge: projector and LoRA learn to hear what the decoder reads.

The loss is cross-entropy on the decoder's own answer to the written question, the divergence from the
distribution that the decoder has when it reads the question (self-distillation), and the distance of the
states before the answer. The base's weights stay as they are.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from rrs_jax.inputs.batching import collate
from rrs_jax.inputs.mel import audio_token_count, pad_features
from rrs_jax.models.batch import Batch
from rrs_jax.models.decoder_pass import DecoderInputs
from rrs_jax.models.lora import LoRAConfig, LoRAParam
from rrs_jax.models.stack import compiler_options

ENCODER_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@dataclasses.dataclass(frozen=True)
class Example:
    """A spoken question with an instruction, the same question written, and the answer that follows both.

    `clip` is the one clip of `spoken`, as `log_mel` returns it.
    """

    spoken: list[int]
    clip: tuple[np.ndarray, int]
    written: list[int]
    answer: list[int]


@flax.struct.dataclass
class DistillationBatch:
    """A batch of `Example`s on the device."""

    spoken: Batch
    features: jax.Array  # (B, bins, frames)
    feature_lengths: jax.Array  # int32 (B,)
    written: Batch
    answer: jax.Array  # int32 (B, A)
    answer_mask: jax.Array  # float32 (B, A)
    spoken_start: jax.Array  # int32 (B,): length of the spoken prompt
    written_start: jax.Array


def make_batch(
    examples: Sequence[Example],
    *,
    spoken_length: int,
    frames: int,
    written_length: int,
    answer_length: int,
    audio_token_id: int,
) -> DistillationBatch:
    """Pads both prompts, each followed by the answer, to the given lengths.

    Answers beyond `answer_length` are cut.
    """
    answers = np.zeros((len(examples), answer_length), np.int32)
    mask = np.zeros((len(examples), answer_length), np.float32)
    spoken, written = [], []
    for row, example in enumerate(examples):
        answer = example.answer[:answer_length]
        answers[row, : len(answer)], mask[row, : len(answer)] = answer, 1.0
        # `Bridge.encode` puts the clips one behind the other, each in its whole bucket, behind a row for
        # none.
        spoken.append(
            ([*example.spoken, *answer], [1 + row * (frames // 4)], [audio_token_count(example.clip[1])])
        )
        written.append(([*example.written, *answer], [], []))
    features, feature_lengths = pad_features([example.clip for example in examples], frames)
    return DistillationBatch(
        spoken=collate(spoken, spoken_length, audio_token_id),
        features=features,
        feature_lengths=feature_lengths,
        written=collate(written, written_length, audio_token_id),
        answer=answers,
        answer_mask=mask,
        spoken_start=np.array([len(e.spoken) for e in examples], np.int32),
        written_start=np.array([len(e.written) for e in examples], np.int32),
    )


class Bridge:
    """The frozen model and the start of what is trained beside it, in float32.

    initial: `{"projector": {"kernel", "bias"}, "encoder": {target: {"lora_a", "lora_b"}}, "lora": the
    decoder's state}`; the encoder's pairs are stacked over its layers, (L, in, R) and (L, R, out), and begin
    as the decoder's do.
    """

    def __init__(self, model: nnx.Module, lora: LoRAConfig, seed: int = 0):
        self.graphdef, decoder, self.base = nnx.split(model, LoRAParam, ...)
        self.scale = lora.scale
        projector = model.multi_modal_projector
        encoder = {}
        for i, target in enumerate(ENCODER_TARGETS):
            layers, width, height = getattr(model.audio_tower.layers, target).kernel.shape
            bound = 1.0 / math.sqrt(width)
            key = jax.random.fold_in(jax.random.key(seed), i)
            encoder[target] = {
                "lora_a": jax.random.uniform(key, (layers, width, lora.rank), jnp.float32, -bound, bound),
                "lora_b": jnp.zeros((layers, lora.rank, height), jnp.float32),
            }
        self.initial = {
            "projector": {
                "kernel": projector.kernel[...].astype(jnp.float32),
                "bias": projector.bias[...].astype(jnp.float32),
            },
            "encoder": encoder,
            "lora": decoder,
        }

    def encode(self, base, trainable, features: jax.Array, feature_lengths: jax.Array) -> jax.Array:
        """Returns (1 + C · frames // 4, d_model): a row of zeros, and the encoder's output of each clip."""
        parameters = dict(nnx.to_flat_state(base))
        for target, pair in trainable["encoder"].items():
            path = ("audio_tower", "layers", target, "kernel")
            kernel = parameters[path]
            added = jnp.einsum("lir,lro->lio", pair["lora_a"], pair["lora_b"]) * self.scale
            parameters[path] = kernel.replace((kernel[...].astype(jnp.float32) + added).astype(kernel.dtype))
        model = nnx.merge(self.graphdef, self.initial["lora"], nnx.from_flat_state(parameters))
        rows = model.audio_tower(features, feature_lengths, differentiable=True)
        rows = rows.reshape(-1, rows.shape[-1])
        return jnp.concatenate([jnp.zeros_like(rows[:1]), rows])

    def answer_states(
        self, base, trainable, batch: Batch, bank: jax.Array | None, start: jax.Array, count: int
    ):
        """Returns the states behind the final norm (B, count, D) from which the answer's tokens are
        predicted.

        They are those of the prompt's last token and of all answer tokens but the last. `bank` is what
        `encode` returns; without it the decoder reads, as it is without the bridge.
        """
        model = nnx.merge(self.graphdef, trainable["lora"], base)
        x = model.language_model.embed_tokens[...][batch.input_ids]
        if bank is not None:
            weights = trainable["projector"]
            audio = bank[jnp.maximum(batch.audio_index, 0)] @ weights["kernel"].astype(x.dtype) + weights[
                "bias"
            ].astype(x.dtype)
            x = jnp.where(batch.audio_index[..., None] >= 0, audio, x)
        adapters = None if bank is None else model.adapters()
        decoder = model.language_model
        hidden = decoder.norm(decoder(DecoderInputs(x, batch.lengths), adapters, remat="dots").states)
        positions = jnp.minimum(start[:, None] - 1 + jnp.arange(count)[None], hidden.shape[1] - 1)
        return jnp.take_along_axis(hidden, positions[..., None], axis=1)

    def logits(self, base, states: jax.Array) -> jax.Array:
        """Returns the logits of states."""
        return nnx.merge(self.graphdef, self.initial["lora"], base).logits(states)


def loss(bridge: Bridge, trainable, base, batch: DistillationBatch, *, distil: bool, state_weight: float):
    """Returns loss and metrics: per answer token cross-entropy plus divergence from the reading decoder.

    `state_weight` adds that times the squared distance between the states in which the hearing and the
    reading decoder end the prompt, as a share of the reading one's spread over the batch: answers hardly need
    what was asked in this state, since they can look back, and RRS has nothing else.
    """
    count = batch.answer.shape[1]
    bank = bridge.encode(base, trainable, batch.features, batch.feature_lengths)
    heard = bridge.answer_states(base, trainable, batch.spoken, bank, batch.spoken_start, count)
    log_student = jax.nn.log_softmax(bridge.logits(base, heard))
    total = batch.answer_mask.sum()
    chosen = jnp.take_along_axis(log_student, batch.answer[..., None], axis=-1)[..., 0]
    cross_entropy = -(chosen * batch.answer_mask).sum() / total
    agreement = ((log_student.argmax(-1) == batch.answer) * batch.answer_mask).sum() / total
    divergence = distance = jnp.zeros(())
    if distil:
        read = bridge.answer_states(base, trainable, batch.written, None, batch.written_start, count)
        log_teacher = jax.lax.stop_gradient(jax.nn.log_softmax(bridge.logits(base, read)))
        divergence = (
            (jnp.exp(log_teacher) * (log_teacher - log_student)).sum(-1) * batch.answer_mask
        ).sum() / total
        end, goal = heard[:, 0].astype(jnp.float32), jax.lax.stop_gradient(read[:, 0].astype(jnp.float32))
        distance = jnp.sum((end - goal) ** 2) / jnp.sum((goal - goal.mean(axis=0)) ** 2)
    metrics = {
        "cross_entropy": cross_entropy,
        "divergence": divergence,
        "agreement": agreement,
        "state_distance": distance,
    }
    return cross_entropy + divergence + state_weight * distance, metrics


def make_step(bridge: Bridge, optimiser: optax.GradientTransformation, *, distil: bool, state_weight: float):
    """Makes the compiled `step(trainable, optimiser_state, base, batch, rate, decoder)`.

    With `decoder` 0 in place of 1 the decoder's LoRA stays as it is.
    """

    @functools.partial(jax.jit, donate_argnums=(0, 1), compiler_options=compiler_options())
    def step(trainable, optimiser_state, base, batch, rate, decoder):
        def objective(trainable):
            return loss(bridge, trainable, base, batch, distil=distil, state_weight=state_weight)

        gradients, metrics = jax.grad(objective, has_aux=True)(trainable)
        gradients = gradients | {"lora": jax.tree.map(lambda gradient: gradient * decoder, gradients["lora"])}
        updates, optimiser_state = optimiser.update(gradients, optimiser_state, trainable)
        updates = jax.tree.map(lambda update: -rate * update, updates)
        return optax.apply_updates(trainable, updates), optimiser_state, metrics

    return step
