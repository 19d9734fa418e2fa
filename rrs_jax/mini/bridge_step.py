"""One training step of a bridge: the encoder and the projector learn to hear what the decoder reads.

The decoder is frozen, so that it reads as before. It is its own teacher: the loss is cross-entropy on its own
answer to the written question, the divergence from the distribution that it has when it reads the question,
and what brings the state before the answer, in which RRS works, to where reading puts it (`state_losses`).
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
from rrs_jax.inputs.mel import audio_token_count, pad_features
from rrs_jax.models.batch import Batch
from rrs_jax.models.decoder_pass import DecoderInputs, Wanted
from rrs_jax.models.positions import map_positions
from rrs_jax.models.stack import compiler_options

TRAINED = ("audio_tower", "multi_modal_projector")
TEMPERATURE = 0.1  # of the contrast between cosines


@dataclasses.dataclass(frozen=True)
class Example:
    """A spoken question with a text, the same question written, and the answer that follows both.

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


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights of the two losses of `state_losses`, and the states that they compare.

    Attributes:
      every: the states behind every so many layers, besides those behind the final norm; 0 for these alone.
    """

    distance: float = 1.0
    contrast: float = 0.3
    every: int = 4


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


def is_trained(path: tuple, _) -> bool:
    """Returns whether a bridge trains the parameter: those of encoder and projector, but no positions."""
    return path[0] in TRAINED and path[-1] != "embed_positions"


class Bridge:
    """The frozen model, and the start of what is trained of it.

    Attributes:
      base: state of the frozen parameters, in the model's dtype.
      initial: state of the trained ones, `is_trained`, in float32.
    """

    def __init__(self, model: nnx.Module):
        self.graphdef, trained, self.base = nnx.split(model, is_trained, ...)
        self.dtype = model.dtype
        self.initial = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), trained)

    def model(self, base, trainable) -> nnx.Module:
        """Returns the model with these parameters, all in the model's dtype."""
        lowered = jax.tree.map(lambda leaf: leaf.astype(self.dtype), trainable)
        return nnx.merge(self.graphdef, lowered, base)

    @staticmethod
    def encode(model: nnx.Module, features: jax.Array, feature_lengths: jax.Array) -> jax.Array:
        """Returns (1 + C · frames // 4, D): a row of zeros, and the embeddings of each clip."""
        rows = model.audio_tower(features, feature_lengths, differentiable=True)
        rows = model.multi_modal_projector(rows.reshape(-1, rows.shape[-1]))
        return jnp.concatenate([jnp.zeros_like(rows[:1]), rows])

    @staticmethod
    def answer_states(
        model: nnx.Module, batch: Batch, bank: jax.Array, start: jax.Array, count: int, every: int
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the states from which the answer's tokens are predicted, and those before the answer.

        Args:
          batch: prompts, each followed by its answer.
          bank: what `encode` returns; its first row alone where the decoder reads.
          start: int32 (B,), length of each prompt.
          every: of how many layers one's states are returned, as in `LossWeights`.
        Returns:
          (B, count, D), behind the final norm, at the prompt's last token and at all answer tokens but the
          last; float32 (places, B, D), at the prompt's last token behind every `every`-th layer and, last,
          behind the final norm.
        """
        decoder = model.language_model
        x = model.embed(batch.input_ids, batch.audio_index, bank)
        # With the prompts' lengths, what is read of every layer is the prompt's last token. Causal attention
        # needs no other length.
        output = decoder(DecoderInputs(x, start), None, Wanted(each_layer=(0,)), remat="dots")
        positions = jnp.minimum(start[:, None] - 1 + jnp.arange(count)[None], x.shape[1] - 1)
        states = decoder.norm(jnp.take_along_axis(output.states, positions[..., None], axis=1))
        layers = slice(every - 1, None, every) if every else slice(0)
        ends = output.each_layer[layers, :, 0].astype(jnp.float32)
        return states, jnp.concatenate([ends, states[None, :, 0].astype(jnp.float32)])


def state_cosines(heard: jax.Array, read: jax.Array) -> jax.Array:
    """Returns the cosines (places, B, B) of each heard question's states with each read one's.

    Both (places, B, D) are standardised by the mean and the spread of the read ones.
    """
    centre = read.mean(1, keepdims=True)
    spread = read.std(1, keepdims=True) + 1e-6

    def directions(states: jax.Array) -> jax.Array:
        states = (states - centre) / spread
        return states / (jnp.linalg.norm(states, axis=-1, keepdims=True) + 1e-6)

    return jnp.einsum("lid,ljd->lij", directions(heard), directions(read))


def state_losses(heard: jax.Array, read: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns distance and contrast of the states before the answer, and the share told from all others.

    Answers hardly need what was asked in this state, since they can look back, and RRS has nothing else. The
    distance is the squared one, as a share of the spread of the read states over the batch. The contrast
    (InfoNCE, van den Oord et al. 2018) tells, by cosines of standardised states, which of the batch's read
    questions is the heard one, and the reverse; rows that differ by a word make it learn that word. Both are
    means over the places.

    Args:
      heard, read: float32 (places, B, D); `read` has no derivative.
    """
    read = jax.lax.stop_gradient(read)
    centre = read.mean(1, keepdims=True)
    distance = jnp.sum((heard - read) ** 2, (1, 2)) / jnp.sum((read - centre) ** 2, (1, 2))
    cosines = state_cosines(heard, read)
    own = jnp.arange(cosines.shape[1])

    def contrast(logits: jax.Array) -> jax.Array:
        return -jax.nn.log_softmax(logits)[:, own, own].mean()

    both = (contrast(cosines / TEMPERATURE) + contrast(cosines.swapaxes(1, 2) / TEMPERATURE)) / 2
    return distance.mean(), both, (cosines[-1].argmax(-1) == own).mean()


def loss(bridge: Bridge, trainable, base, batch: DistillationBatch, *, weights: LossWeights | None):
    """Returns loss and metrics: per answer token cross-entropy plus divergence, and `state_losses`.

    `weights` None leaves the reading decoder out: cross-entropy alone, for answers that repeat what is heard.
    """
    model = bridge.model(base, trainable)
    count = batch.answer.shape[1]
    every = weights.every if weights else 0
    bank = bridge.encode(model, batch.features, batch.feature_lengths)
    heard, heard_ends = bridge.answer_states(model, batch.spoken, bank, batch.spoken_start, count, every)
    total = batch.answer_mask.sum()

    def over_answers(values: jax.Array) -> jax.Array:
        return (values * batch.answer_mask).sum() / total

    if weights is None:
        each = map_positions(functools.partial(answer_losses, model), heard, batch.answer)
        metrics = jax.tree.map(over_answers, each)
        return metrics["cross_entropy"], metrics
    # Of zeros, since rows of the bank would carry a derivative through the decoder that reads.
    silence = jnp.zeros_like(bank[:1])
    read, read_ends = bridge.answer_states(model, batch.written, silence, batch.written_start, count, every)
    each = map_positions(functools.partial(answer_losses, model), heard, batch.answer, read)
    metrics = jax.tree.map(over_answers, each)
    distance, contrast, told = state_losses(heard_ends, read_ends)
    language = metrics["cross_entropy"] + metrics["divergence"]
    metrics |= {"distance": distance, "contrast": contrast, "told": told}
    return language + weights.distance * distance + weights.contrast * contrast, metrics


def answer_losses(
    model: nnx.Module, heard: jax.Array, answer: jax.Array, read: jax.Array | None = None
) -> dict[str, jax.Array]:
    """Returns cross-entropy, whether the likeliest token is the answer's, and the divergence, (B,) each.

    Args:
      heard, read: (B, D), states behind the final norm from which the token is predicted; without `read`
        there is no divergence.
      answer: int32 (B,), the token.
    """
    log_student = jax.nn.log_softmax(model.logits(heard))
    chosen = jnp.take_along_axis(log_student, answer[:, None], axis=-1)[:, 0]
    losses = {"cross_entropy": -chosen, "agreement": log_student.argmax(-1) == answer}
    if read is not None:
        log_teacher = jax.nn.log_softmax(model.logits(read))
        losses["divergence"] = (jnp.exp(log_teacher) * (log_teacher - log_student)).sum(-1)
    return losses


def make_step(bridge: Bridge, optimiser: optax.GradientTransformation, weights: LossWeights | None):
    """Makes the compiled `step(trainable, optimiser_state, base, batch)`, which returns the first two and
    metrics."""

    @functools.partial(jax.jit, donate_argnums=(0, 1), compiler_options=compiler_options())
    def step(trainable, optimiser_state, base, batch):
        def objective(trainable):
            return loss(bridge, trainable, base, batch, weights=weights)

        gradients, metrics = jax.grad(objective, has_aux=True)(trainable)
        updates, optimiser_state = optimiser.update(gradients, optimiser_state, trainable)
        return optax.apply_updates(trainable, updates), optimiser_state, metrics

    return step
