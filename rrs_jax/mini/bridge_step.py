"""One training step of the mini's bridge: the projector and LoRA learn to hear what the decoder reads.

Cross-entropy on the decoder's own answer to the written question, and the divergence from the distribution
that the decoder has when it reads the question (self-distillation); if wanted, the state before the answer too.
The encoder's outputs are computed beforehand; the decoder's base weights stay as they are.
"""

import dataclasses
import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from rrs_jax.inputs.batching import collate
from rrs_jax.models.batch import Batch
from rrs_jax.models.lora import LoRAParam
from rrs_jax.models.stack import compiler_options


@dataclasses.dataclass(frozen=True)
class Example:
    """A spoken question with an instruction, the same question written, and the answer that follows both."""

    spoken: tuple[list[int], list[int], list[int]]  # token ids, first rows and numbers of rows in the bank
    written: list[int]
    answer: list[int]


@flax.struct.dataclass
class DistillationBatch:
    spoken: Batch
    written: Batch
    answer: jax.Array  # int32 (B, A)
    answer_mask: jax.Array  # float32 (B, A)
    spoken_start: jax.Array  # int32 (B,): length of the spoken prompt
    written_start: jax.Array


def make_batch(
    examples: Sequence[Example], spoken_length: int, written_length: int, answer_length: int, audio_token_id: int
) -> DistillationBatch:
    """Both prompts followed by the answer, padded to the given lengths; answers beyond theirs are cut."""
    answers = np.zeros((len(examples), answer_length), np.int32)
    mask = np.zeros((len(examples), answer_length), np.float32)
    spoken, written = [], []
    for row, example in enumerate(examples):
        answer = example.answer[:answer_length]
        answers[row, : len(answer)], mask[row, : len(answer)] = answer, 1.0
        ids, offsets, counts = example.spoken
        spoken.append(([*ids, *answer], offsets, counts))
        written.append(([*example.written, *answer], [], []))
    return DistillationBatch(
        spoken=collate(spoken, spoken_length, audio_token_id), written=collate(written, written_length, audio_token_id),
        answer=answers, answer_mask=mask,
        spoken_start=np.array([len(e.spoken[0]) for e in examples], np.int32),
        written_start=np.array([len(e.written) for e in examples], np.int32),
    )  # fmt: skip


class Bridge:
    """What is trained, beside the frozen model: `{"projector": {"kernel", "bias"}, "lora": state or None}`, float32."""

    def __init__(self, model: nnx.Module):
        self.graphdef, lora, self.base = nnx.split(model, LoRAParam, ...)
        projector = model.multi_modal_projector
        self.initial = {
            "projector": {
                "kernel": projector.kernel[...].astype(jnp.float32), "bias": projector.bias[...].astype(jnp.float32),
            },
            "lora": lora,
        }  # fmt: skip

    def answer_states(self, base, trainable, batch: Batch, bank: jax.Array, start: jax.Array, count: int, *, bridged: bool):
        """(B, count, D) behind the final norm: of the prompt's last token, and of the answer's tokens but the last."""
        model = nnx.merge(self.graphdef, trainable["lora"], base)
        x = model.language_model.embed_tokens[...][batch.input_ids]
        if bridged:
            weights = trainable["projector"]
            audio = bank[jnp.maximum(batch.audio_index, 0)] @ weights["kernel"].astype(x.dtype) + weights["bias"].astype(x.dtype)
            x = jnp.where(batch.audio_index[..., None] >= 0, audio, x)
        adapters = model.adapters() if bridged else None
        hidden = model.language_model.hidden_states(x, batch.lengths, adapters, remat="dots")
        positions = jnp.minimum(start[:, None] - 1 + jnp.arange(count)[None], hidden.shape[1] - 1)
        return jnp.take_along_axis(hidden, positions[..., None], axis=1)

    def logits(self, base, states: jax.Array) -> jax.Array:
        return nnx.merge(self.graphdef, self.initial["lora"], base).logits(states)


def loss(
    bridge: Bridge, trainable, base, batch: DistillationBatch, bank, *, distil: bool, state_weight: float = 0.0
):  # fmt: skip
    """Mean over the answers' tokens of cross-entropy, plus the divergence from the reading decoder.

    `state_weight` adds that times the squared distance between the states in which the hearing and the reading decoder
    end the prompt, as a share of the reading one's spread over the batch: answers hardly need what was asked in this
    state, since they can look back, and RRS has nothing else.
    """
    count = batch.answer.shape[1]
    heard = bridge.answer_states(base, trainable, batch.spoken, bank, batch.spoken_start, count, bridged=True)
    log_student = jax.nn.log_softmax(bridge.logits(base, heard))
    total = batch.answer_mask.sum()
    chosen = jnp.take_along_axis(log_student, batch.answer[..., None], axis=-1)[..., 0]
    cross_entropy = -(chosen * batch.answer_mask).sum() / total
    agreement = ((log_student.argmax(-1) == batch.answer) * batch.answer_mask).sum() / total
    divergence = distance = jnp.zeros(())
    if distil:
        read = bridge.answer_states(base, trainable, batch.written, bank, batch.written_start, count, bridged=False)
        log_teacher = jax.lax.stop_gradient(jax.nn.log_softmax(bridge.logits(base, read)))
        divergence = ((jnp.exp(log_teacher) * (log_teacher - log_student)).sum(-1) * batch.answer_mask).sum() / total
        end, goal = heard[:, 0].astype(jnp.float32), jax.lax.stop_gradient(read[:, 0].astype(jnp.float32))
        distance = jnp.sum((end - goal) ** 2) / jnp.sum((goal - goal.mean(axis=0)) ** 2)
    metrics = {
        "cross_entropy": cross_entropy, "divergence": divergence, "agreement": agreement, "state_distance": distance,
    }  # fmt: skip
    return cross_entropy + divergence + state_weight * distance, metrics


def make_step(
    bridge: Bridge, optimiser: optax.GradientTransformation, *, train_lora: bool, distil: bool, state_weight: float = 0.0
):  # fmt: skip
    """`step(trainable, optimiser_state, base, batch, bank)`; without `train_lora` the decoder stays as it is."""

    @functools.partial(jax.jit, donate_argnums=(0, 1), compiler_options=compiler_options())
    def step(trainable, optimiser_state, base, batch, bank):
        def objective(trainable):
            return loss(bridge, trainable, base, batch, bank, distil=distil, state_weight=state_weight)

        gradients, metrics = jax.grad(objective, has_aux=True)(trainable)
        if not train_lora:
            gradients = gradients | {"lora": jax.tree.map(jnp.zeros_like, gradients["lora"])}
        updates, optimiser_state = optimiser.update(gradients, optimiser_state, trainable)
        return optax.apply_updates(trainable, updates), optimiser_state, metrics

    return step
