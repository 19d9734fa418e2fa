"""One training step of a bridge: the encoder and the projector learn to hear what the decoder reads.

The decoder is frozen, so that it reads as before. It is its own teacher: the loss is cross-entropy on its own
answer to the written question, the divergence from the distribution that it has when it reads the question,
and what brings the state before the answer, in which RRS works, to where reading puts it (`state_losses`).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from rrs_jax.mini.bridge_batch import DistillationBatch
from rrs_jax.mini.bridge_losses import answer_losses, state_losses
from rrs_jax.models.batch import Batch
from rrs_jax.models.cache import KeysValues
from rrs_jax.models.decoder_layer import DecoderConfig
from rrs_jax.models.decoder_pass import DecoderInputs, Wanted
from rrs_jax.models.kept_values import kept_bytes
from rrs_jax.models.positions import map_positions
from rrs_jax.models.stack import compiler_options

REMATS = ("dots", "gate", "lean")  # the fastest first
TRAINED = ("audio_tower", "multi_modal_projector")


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights of the two losses of `state_losses`, and the states that they compare.

    Attributes:
      every: the states behind every so many layers, besides those behind the final norm; 0 for these alone.
    """

    distance: float = 1.0
    contrast: float = 0.3
    every: int = 4


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
    total: jax.Array,
    *,
    weights: LossWeights | None,
    remat: str = "none",
):
    """Returns loss and metrics: per answer token cross-entropy plus divergence, and `state_losses`.

    `total`: answer tokens over which the sums of these are means, those of `batch` or of all its parts.
    `weights` None leaves the reading decoder out: cross-entropy alone, for answers that repeat what is heard.
    `remat`: what the decoder's layers keep for the backward pass (`rrs_jax.models.stack.rematerialise`).
    """
    model = bridge.model(base, trainable)
    count, every = batch.answer.shape[1], weights.every if weights else 0
    bank = bridge.encode(model, batch.features, batch.feature_lengths)
    prefix, written_prefix = bridge.prefix(model, batch)
    heard, heard_ends = bridge.answer_states(
        model, batch.spoken, bank, batch.spoken_start, prefix, count, every, remat
    )
    states = [heard]
    if weights is not None:
        # Of zeros, since rows of the bank would carry a derivative through the decoder that reads.
        silence = jnp.zeros_like(bank[:1])
        read, read_ends = bridge.answer_states(
            model, batch.written, silence, batch.written_start, written_prefix, count, every
        )
        states.append(read)
    each = map_positions(functools.partial(answer_losses, model), batch.answer, *states)
    metrics = {name: (values * batch.answer_mask).sum() / total for name, values in each.items()}
    if weights is None:
        return metrics["cross_entropy"], metrics
    distance, contrast, told = state_losses(heard_ends, read_ends)
    language = metrics["cross_entropy"] + metrics["divergence"]
    metrics |= {"distance": distance, "contrast": contrast, "told": told}
    return language + weights.distance * distance + weights.contrast * contrast, metrics


def fit(
    text: DecoderConfig, batch: DistillationBatch, item: int, memory: float, *, apart: bool
) -> tuple[int, str]:
    """Returns how a step keeps no more than `memory` bytes in a decoder with numbers of `item` bytes.

    apart: whether rows have nothing to do with each other, as without `LossWeights`. Then they come in as
    many parts as needed, which costs nothing; else more is computed again.
    Returns:
      Parts of equal size, and a `remat`: `full`, the last one, keeps what it keeps.
    """
    rows, length = batch.spoken.input_ids.shape
    tokens = length - batch.prefixes[0]

    def fits(parts: int, remat: str) -> bool:
        sizes = dict(layers=text.num_hidden_layers, rows=rows // parts, tokens=tokens, item=item)
        return kept_bytes(text, remat, **sizes) <= memory

    numbers = [parts for parts in range(1, rows + 1) if rows % parts == 0] if apart else [1]
    ways = [(parts, remat) for remat in REMATS for parts in numbers]
    return next((way for way in ways if fits(*way)), (numbers[-1], "full"))


def make_step(
    bridge: Bridge, optimiser: optax.GradientTransformation, weights: LossWeights | None, memory: float
):
    """Makes the compiled `step(trainable, optimiser_state, base, batch)`, which returns the first two and
    metrics.

    memory: bytes that the decoder's layers may keep for the backward pass.
    """

    @functools.partial(jax.jit, donate_argnums=(0, 1), compiler_options=compiler_options())
    def step(trainable, optimiser_state, base, batch):
        parts, remat = fit(bridge.text, batch, bridge.dtype.itemsize, memory, apart=weights is None)
        total = batch.answer_mask.sum()

        def part_loss(trainable, part):
            return loss(bridge, trainable, base, part, total, weights=weights, remat=remat)

        part_gradients = functools.partial(jax.grad(part_loss, has_aux=True), trainable)
        sums = jax.lax.map(part_gradients, batch.cut(parts))
        gradients, metrics = jax.tree.map(lambda array: array.sum(0), sums)
        updates, optimiser_state = optimiser.update(gradients, optimiser_state, trainable)
        return optax.apply_updates(trainable, updates), optimiser_state, metrics

    return step
