"""The schedule of a training: each step's samples, their prompts, and the length they are padded to."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from rrs_jax.config.prompts import KEPT_TASKS, KEPT_TEXTS
from rrs_jax.config.training import TrainConfig
from rrs_jax.equations import draw_prompts
from rrs_jax.frozen.prefix_states import PrefixStates
from rrs_jax.inputs.batching import EncodedPrompt, Selection, bucket_lengths, collate, make_batches
from rrs_jax.strategies import Strategy
from rrs_jax.train.step import Rows


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """Samples, their prompts and clips, which a schedule draws from.

    Attributes:
      sample_ids: names of the N samples, for messages.
      harmful: bool (N,).
      encode: (sample, prompt) to that prompt's row; called for all of them at the start and again for each
        batch, so it should look up a table. Where the config's `text_share` is not 0, prompt `num_prompts +
        p` is prompt p in writing alone; where its `kept_text_share` is not 0, the kept written ones stand
        behind those, and where its `kept_task_share` is not 0, the kept tasks behind these; and where its
        `audio_share` is not 0, the last one (`prompts_drawn`) is the clip alone.
      num_prompts: size of the pool.
      audio_bank: (rows, D), all clips' embeddings.
      pair_ids: the same for a harmful question and its rewrite; needed for the config's `twins_together`.
      digest: of the model folder and the clips; a training goes on with the same alone. Empty where nobody
        asks.
    """

    sample_ids: Sequence[str]
    harmful: np.ndarray
    encode: Callable[[int, int], EncodedPrompt]
    num_prompts: int
    audio_bank: jax.Array
    pair_ids: Sequence[str] = ()
    digest: str = ""


class Draws(NamedTuple):
    """An epoch's draws for each of the N samples: the number of its prompt and of its tail, int64 (N,)."""

    prompts: np.ndarray
    tails: np.ndarray


class Units(NamedTuple):
    """Samples that stay in one micro-batch: one sample by itself, or several.

    Attributes:
      samples: int (units, samples of a unit).
      weights: float32 of the same shape, 1 for a sample and 0 for a repetition that fills up a unit.
    """

    samples: np.ndarray
    weights: np.ndarray


class Schedule:
    """Every step's samples, prompts, tails and padded lengths.

    A function of seed and epoch alone, so that a resumed run sees what it would have seen.

    Args:
      audio_token_id: the ids whose places the clips' embeddings take.
      tails: token ids that may stand behind each sample's prompts (`rrs_jax.strategies.Strategy.tails`).
      price: positions of padding that each further padded length has to save, per pass over the samples.
    """

    def __init__(
        self,
        data: TrainingData,
        config: TrainConfig,
        audio_token_id: int | Sequence[int],
        tails: Sequence[Sequence[Sequence[int]]] | None = None,
        price: float = 0.0,
    ):
        self.data, self.config, self.audio_token_id, self.tails = data, config, audio_token_id, tails
        samples = len(data.sample_ids)
        prompts = range(prompts_drawn(data.num_prompts, config))
        self.lengths = np.array(
            [[len(data.encode(i, p)[0]) for p in prompts] for i in range(samples)]
        )  # (N, prompts)
        self.tail_lengths = [[len(tail) for tail in tails[i]] if tails else [0] for i in range(samples)]
        self.buckets = self._buckets(price)
        # The lower layers' states of all prompts that the steps draw, where steps start from them.
        self.prefix_states: PrefixStates | None = None
        self.twins, self.alone = (
            split_twins(data.pair_ids, data.harmful) if config.twins_together else (None, None)
        )

    def _buckets(self, price: float) -> tuple[int, ...]:
        """The lengths to which prompts with their tails are padded."""
        pairs = zip(self.lengths, self.tail_lengths, strict=True)
        lengths = np.concatenate([np.add.outer(prompts, tails).ravel() for prompts, tails in pairs])
        # Each of these lengths occurs epochs / (prompts · tails) times in the whole training.
        price *= len(lengths) / (len(self.lengths) * self.config.epochs)
        return bucket_lengths(lengths, self.config.max_buckets, self.config.bucket_multiple, price=price)

    def epoch(self, epoch: int) -> tuple[Draws, list[list[Selection]]]:
        """An epoch's draws for each sample, and each step's micro-batches.

        Example: five samples, of which 1 is the rewrite of 0, and a pool of three prompts; `twins_together`,
        seed 0, two micro-batches of two rows a step. Epoch 0 then has

            prompts        [0 1 1 2 0]              one of the pool for each sample
            units          [0 1]  [3 4]  [2 2]      the twins, then the others in random order, two by two
              weights      [1 1]  [1 1]  [1 0]      the last one fills up its unit by itself
            prompts        [0 0 1 2 2]              a unit's second sample takes the first one's prompt
            tails          [0 0 0 0 0]              nothing is drawn where no sample has several
            lengths        [10 12 20 29 22]         of each sample's prompt with its tail
              padded        16     32     24        a unit's longest, in the buckets 16, 24 and 32
            micro-batches  [0 1]  [2 2]  [3 4]      a unit each here, in random order
            steps          [0 1]  [2 2] | [3 4]
        """
        order_seed, draw_seed = np.random.SeedSequence([self.config.seed, epoch]).generate_state(2)
        random = np.random.default_rng(draw_seed)  # prompts, units and tails draw from it
        if self.config.prompts_together > 1:
            units = self._draw_groups(random)
            prompts = self._draw_prompts(random, units)
        else:
            prompts = self._draw_prompts(random)
            units = self._draw_units(random)
        if self.twins is not None:
            first, second = units.samples.T
            prompts[second] = prompts[first]
        tails = self._draw_tails(random)
        micro_batches = self._micro_batches(units, self._lengths_of(prompts, tails), int(order_seed))
        parts = self.config.gradient_accumulation
        steps = [micro_batches[start : start + parts] for start in range(0, len(micro_batches), parts)]
        return Draws(prompts, tails), steps

    def _draw_prompts(self, random: np.random.Generator, groups: Units | None = None) -> np.ndarray:
        """Each sample's prompt (N,): spoken, or by the config's shares written or the clip alone.

        groups: units in which no text of the pool comes twice; None lets each sample draw by itself.
        """
        samples, prompts_of_each = self.lengths.shape
        if groups is None:
            prompts = draw_prompts(random, samples, self.data.num_prompts)
        else:
            drawn = draw_prompts(random, groups.samples.size, self.data.num_prompts, groups.samples.shape[1])
            prompts, real = np.empty(samples, np.int64), groups.weights.ravel() > 0
            prompts[groups.samples.ravel()[real]] = drawn[real]
        written, heard = self.config.text_share, self.config.audio_share
        kept = kept_prompts(self.config)
        if written or heard or kept:
            drawn = random.random(samples)
            prompts += self.data.num_prompts * (drawn < written)
            prompts[(written <= drawn) & (drawn < written + heard)] = prompts_of_each - 1
            first, left = self.data.num_prompts * (2 if written else 1), 1.0
            for share, count in kept:  # from the other end, in equal parts
                for place in range(count):
                    least = left - share * (1 - place / count)
                    prompts[(least <= drawn) & (drawn < left)] = first + place
                first, left = first + count, left - share
        return prompts

    def _draw_units(self, random: np.random.Generator) -> Units:
        """The samples one by one; with `twins_together` twins together, and the others two by two."""
        if self.twins is None:
            samples = np.arange(len(self.lengths))[:, None]
            return Units(samples, np.ones(samples.shape, np.float32))
        return units_of_two(self.twins, random.permutation(self.alone))

    def _draw_groups(self, random: np.random.Generator) -> Units:
        """The samples in random units of `prompts_together`, of about the same length, so that what fills up
        a unit's shorter ones is little."""
        order = random.permutation(len(self.lengths))
        bucket = np.searchsorted(self.buckets, self.lengths[order].mean(axis=1))
        return units_of(order[np.argsort(-bucket, kind="stable")], self.config.prompts_together)

    def _draw_tails(self, random: np.random.Generator) -> np.ndarray:
        """Each sample's tail (N,)."""
        choices = np.array([len(lengths) for lengths in self.tail_lengths])
        return random.integers(choices) if (choices > 1).any() else np.zeros(len(choices), np.int64)

    def _lengths_of(self, prompts: np.ndarray, tails: np.ndarray) -> np.ndarray:
        """Tokens of each sample's prompt with its tail, (N,)."""
        own_tails = [lengths[tail] for lengths, tail in zip(self.tail_lengths, tails, strict=True)]
        return self.lengths[np.arange(len(prompts)), prompts] + own_tails

    def _micro_batches(self, units: Units, lengths: np.ndarray, seed: int) -> list[Selection]:
        """All units in micro-batches of one padded length each, in random order."""
        longest = lengths[units.samples].max(axis=1)
        units_together = self.config.micro_batch_size // units.samples.shape[1]
        return [
            Selection(
                units.samples[batch.indices].ravel(),
                (units.weights[batch.indices] * batch.weights[:, None]).ravel(),
                batch.length,
            )
            for batch in make_batches(longest, units_together, seed, self.buckets)
        ]

    def rows(self, selection: Selection, draws: Draws, strategy: Strategy) -> Rows:
        """One micro-batch as arrays on the host."""
        indices = selection.indices
        prompts, tails = draws.prompts[indices], draws.tails[indices]
        encoded = []
        for i, prompt, tail in zip(indices, prompts, tails, strict=True):
            ids, offsets, counts = self.data.encode(int(i), int(prompt))
            encoded.append(([*ids, *self.tails[i][tail]] if self.tails else ids, offsets, counts))
        batch = collate(encoded, selection.length, self.audio_token_id)
        if self.prefix_states is not None:
            batch = self.prefix_states.attach(batch, encoded)
        examples = strategy.examples(indices, prompts, tails)
        return Rows(batch, examples, np.asarray(self.data.harmful)[indices], selection.weights)


def prompts_drawn(pool: int, config: TrainConfig) -> int:
    """Number of prompts that a question has with a pool of `pool` texts: spoken, written, kept ones, and its
    clip alone."""
    kept = sum(count for _, count in kept_prompts(config))
    return pool * (2 if config.text_share else 1) + kept + (1 if config.audio_share else 0)


def kept_prompts(config: TrainConfig) -> list[tuple[float, int]]:
    """Share and number of each kind of prompts that stay, of those that are asked, in the pool's order."""
    kinds = (config.kept_text_share, len(KEPT_TEXTS)), (config.kept_task_share, len(KEPT_TASKS))
    return [(share, count) for share, count in kinds if share]


def split_twins(pair_ids: Sequence[str], harmful: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Twins, int32 (pairs, 2), a harmful sample and its rewrite; and the samples without one, int32 (alone,).

    Example: pairs "a" "a" "b" "c" of which the first and third are harmful are twins [[0 1]] and alone [2 3].
    """
    members: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for i, (pair, harm) in enumerate(zip(pair_ids, harmful, strict=True)):
        members[pair][int(not harm)].append(i)
    twins = [both for harms, rewrites in members.values() for both in zip(harms, rewrites, strict=False)]
    alone = set(range(len(pair_ids))).difference(*twins)
    return np.array(twins, np.int32).reshape(-1, 2), np.array(sorted(alone), np.int32)


def units_of_two(twins: np.ndarray, alone: np.ndarray) -> Units:
    """Units of the twins (pairs, 2) and then of the samples (alone,) without one, two by two; a last one by
    itself is repeated with weight 0.

    Example: twins [[4 7]] and alone [5 2 9] are units [4 7] [5 2] [9 9] with weights [1 1] [1 1] [1 0].
    """
    others = units_of(alone, 2)
    weights = np.concatenate([np.ones(twins.shape, np.float32), others.weights])
    return Units(np.concatenate([twins, others.samples]), weights)


def units_of(order: np.ndarray, size: int) -> Units:
    """Units of `size` samples in this order (N,); the last sample is repeated with weight 0 to fill up.

    Example: [5 2 9] in units of two are [5 2] [9 9] with weights [1 1] [1 0].
    """
    missing = -len(order) % size
    samples = np.concatenate([order, np.repeat(order[-1:], missing)])
    weights = np.repeat(np.float32([1, 0]), [len(order), missing])
    return Units(samples.reshape(-1, size), weights.reshape(-1, size))
