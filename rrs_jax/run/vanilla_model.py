"""A run's model before training, asked about the training samples, with what it has said kept."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from rrs_jax import equations
from rrs_jax.config.prompts import prompt_pool, written_prompt
from rrs_jax.distributed import processes
from rrs_jax.distributed.mesh import fetch, put, replicated
from rrs_jax.equations import SafetyVector
from rrs_jax.files import append_jsonl, content_hash, read_growing_jsonl
from rrs_jax.frozen.along_answers import answer_rows
from rrs_jax.frozen.audio_bank import AudioBank
from rrs_jax.frozen.extraction import extract_all, first_tokens
from rrs_jax.frozen.prefix_states import PrefixStates
from rrs_jax.generate import Prompt, SamplingConfig
from rrs_jax.inputs.batching import EncodedPrompt
from rrs_jax.models.steering import steered
from rrs_jax.progress import Progress, say


class VanillaModel:
    """Answers to what a strategy may ask (`rrs_jax.strategies.FrozenModel`), by a run's model and clips.

    Args:
      context: the run, a `rrs_jax.run.context.RunContext`.
      rows: the questions, those of the training manifest for a strategy.
      bank: the embeddings of their clips, in the same order.
      prefix_states: gives the lower layers' kept states of the prompts to come, or None.
    """

    def __init__(
        self,
        context,
        rows: Sequence[dict],
        bank: AudioBank,
        prefix_states: Callable[[], PrefixStates | None] = lambda: None,
    ):
        self.context, self.config = context, context.config
        self.rows, self.bank, self.prefix_states = rows, bank, prefix_states
        self.model: nnx.Module = context.load_model()
        self.processor = context.load_processor()
        self.pool = prompt_pool(self.config.train)
        self.num_layers = self.model.config.text.num_hidden_layers
        self.refusal_ids = [self.processor.token_id(text) for text in self.config.rrs.refusal_tokens]
        self.end_id = self.processor.eos_token_ids[0]

    def prompt(self, sample: int, text: str | None) -> EncodedPrompt:
        return self.context.encode_prompt(self.bank, [int(sample)], text)

    def written_prompt(self, sample: int, text: str | None) -> EncodedPrompt:
        question = self.rows[sample]["question"]
        written = question if text is None else written_prompt(question, text)
        return self.context.encode_prompt(self.bank, [], written)

    def pool_prompt(self, sample: int, place: int) -> EncodedPrompt:
        prompt = self.pool[place]
        ask = self.prompt if prompt.spoken else self.written_prompt
        return ask(sample, prompt.text)

    @functools.cached_property
    def closing_tokens(self) -> int:
        one, other = (self.processor.encode(text)[::-1] for text in "ab")
        return [a == b for a, b in zip(one, other, strict=False)].index(False)

    def text_ids(self, text: str) -> list[int]:
        return self.processor.text_ids(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.processor.decode(ids)

    def representations(self, prompts: Sequence[EncodedPrompt]) -> np.ndarray:
        """Kept in the sweep's cache, where there is one."""
        return self._kept_states(prompts, self._keys(prompts), self._compute)

    def answer_states(
        self, prompts: Sequence[EncodedPrompt], answers: Sequence[Sequence[int]], tokens: int
    ) -> np.ndarray:
        """States along answers of at most `tokens` tokens, (len(prompts), tokens, D) as `along_answers.along`
        takes them, kept likewise."""
        rows = answer_rows(prompts, answers)

        def compute(wanted: dict[str, EncodedPrompt]) -> dict[str, np.ndarray]:
            with Progress(len(wanted), "the vanilla model along its answers", "answers") as progress:
                states = self._extract(list(wanted.values()), last=tokens, progress=progress)
            return dict(zip(wanted, states, strict=True))

        return self._kept_states(rows, self._keys(rows, "along", tokens), compute)

    def _kept_states(
        self,
        prompts: Sequence[EncodedPrompt],
        keys: Sequence[str],
        compute: Callable[[dict[str, EncodedPrompt]], dict[str, np.ndarray]],
    ) -> np.ndarray:
        cache = self.context.cache
        with cache.alone("states"):
            known = cache.states(keys)
            wanted = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in known}
            if wanted:
                made = compute(wanted)
                cache.keep_states(made)
                known |= made
        return np.stack([known[key] for key in keys])

    def _compute(self, prompts: dict[str, EncodedPrompt]) -> dict[str, np.ndarray]:
        """Representations by key: those above the kept prefix states, then the others from their first
        layer."""
        prefix_states = self.prefix_states()
        above, whole = {}, {}
        for key, prompt in prompts.items():
            (above if prefix_states is not None and prompt in prefix_states else whole)[key] = prompt
        made = {}
        with Progress(len(prompts), "computing the questions' representations", "prompts") as progress:
            for chosen, attach in ((above, prefix_states and prefix_states.attach), (whole, None)):
                if chosen:
                    values = self._extract(list(chosen.values()), attach=attach, progress=progress)
                    made |= zip(chosen, values, strict=True)
        return made

    def layer_states(
        self, prompts: Sequence[EncodedPrompt], layers: Sequence[int], audio_bank: jax.Array | None = None
    ) -> np.ndarray:
        with Progress(len(prompts), "hidden states", "prompts") as progress:
            return self._extract(prompts, audio_bank, layers=tuple(layers), progress=progress)

    def _extract(self, prompts, audio_bank=None, **options) -> np.ndarray:
        return extract_all(
            self.model,
            prompts,
            self.bank.array if audio_bank is None else audio_bank,
            batch_size=self.config.extract.batch_size,
            buckets=self.context.buckets([len(ids) for ids, _, _ in prompts]),
            **options,
        )

    def first_tokens(self, states: np.ndarray) -> np.ndarray:
        return first_tokens(self.model, states)

    def safety_vector(
        self, harmful_refusal: np.ndarray, benign: np.ndarray, *selection: float | str
    ) -> SafetyVector:
        refused, benign = put((harmful_refusal, benign), replicated(self.context.mesh))
        return self._fetched(equations.safety_vector(refused, benign, *self._head(), *selection))

    def safety_features(self, delta_mean: np.ndarray, *selection: float | str) -> SafetyVector:
        delta = put(delta_mean, replicated(self.context.mesh))
        return self._fetched(equations.safety_features(delta, *self._head(), *selection))

    def refusal_row(self) -> np.ndarray:
        return fetch(jax.jit(equations.refusal_row)(*self._head()))

    def _head(self) -> tuple[jax.Array, jax.Array]:
        """The output head (V, D) and the refusal tokens' ids (K,), on the devices."""
        ids = put(np.array(self.refusal_ids, np.int32), replicated(self.context.mesh))
        return self.model.output_head(), ids

    def _fetched(self, vector: SafetyVector) -> SafetyVector:
        return SafetyVector(*fetch(tuple(vector)))

    def steered(self, layers: Sequence[int], vectors: np.ndarray) -> nnx.Module:
        return steered(self.model, list(layers), vectors, replicated(self.context.mesh))

    def answers(self, prompts: Sequence[EncodedPrompt], max_new_tokens: int) -> list[list[int]]:
        """Kept in `responses.jsonl` of the run, or of the sweep, as they are made, so that a killed run goes
        on."""
        cache = self.context.cache
        path = (cache.folder or self.context.folder.path) / "responses.jsonl"
        with cache.alone("responses"):
            return self._answers(prompts, max_new_tokens, path)

    def _answers(self, prompts: Sequence[EncodedPrompt], max_new_tokens: int, path: Path) -> list[list[int]]:
        rows = processes.by_first(lambda: read_growing_jsonl(path, say))
        made = {row["key"]: row["tokens"] for row in rows}
        keys = self._keys(prompts, max_new_tokens)
        wanted = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in made}
        if not wanted:
            return [made[key] for key in keys]
        generator = self.context.cache.generator(
            self.model,
            SamplingConfig(max_new_tokens=max_new_tokens, greedy=True),
            self.processor.eos_token_ids,
            self.config.generate.batch_size,
            self.config.generate.cache_dtype,
        )
        with Progress(len(wanted), "the vanilla model's answers", "answers") as progress:

            def on_finished(key, tokens: list[int]) -> None:
                made[key] = list(map(int, tokens))
                append_jsonl(path, [{"key": key, "text": self.decode(tokens), "tokens": made[key]}])
                progress.update(1)

            asked = [Prompt(key=key, row=prompt) for key, prompt in wanted.items()]
            generator.generate(asked, self.bank.array, on_finished)
        return [made[key] for key in keys]

    def _keys(self, prompts: Sequence[EncodedPrompt], *more: object) -> list[str]:
        """Hashes of the model and of what each prompt is made of."""
        prints = dict(zip(self.bank.offsets, self.bank.prints, strict=True))
        model = self.context.model_digest(), self.config.model.dtype, self.config.model.quantize
        return [
            content_hash(model, list(map(int, ids)), [prints[o] for o in offsets], *more)
            for ids, offsets, _ in prompts
        ]
