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
from rrs_jax.mini.bridge_losses import answer_losses, state_losses
from rrs_jax.models.batch import Batch
from rrs_jax.models.cache import KeysValues
from rrs_jax.models.decoder_layer import DecoderConfig
from rrs_jax.models.decoder_pass import DecoderInputs, Wanted
from rrs_jax.models.positions import map_positions
from rrs_jax.models.stack import compiler_options
from rrs_jax.train.memory import kept_bytes

TRAINED = ("audio_tower", "multi_modal_projector")
REMATS = ("dots", "gate", "lean")  # the fastest first


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
    """A batch of `Example`s on the device.

    Attributes:
      prefixes: with how many tokens all spoken prompts begin alike, before any clip, and all written ones;
        the latter are the former's first. They are computed for one row, since nothing of them is learnt.
    """

    spoken: Batch
    features: jax.Array  # (B, bins, frames)
    feature_lengths: jax.Array  # int32 (B,)
    written: Batch
    answer: jax.Array  # int32 (B, A)
    answer_mask: jax.Array  # float32 (B, A)
    spoken_start: jax.Array  # int32 (B,): length of the spoken prompt
    written_start: jax.Array
    prefixes: tuple[int, int] = flax.struct.field(pytree_node=False, default=(0, 0))


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
    prefixes: tuple[int, int] = (0, 0),
) -> DistillationBatch:
    """Pads both prompts, each followed by the answer, to the given lengths.

    Answers beyond `answer_length` are cut. Raises ValueError where not all prompts begin alike with so many
    tokens as `DistillationBatch.prefixes` says, before the clip.
    """
    spoken_prefix = examples[0].spoken[: prefixes[0]]
    written_prefix = spoken_prefix[: prefixes[1]]
    if audio_token_id in spoken_prefix or not all(
        example.spoken[: prefixes[0]] == spoken_prefix and example.written[: prefixes[1]] == written_prefix
        for example in examples
    ):
        raise ValueError(f"not all prompts begin with the same {prefixes} tokens, before the clip")
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
        prefixes=prefixes,
    )


def is_trained(path: tuple, _) -> bool:
    """Returns whether a bridge trains the parameter: those of encoder and projector, but no positions."""
    return path[0] in TRAINED and path[-1] != "embed_positions"


