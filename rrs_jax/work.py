"""What a strategy may ask of a run: its samples, their prompts, and what the frozen model makes of them."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rrs_jax import hosts
from rrs_jax.files import append_jsonl, content_hash, read_growing_jsonl
from rrs_jax.generate import Prompt, SamplingConfig
from rrs_jax.inputs.batching import fixed_lengths
from rrs_jax.inputs.prompts import PROMPT_POOL, written_prompt
from rrs_jax.progress import Progress
from rrs_jax.representations import Row, extract_all
from rrs_jax.session import Session
from rrs_jax.train.batches import prompts_drawn


class Work:
    """Of one run. Samples are the rows of its training manifest, in their order.

    Attributes:
      rows: of the training manifest.
      harmful, kept, mirrored: bool (N,); a benign row with the role "keep" is kept, another one mirrored.
      categories: of each sample.
      pool_size: prompts that training draws from: those of appendix A, with `train.text_share` the same in writing
        alone, and with `train.audio_share` the question's clip alone.
    """

    def __init__(self, session: Session):
        self.session, self.config, self.folder = session, session.config, session.folder
        self.rows = rows = session.training_rows
        self.harmful = np.array([row["label"] == "harmful" for row in rows])
        self.kept = np.array([row.get("role") == "keep" for row in rows]) & ~self.harmful
        self.mirrored = ~self.harmful & ~self.kept
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

    def prompt(self, sample: int, text: str | None) -> Row:
        """The spoken question beside `text`, or alone."""
        return self.session.encode(self.session.training_bank, [int(sample)], text)

    def pool_prompt(self, sample: int, place: int) -> Row:
        """Prompt `place` of the pool; behind the spoken ones stand the written ones, and at the end the clip alone."""
        if place < len(PROMPT_POOL):
            return self.prompt(sample, PROMPT_POOL[place])
        if self.config.train.audio_share and place == self.pool_size - 1:
            return self.prompt(sample, None)
        question = self.session.training_rows[sample]["question"]
        text = written_prompt(question, PROMPT_POOL[place - len(PROMPT_POOL)])
        return self.session.encode(self.session.training_bank, [], text)

    def representations(self, prompts: Sequence[Row]) -> np.ndarray:
        """float32 (len(prompts), D): the frozen model's final-norm state at each prompt's last token."""
        keys = self._keys(prompts)
        with self.session.shared.alone("states"):
            known = self.session.shared.states(keys)
            wanted = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in known}
            if wanted:
                rows = list(wanted.values())
                buckets = fixed_lengths(len(ids) for ids, _, _ in rows)
                with Progress(len(rows), "representations", "prompts") as progress:
                    values = extract_all(
                        self.vanilla, rows, self.session.training_bank.array,
                        batch_size=self.config.extract.batch_size, buckets=buckets, progress=progress,
                    )  # fmt: skip
                made = dict(zip(wanted, values, strict=True))
                self.session.shared.keep_states(made)
                known |= made
        return np.stack([known[key] for key in keys])

    def layer_states(self, prompts: Sequence[Row], layers: Sequence[int], audio_bank=None) -> np.ndarray:
        """float32 (len(prompts), len(layers), D): the frozen model's state at each prompt's last token behind layers.

        `audio_bank`: the array on which the prompts lie, where it is not the training questions'.
        """
        bank = self.session.training_bank.array if audio_bank is None else audio_bank
        buckets = fixed_lengths(len(ids) for ids, _, _ in prompts)
        with Progress(len(prompts), "hidden states", "prompts") as progress:
            return extract_all(
                self.vanilla, prompts, bank, batch_size=self.config.extract.batch_size, buckets=buckets,
                layers=tuple(layers), progress=progress,
            )  # fmt: skip

    def _keys(self, prompts: Sequence[Row], *more: object) -> list[str]:
        """Hashes of the model and of what each prompt is made of."""
        bank = self.session.training_bank
        prints = dict(zip(bank.offsets, bank.prints, strict=True))
        model = str(self.session.model_folder), self.config.model.dtype, self.config.model.quantize
        return [content_hash(model, list(map(int, ids)), [prints[o] for o in offsets], *more) for ids, offsets, _ in prompts]

    def responses(self, prompts: Sequence[Row], max_new_tokens: int) -> list[list[int]]:
        """The frozen model's likeliest answers as token ids, at most so many, without an end token.

        Kept in `responses.jsonl` of the run, or of the sweep, as they are made, so that a killed run goes on.
        """
        shared = self.session.shared
        path = (shared.folder or self.folder.path) / "responses.jsonl"
        with shared.alone("responses"):
            return self._responses(prompts, max_new_tokens, path)

    def _responses(self, prompts: Sequence[Row], max_new_tokens: int, path: Path) -> list[list[int]]:
        shared = self.session.shared
        made = hosts.by_first(lambda: {row["key"]: row["tokens"] for row in read_growing_jsonl(path)})
        keys = self._keys(prompts, max_new_tokens)
        wanted = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in made}
        if wanted:
            processor = self.session.processor
            sampling = SamplingConfig(max_new_tokens=max_new_tokens, greedy=True)
            generator = shared.generator(
                self.vanilla, sampling, processor.eos_token_ids, self.config.generate.batch_size,
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
