"""What a strategy may ask of a run: its samples, their prompts, and what the frozen model makes of them."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rrs_jax.config.prompts import PROMPT_POOL, PROMPT_T, written_prompt
from rrs_jax.config.training import train_config
from rrs_jax.distributed import processes
from rrs_jax.files import append_jsonl, content_hash, read_growing_jsonl
from rrs_jax.frozen.extraction import extract_all
from rrs_jax.frozen.prefix_states import PrefixStates
from rrs_jax.generate import Prompt, SamplingConfig
from rrs_jax.inputs.batching import EncodedPrompt
from rrs_jax.progress import Progress
from rrs_jax.run.context import Session
from rrs_jax.run.lower_layers import lower_layers
from rrs_jax.train.batches import Schedule, TrainingData, prompts_drawn


class Work:
    """Of one run. Samples are the rows of its training manifest, in their order.

    Attributes:
      rows: of the training manifest.
      harmful, kept, mirrored, rewrites: bool (N,); a benign row with the role "keep" is kept, another one
        mirrored, and a mirrored one of a harmful row's pair is its rewrite.
      categories: of each sample.
      pool_size: prompts that training draws from: those of appendix A, with `train.text_share` the same in
        writing alone, and with `train.audio_share` the question's clip alone.
    """

    def __init__(self, session: Session):
        self.session, self.config, self.folder = session, session.config, session.folder
        self.rows = rows = session.training_rows
        self.harmful = np.array([row["label"] == "harmful" for row in rows])
        self.kept = np.array([row.get("role") == "keep" for row in rows]) & ~self.harmful
        self.mirrored = ~self.harmful & ~self.kept
        twins = {row["pair_id"] for row in rows if row["label"] == "harmful"}
        self.rewrites = self.mirrored & np.array([row["pair_id"] in twins for row in rows])
        self.categories = [row["category"] for row in rows]
        train = self.config.train
        self.pool_size = prompts_drawn(len(PROMPT_POOL), train.text_share, train.audio_share)

    @property
    def vanilla(self):
        """The frozen model, without adapters."""
        return self.session.vanilla

    @functools.cached_property
    def refusal_ids(self) -> list[int]:
        return [self.session.processor.token_id(text) for text in self.config.rrs.refusal_tokens]

    @property
    def end_id(self) -> int:
        """The token that ends an answer."""
        return self.session.processor.eos_token_ids[0]

    def text_ids(self, text: str) -> list[int]:
        """Token ids of an answer's text."""
        return self.session.processor.text_ids(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.session.processor.decode(ids)

    def prompt(self, sample: int, text: str | None) -> EncodedPrompt:
        """The spoken question beside `text`, or alone."""
        return self.session.encode(self.session.training_bank, [int(sample)], text)

    def read_prompt(self, sample: int, text: str | None) -> EncodedPrompt:
        """The same in writing."""
        question = self.rows[sample]["question"]
        written = question if text is None else written_prompt(question, text)
        return self.session.encode(self.session.training_bank, [], written)

    def pool_text(self, place: int) -> str | None:
        """What stands beside the question in prompt `place` of the pool; behind the spoken ones stand the
        written ones, and at the end the clip alone."""
        alone = self.config.train.audio_share and place == self.pool_size - 1
        return None if alone else PROMPT_POOL[place % len(PROMPT_POOL)]

    def pool_prompt(self, sample: int, place: int) -> EncodedPrompt:
        """Prompt `place` of the pool (`pool_text`)."""
        text = self.pool_text(place)
        heard = text is None or place < len(PROMPT_POOL)
        return self.prompt(sample, text) if heard else self.read_prompt(sample, text)

    @functools.cached_property
    def pool(self) -> list[list[EncodedPrompt]]:
        """Each sample's prompts of the pool."""
        return [
            [self.pool_prompt(i, place) for place in range(self.pool_size)] for i in range(len(self.rows))
        ]

    @functools.cached_property
    def training_data(self) -> TrainingData:
        """What training draws from, without prefix states."""
        return TrainingData(
            sample_ids=[row["id"] for row in self.rows],
            harmful=self.harmful,
            encode=lambda sample, place: self.pool[sample][place],
            num_prompts=len(PROMPT_POOL),
            audio_bank=self.session.training_bank.array,
            pair_ids=[row["pair_id"] for row in self.rows],
        )

    @property
    def prefix_states(self) -> PrefixStates | None:
        """The lower layers' states of the prompts that extraction asks and training draws, made once for
        both; None where the run has none or they are too large. Always of the same prompts in the same order:
        a run that goes on and computes them in another stage finds the same numbers."""
        layers, prefix_states = lower_layers(self.config), self.session.prefix_states
        if layers and layers not in prefix_states:
            _ = self.session.model  # which refuses adapters above the last layer
            prefix_states[layers] = self.session.make_prefix_states(
                layers, self._extracted_and_drawn(), self.session.training_bank
            )
        return prefix_states.get(layers)

    def _extracted_and_drawn(self) -> list[EncodedPrompt]:
        schedule = Schedule(self.training_data, train_config(self.config), self.vanilla.config.audio_token_id)
        drawn = np.stack(
            [schedule.epoch(epoch)[0].prompts for epoch in range(self.config.train.epochs)], axis=1
        )
        rows, kept = [], kept_as_they_are(self)
        for sample, places in enumerate(drawn):
            texts = [PROMPT_T, self.config.rrs.refusal_prompt] if self.harmful[sample] else [PROMPT_T]
            rows += [self.prompt(sample, text) for text in texts]
            rows += self.pool[sample] if kept[sample] else [self.pool[sample][place] for place in places]
        return rows

    def representations(self, prompts: Sequence[EncodedPrompt]) -> np.ndarray:
        """float32 (len(prompts), D): the frozen model's final-norm state at each prompt's last token."""
        keys = self._keys(prompts)
        with self.session.shared.alone("states"):
            known = self.session.shared.states(keys)
            wanted = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in known}
            if wanted:
                made = self._representations(wanted)
                self.session.shared.keep_states(made)
                known |= made
        return np.stack([known[key] for key in keys])

    def _representations(self, prompts: dict[str, EncodedPrompt]) -> dict[str, np.ndarray]:
        prefix_states = self.prefix_states
        above = {
            key: row for key, row in prompts.items() if prefix_states is not None and row in prefix_states
        }
        whole = {key: row for key, row in prompts.items() if key not in above}
        made = {}
        with Progress(len(prompts), "representations", "prompts") as progress:
            for rows, attach in ((above, prefix_states and prefix_states.attach), (whole, None)):
                if not rows:
                    continue
                lengths = [len(ids) for ids, _, _ in rows.values()]
                values = extract_all(
                    self.vanilla,
                    list(rows.values()),
                    self.session.training_bank.array,
                    batch_size=self.config.extract.batch_size,
                    buckets=self.session.buckets(lengths),
                    attach=attach,
                    progress=progress,
                )
                made |= zip(rows, values, strict=True)
        return made

    def layer_states(
        self, prompts: Sequence[EncodedPrompt], layers: Sequence[int], audio_bank=None
    ) -> np.ndarray:
        """float32 (len(prompts), len(layers), D): the frozen model's state at each prompt's last token behind
        layers.

        `audio_bank`: the array on which the prompts lie, where it is not the training questions'.
        """
        bank = self.session.training_bank.array if audio_bank is None else audio_bank
        buckets = self.session.buckets([len(ids) for ids, _, _ in prompts])
        with Progress(len(prompts), "hidden states", "prompts") as progress:
            return extract_all(
                self.vanilla,
                prompts,
                bank,
                batch_size=self.config.extract.batch_size,
                buckets=buckets,
                layers=tuple(layers),
                progress=progress,
            )

    def _keys(self, prompts: Sequence[EncodedPrompt], *more: object) -> list[str]:
        """Hashes of the model and of what each prompt is made of."""
        bank = self.session.training_bank
        prints = dict(zip(bank.offsets, bank.prints, strict=True))
        model = str(self.session.model_folder), self.config.model.dtype, self.config.model.quantize
        return [
            content_hash(model, list(map(int, ids)), [prints[o] for o in offsets], *more)
            for ids, offsets, _ in prompts
        ]

    def responses(self, prompts: Sequence[EncodedPrompt], max_new_tokens: int) -> list[list[int]]:
        """The frozen model's likeliest answers as token ids, at most so many, without an end token.

        Kept in `responses.jsonl` of the run, or of the sweep, as they are made, so that a killed run goes on.
        """
        shared = self.session.shared
        path = (shared.folder or self.folder.path) / "responses.jsonl"
        with shared.alone("responses"):
            return self._responses(prompts, max_new_tokens, path)

    def _responses(
        self, prompts: Sequence[EncodedPrompt], max_new_tokens: int, path: Path
    ) -> list[list[int]]:
        shared = self.session.shared
        made = processes.by_first(lambda: {row["key"]: row["tokens"] for row in read_growing_jsonl(path)})
        keys = self._keys(prompts, max_new_tokens)
        wanted = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in made}
        if wanted:
            processor = self.session.processor
            sampling = SamplingConfig(max_new_tokens=max_new_tokens, greedy=True)
            generator = shared.generator(
                self.vanilla,
                sampling,
                processor.eos_token_ids,
                self.config.generate.batch_size,
                self.config.generate.cache_dtype,
            )
            with Progress(len(wanted), "the frozen model's answers", "answers") as progress:

                def on_finished(key, tokens: list[int]) -> None:
                    made[key] = list(map(int, tokens))
                    append_jsonl(path, [{"key": key, "text": processor.decode(tokens), "tokens": made[key]}])
                    progress.update(1)

                asked = [Prompt(key=key, row=prompt) for key, prompt in wanted.items()]
                generator.generate(asked, self.session.training_bank.array, on_finished)
        return [made[key] for key in keys]


def kept_as_they_are(work) -> np.ndarray:
    """bool (N,): samples whose target is what the frozen model has under the very prompt they drew."""
    return work.kept | (work.mirrored & (work.config.rrs.benign_target == "keep"))
