"""A run's training samples: their prompts, the schedule of all draws, and the lower layers' states of
both."""

import functools
from collections.abc import Sequence

import numpy as np

from rrs_jax.config.prompts import PROMPT_POOL, PROMPT_T
from rrs_jax.config.training import train_config
from rrs_jax.frozen.prefix_states import PrefixStates
from rrs_jax.inputs.batching import EncodedPrompt
from rrs_jax.models.flops import decoder_flops, program_price
from rrs_jax.run.lower_layers import lower_layers
from rrs_jax.run.vanilla_model import VanillaModel
from rrs_jax.strategies.samples import Samples
from rrs_jax.train.batches import Schedule, TrainingData

Tails = Sequence[Sequence[Sequence[int]]] | None


class TrainingSet:
    """Attributes:
    samples: the rows of the training manifest, and what kind each one is.
    frozen: the model before training, asked about these samples.
    """

    def __init__(self, context):
        """context: the run, a `rrs_jax.run.context.RunContext`."""
        self.context, self.config = context, context.config
        self.samples = Samples(context.read_training_rows())
        bank = context.encode_clips("training")
        self.frozen = VanillaModel(context, self.samples.rows, bank, self.prefix_states)
        self._schedules: dict[bool, Schedule] = {}  # by whether there are tails

    @functools.cached_property
    def pool(self) -> list[list[EncodedPrompt]]:
        """Each sample's prompts of the pool."""
        places = range(len(self.frozen.pool))
        return [[self.frozen.pool_prompt(i, place) for place in places] for i in range(len(self.samples))]

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt of the pool."""
        return max(len(ids) for prompts in self.pool for ids, _, _ in prompts)

    def schedule(self, tails: Tails = None) -> Schedule:
        """The schedule of all steps, made once; extraction's prefix states and training draw from the same.

        tails: token ids that may stand behind each sample's prompts (`rrs_jax.strategies.Strategy.tails`).
        """
        if (tails is not None) not in self._schedules:
            model = self.frozen.model
            data = TrainingData(
                sample_ids=[row["id"] for row in self.samples.rows],
                harmful=self.samples.harmful,
                encode=lambda sample, place: self.pool[sample][place],
                num_prompts=len(PROMPT_POOL),
                audio_bank=self.frozen.bank.array,
                pair_ids=[row["pair_id"] for row in self.samples.rows],
                digest=self.context.training_digest(),
            )
            price = program_price(
                2 * decoder_flops(model.config.text), self.context.mesh.size
            )  # forward and back
            config = train_config(self.config)
            self._schedules[tails is not None] = Schedule(
                data, config, model.config.audio_token_id, tails, price
            )
        return self._schedules[tails is not None]

    def prefix_states(self) -> PrefixStates | None:
        """The lower layers' states of the prompts that extraction asks and training draws, made once for
        both.

        None where the run has none or they are too large. Always of the same prompts in the same order: a run
        that goes on and computes them in another stage finds the same numbers.
        """
        layers, kept = lower_layers(self.config), self.context.prefix_states
        if layers and layers not in kept:
            self.context.check_first_layer()
            prompts = self._extracted_and_drawn()
            kept[layers] = self.context.make_prefix_states(layers, prompts, self.frozen.bank)
        return kept.get(layers)

    def _extracted_and_drawn(self) -> list[EncodedPrompt]:
        schedule, refusal_prompt = self.schedule(), self.config.rrs.refusal_prompt
        epochs = range(self.config.train.epochs)
        drawn = np.stack([schedule.epoch(epoch)[0].prompts for epoch in epochs], axis=1)
        keeping = self.samples.keeping(self.config.rrs.benign_target)
        stays = [place for place, prompt in enumerate(self.frozen.pool) if prompt.stays]
        prompts = []
        for sample, places in enumerate(drawn):
            texts = [PROMPT_T, refusal_prompt] if self.samples.harmful[sample] else [PROMPT_T]
            prompts += [self.frozen.prompt(sample, text) for text in texts]
            own = self.pool[sample]
            prompts += own if keeping[sample] else [own[place] for place in (*places, *stays)]
        return prompts