class Bridge:
    """The frozen model, and the start of what is trained of it.

    Attributes:
      base: state of the frozen parameters, in the model's dtype.
      initial: state of the trained ones, `is_trained`, in float32.
      text: sizes of the decoder.
    """

    def __init__(self, model: nnx.Module):
        self.graphdef, trained, self.base = nnx.split(model, is_trained, ...)
        self.dtype, self.text = model.dtype, model.config.text
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
    def prefix(model: nnx.Module, batch: DistillationBatch) -> tuple[KeysValues | None, KeysValues | None]:
        """Returns keys and values (L, P, K, E) of what all spoken and all written prompts begin with."""
        spoken, written = batch.prefixes
        if not spoken:
            return None, None
        x = model.language_model.embed_tokens[...][batch.spoken.input_ids[:1, :spoken]]
        output = model.language_model(
            DecoderInputs(x, jnp.array([spoken])), None, Wanted(keys_values=x.dtype)
        )
        longer = jax.tree.map(lambda leaf: jnp.swapaxes(leaf[:, 0], 1, 2), output.keys_values)
        return longer, jax.tree.map(lambda leaf: leaf[:, :written], longer) if written else None

    @staticmethod
    def answer_states(
        model: nnx.Module,
        batch: Batch,
        bank: jax.Array,
        start: jax.Array,
        prefix: KeysValues | None,
        count: int,
        every: int,
        remat: str = "none",
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the states from which the answer's tokens are predicted, and those before the answer.

        Args:
          batch: prompts, each followed by its answer.
          bank: what `encode` returns; its first row alone where the decoder reads.
          start: int32 (B,), length of each prompt.
          prefix: what all rows begin with, which is computed no more.
          every: of how many layers one's states are returned, as in `LossWeights`.
          remat: what is kept for the backward pass (`rrs_jax.models.stack.rematerialise`).
        Returns:
          (B, count, D), behind the final norm, at the prompt's last token and at all answer tokens but the
          last; float32 (places, B, D), at the prompt's last token behind every `every`-th layer and, last,
          behind the final norm.
        """
        decoder = model.language_model
        before = 0 if prefix is None else prefix.keys.shape[1]
        start = start - before
        x = model.embed(batch.input_ids[:, before:], batch.audio_index[:, before:], bank)
        # With the prompts' lengths, what is read of every layer is the prompt's last token. Causal attention
        # needs no other length.
        inputs = DecoderInputs(x, start, prefix=prefix)
        output = decoder(inputs, None, Wanted(each_layer=(0,)), remat=remat)
        positions = jnp.minimum(start[:, None] - 1 + jnp.arange(count)[None], x.shape[1] - 1)
        states = decoder.norm(jnp.take_along_axis(output.states, positions[..., None], axis=1))
        layers = slice(every - 1, None, every) if every else slice(0)
        ends = output.each_layer[layers, :, 0].astype(jnp.float32)
        return states, jnp.concatenate([ends, states[None, :, 0].astype(jnp.float32)])


def loss(
    bridge: Bridge,
    trainable,
    base,
    batch: DistillationBatch,
    *,
    weights: LossWeights | None,
    remat: str = "none",
):
    """Returns loss and metrics: per answer token cross-entropy plus divergence, and `state_losses`.

    `weights` None leaves the reading decoder out: cross-entropy alone, for answers that repeat what is heard.
    `remat`: what the decoder's layers keep for the backward pass (`rrs_jax.models.stack.rematerialise`).
    """
    model = bridge.model(base, trainable)
    count = batch.answer.shape[1]
    every = weights.every if weights else 0
    bank = bridge.encode(model, batch.features, batch.feature_lengths)
    prefix, written_prefix = bridge.prefix(model, batch)
    heard, heard_ends = bridge.answer_states(
        model, batch.spoken, bank, batch.spoken_start, prefix, count, every, remat
    )
    total = batch.answer_mask.sum()

    def over_answers(values: jax.Array) -> jax.Array:
        return (values * batch.answer_mask).sum() / total

    if weights is None:
        each = map_positions(functools.partial(answer_losses, model), heard, batch.answer)
        metrics = jax.tree.map(over_answers, each)
        return metrics["cross_entropy"], metrics
    # Of zeros, since rows of the bank would carry a derivative through the decoder that reads.
    silence = jnp.zeros_like(bank[:1])
    read, read_ends = bridge.answer_states(
        model, batch.written, silence, batch.written_start, written_prefix, count, every
    )
    each = map_positions(functools.partial(answer_losses, model), heard, batch.answer, read)
    metrics = jax.tree.map(over_answers, each)
    distance, contrast, told = state_losses(heard_ends, read_ends)
    language = metrics["cross_entropy"] + metrics["divergence"]
    metrics |= {"distance": distance, "contrast": contrast, "told": told}
    return language + weights.distance * distance + weights.contrast * contrast, metrics


def chosen_remat(text: DecoderConfig, batch: DistillationBatch, item: int, memory: float) -> str:
    """Returns the first `remat` that keeps no more than `memory` bytes of a decoder with numbers of `item`
    bytes; `full`, the last one, keeps what it keeps."""
    rows, tokens = batch.spoken.input_ids.shape
    sizes = dict(layers=text.num_hidden_layers, rows=rows, tokens=tokens - batch.prefixes[0], item=item)
    return next((remat for remat in REMATS if kept_bytes(text, remat, **sizes) <= memory), "full")


def make_step(
    bridge: Bridge, optimiser: optax.GradientTransformation, weights: LossWeights | None, memory: float
):
    """Makes the compiled `step(trainable, optimiser_state, base, batch)`, which returns the first two and
    metrics.

    memory: bytes that the decoder's layers may keep for the backward pass.
    """

    @functools.partial(jax.jit, donate_argnums=(0, 1), compiler_options=compiler_options())
    def step(trainable, optimiser_state, base, batch):
        remat = chosen_remat(bridge.text, batch, bridge.dtype.itemsize, memory)

        def objective(trainable):
            return loss(bridge, trainable, base, batch, weights=weights, remat=remat)

        gradients, metrics = jax.grad(objective, has_aux=True)(trainable)
        updates, optimiser_state = optimiser.update(gradients, optimiser_state, trainable)
        return optax.apply_updates(trainable, updates), optimiser_state, metrics

    return step
