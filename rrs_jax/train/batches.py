"""What every step of a training gets: samples, their prompts, and the length they are padded to."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from rrs_jax.frozen.prefix_states import Floor
from rrs_jax.inputs.batching import EncodedPrompt, Selection, bucket_lengths, collate, make_batches
from rrs_jax.strategies import Strategy
from rrs_jax.train.step import OptimiserConfig, Rows


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training half of a run's config.

    Attributes:
      epochs, batch_size: the paper's are 10 and 16; a batch is what one update sees.
      gradient_accumulation: micro-batches a batch is cut into.
      max_buckets: most lengths to which prompts are padded, and so most compilations.
      bucket_multiple: lengths are multiples of this.
      checkpoint_every_steps: steps between checkpoints, beside the one at the end of each epoch.
      keep_checkpoints: how many of them are kept, beside the best.
      twins_together: a harmful question and its rewrite come in one micro-batch, under one prompt.
      text_share, audio_share: shares of the samples that are asked in writing alone and by their clip alone,
        drawn anew in each step; together at most 1.
      seed: of all draws: order of the samples, and prompt of each sample in each step.
    """

    epochs: int = 10
    batch_size: int = 16
    gradient_accumulation: int = 1
    max_buckets: int = 5
    bucket_multiple: int = 8
    checkpoint_every_steps: int = 200
    keep_checkpoints: int = 2
    twins_together: bool = False
    text_share: float = 0.0
    audio_share: float = 0.0
    seed: int = 0
    optimiser: OptimiserConfig = dataclasses.field(default_factory=OptimiserConfig)

    def result_settings(self) -> dict:
        """What shapes the adapters; the rest may change while a run is under way."""
        values = dataclasses.asdict(self)
        del values["checkpoint_every_steps"], values["keep_checkpoints"]
        del values["optimiser"]["remat"], values["optimiser"]["unroll"]
        return values

    def steps_per_epoch(self, samples: int) -> int:
        micro_batches = -(-samples // (self.batch_size // self.gradient_accumulation))
        return -(-micro_batches // self.gradient_accumulation)


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The samples.

    Attributes:
      sample_ids: names of the N samples, for messages.
      harmful: bool (N,).
      encode: (sample, prompt) to that prompt's row; called for all of them at the start and again for each
        batch, so it should look up a table. Where the config's `text_share` is not 0, prompt `num_prompts +
        p` is prompt p in writing alone, and where its `audio_share` is not 0, the last one (`prompts_drawn`)
        is the clip alone.
      num_prompts: size of the pool.
      audio_bank: (rows, D), all clips' embeddings.
      pair_ids: the same for a harmful question and its rewrite; needed for the config's `twins_together`.
      floor: makes what the steps start from in place of embeddings, with all prompts that they draw, or None;
        called where there are steps to come.
    """

    sample_ids: Sequence[str]
    harmful: np.ndarray
    encode: Callable[[int, int], EncodedPrompt]
    num_prompts: int
    audio_bank: jax.Array
    pair_ids: Sequence[str] = ()
    floor: Callable[[], Floor | None] = lambda: None


class Draws(NamedTuple):
    """What an epoch drew for each of the N samples: its prompt and its tail."""

    prompts: np.ndarray
    tails: np.ndarray


class Plan:
    """Which samples, prompts, tails and padding every step has. A function of seed and epoch alone, so that a
    run that goes on sees what it would have seen."""

    def __init__(
        self,
        data: TrainingData,
        config: TrainConfig,
        audio_token_id: int | Sequence[int],
        tails=None,
        price: float = 0.0,
    ):
        self.data, self.config, self.audio_token_id, self.tails = data, config, audio_token_id, tails
        samples = range(len(data.sample_ids))
        prompts = range(prompts_drawn(data.num_prompts, config.text_share, config.audio_share))
        self.lengths = np.array(
            [[len(data.encode(i, p)[0]) for p in prompts] for i in samples]
        )  # (N, prompts)
        self.tail_lengths = [[len(tail) for tail in tails[i]] if tails else [0] for i in samples]
        all_lengths = [
            np.add.outer(row, own).ravel() for row, own in zip(self.lengths, self.tail_lengths, strict=True)
        ]
        lengths = np.concatenate(all_lengths)
        price *= len(lengths) / (
            len(samples) * config.epochs
        )  # they occur epochs / (prompts · tails) times each
        self.buckets = bucket_lengths(lengths, config.max_buckets, config.bucket_multiple, price=price)
        self.floor = data.floor()
        self.twins, self.alone = (
            split_twins(data.pair_ids, data.harmful) if config.twins_together else (None, None)
        )

    def epoch(self, epoch: int) -> tuple[Draws, list[list[Selection]]]:
        """What is drawn for each sample, and each step's micro-batches."""
        samples = len(self.lengths)
        order, draw = np.random.SeedSequence([self.config.seed, epoch]).generate_state(2)
        random = np.random.default_rng(draw)
        prompts = random.integers(self.data.num_prompts, size=samples)
        written, heard = self.config.text_share, self.config.audio_share
        if written or heard:
            drawn = random.random(samples)
            prompts += self.data.num_prompts * (drawn < written)
            prompts[(written <= drawn) & (drawn < written + heard)] = self.lengths.shape[1] - 1
        if self.twins is None:
            units, counting = np.arange(samples)[:, None], np.ones((samples, 1), np.float32)
        else:
            units, counting = in_twos(self.twins, random.permutation(self.alone))
            prompts[units[:, 1]] = prompts[units[:, 0]]
        several = np.array([len(own) for own in self.tail_lengths])
        tails = random.integers(several) if (several > 1).any() else np.zeros(samples, np.int64)
        lengths = self.lengths[np.arange(samples), prompts]
        lengths = lengths + [own[tail] for own, tail in zip(self.tail_lengths, tails, strict=True)]
        parts, size = self.config.gradient_accumulation, units.shape[1]
        together = self.config.batch_size // parts // size
        batches = make_batches(lengths[units].max(axis=1), together, int(order), self.buckets)
        micro_batches = [
            Selection(
                units[batch.indices].ravel(),
                (counting[batch.indices] * batch.weights[:, None]).ravel(),
                batch.length,
            )
            for batch in batches
        ]
        steps = [micro_batches[start : start + parts] for start in range(0, len(micro_batches), parts)]
        return Draws(prompts, tails), steps

    def rows(self, selection: Selection, draws: Draws, strategy: Strategy) -> Rows:
        """One micro-batch as host arrays."""
        indices = selection.indices
        prompts, tails = draws.prompts[indices], draws.tails[indices]
        encoded = []
        for i, prompt, tail in zip(indices, prompts, tails, strict=True):
            ids, offsets, counts = self.data.encode(int(i), int(prompt))
            encoded.append(([*ids, *self.tails[i][tail]] if self.tails else ids, offsets, counts))
        batch = collate(encoded, selection.length, self.audio_token_id)
        if self.floor is not None:
            batch = self.floor.under(batch, encoded)
        examples = strategy.examples(indices, prompts, tails)
        return Rows(batch, examples, np.asarray(self.data.harmful)[indices], selection.weights)


def train_config(config: ConfigDict) -> TrainConfig:
    """Of a run's config, with `train.remat` as it stands there."""
    values = config.train
    optimiser = OptimiserConfig(
        learning_rate=values.learning_rate,
        schedule=values.schedule,
        warmup_steps=values.warmup_steps,
        weight_decay=values.weight_decay,
        b1=values.b1,
        b2=values.b2,
        eps=values.eps,
        clip_norm=values.clip_norm or 0.0,
        penalty_weight=config.penalty.weight,
        penalty_space=config.penalty.space,
        remat=values.remat,
        unroll=values.unroll,
        average=values.average,
    )
    return TrainConfig(
        epochs=values.epochs,
        batch_size=values.batch_size,
        gradient_accumulation=values.gradient_accumulation,
        checkpoint_every_steps=values.checkpoint_every_steps,
        keep_checkpoints=values.keep_checkpoints,
        twins_together=values.twins_together,
        text_share=values.text_share,
        audio_share=values.audio_share,
        seed=config.seed,
        optimiser=optimiser,
    )


def prompts_drawn(pool: int, text_share: float, audio_share: float) -> int:
    """How many prompts a question has, of a pool of `pool` texts: spoken, written, and its clip alone."""
    return pool * (2 if text_share else 1) + (1 if audio_share else 0)


def split_twins(pair_ids: Sequence[str], harmful: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P, 2) samples, a harmful one and its rewrite, and the samples without a twin, (M,)."""
    members: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for i, (pair, harm) in enumerate(zip(pair_ids, harmful, strict=True)):
        members[pair][int(not harm)].append(i)
    twins = [both for one, other in members.values() for both in zip(one, other, strict=False)]
    alone = set(range(len(pair_ids))).difference(*twins)
    return np.array(twins, np.int32).reshape(-1, 2), np.array(sorted(alone), np.int32)


def in_twos(twins: np.ndarray, alone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The twins (P, 2) and, two and two, the samples (M,) without one: (U, 2), and their weights, 0 for what
    fills up."""
    others = np.array(list(zip_longest(alone[::2], alone[1::2], fillvalue=-1)), np.int32).reshape(-1, 2)
    counting = np.concatenate([np.ones_like(twins), others >= 0]).astype(np.float32)
    return np.concatenate([twins, np.where(others < 0, others[:, :1], others)]), counting
