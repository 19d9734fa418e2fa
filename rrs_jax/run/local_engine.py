"""Answers by the run's own models, for the evaluate stage.

Of several processes the first one decides what is asked, keeps the answers and has them judged
(`rrs_jax.run.evaluate_stage`); all of them compute the answers, each on its own devices.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from flax import nnx

from rrs_jax.data.manifest import audio_paths
from rrs_jax.distributed import processes
from rrs_jax.errors import UserError
from rrs_jax.evaluate.engine import GenerationRequest, OnFinished
from rrs_jax.evaluate.responses import MODEL_CONTENT
from rrs_jax.files import content_hash
from rrs_jax.frozen.along_answers import along, answer_rows, divergences
from rrs_jax.frozen.audio_bank import AudioBank, empty_audio_bank
from rrs_jax.frozen.extraction import extract_all
from rrs_jax.frozen.prefix_states import PrefixStates
from rrs_jax.generate import Generator, Prompt, SamplingConfig
from rrs_jax.inputs.batching import EncodedPrompt
from rrs_jax.run.context import RunContext
from rrs_jax.run.lower_layers import answers_alike, shared_layers
from rrs_jax.run.recorded_epochs import adapter_hash, model_after
from rrs_jax.run.vanilla_model import VanillaModel
from rrs_jax.strategies.served import Served
from rrs_jax.strategies.sft import answers

VANILLA, TUNED = "vanilla", "tuned"


class LocalEngine:
    """Models by name: VANILLA, TUNED, or the number of epochs after which it stood.

    serve: gives what answers for the run's strategy.
    """

    def __init__(self, context: RunContext, serve: Callable[[RunContext], Served]):
        self.context, self.config, self.serve = context, context.config, serve
        self.served_models: dict[str, Served] = {}
        self.prefix_states: tuple[tuple[str, ...], PrefixStates | None] | None = None  # with its bank's clips
        self.made_bank: tuple[AudioBank, dict[str, int]] | None = None  # of other clips than the manifest's
        # A sweep's vanilla model answers once for all runs, whatever they train.
        self.alike = answers_alike(context.config) and context.cache.folder is None
        self.shared_layers = shared_layers(context.config) if self.alike and not processes.several() else 0
        self.lead = processes.Leader(
            {
                "serve": self._serve,
                "answer": self._answer,
                "answer_texts": self._answer_texts,
                "compare": self._compare,
            }
        )

    def made_by(self, which: str) -> dict:
        """JSON values that decide a model's answers besides prompts and clips."""
        self.lead.call("serve", which)
        return {
            "model": self.config.model.path,
            MODEL_CONTENT: self.context.model_digest(),
            **self.served_models[which].made_by,
            "sampling": vars(self._sampling()),
            "cache_dtype": self.config.generate.cache_dtype,
            "seed": self.config.seed,
        }

    def answer(self, which: str, requests: Sequence[GenerationRequest], on_finished: OnFinished) -> None:
        asked = [
            [list(request.key), request.text, request.audio and str(request.audio)] for request in requests
        ]
        self.lead.call("answer", which, asked, on_answer=lambda i, text: on_finished(requests[i], text))

    def answer_texts(
        self, prompts: Sequence[tuple[str | None, str]], on_answer: Callable[[int, str], None]
    ) -> None:
        """The vanilla model's greedy answers to written prompts, for `own` judges."""
        self.lead.call("answer_texts", [list(prompt) for prompt in prompts], on_answer=on_answer)

    def compare(self, which: str, asked: Sequence[tuple[str | None, Path | None]], tokens: int) -> list[dict]:
        """A model beside the vanilla one along its greedy answers of at most `tokens` tokens.

        asked: text and clip of each prompt. Returns for each the vanilla model's `answer` and its `tokens`,
        with the end where it ended; `divergence`, KL(vanilla ‖ model) in nats, the mean over these tokens;
        and `unchanged`, whether the model's likeliest token is the vanilla model's at each of them, so that
        its greedy answer is the same.
        """
        self.lead.call("serve", which)
        return self.lead.call("compare", which, [[text, clip and str(clip)] for text, clip in asked], tokens)

    def _serve(self, which: str) -> None:
        if which in self.served_models:
            return
        if which == VANILLA:
            self.served_models[which] = Served([self._vanilla()], {"adapter": None})
        elif which == TUNED:
            self.served_models[which] = self.serve(self.context)
        else:
            with processes.in_step():
                model = model_after(self.context, int(which))
            self.served_models[which] = Served([model], {"adapter": adapter_hash(model)})

    def _vanilla(self) -> nnx.Module:
        """The vanilla model, with adapters that change nothing where the trained model answers too: what is
        compiled for one then serves the other."""
        return self.context.fresh_adapters() if self.alike else self.context.load_model()

    def _answer(
        self, which: str, asked: Sequence, on_answer: Callable[[int, str], None] = lambda i, text: None
    ) -> None:
        """asked: of each request its key, text and clip."""
        served = self.served_models[which]
        wanted = [(text, audio) for _, text, audio in asked]
        bank, clip_of = self._bank(wanted)
        rows = self._encoded(wanted, bank, clip_of, served.system)
        seeds = [int(content_hash(self.config.seed, list(key))[:8], 16) for key, _, _ in asked]
        prompts = [Prompt(i, row, seed) for i, (row, seed) in enumerate(zip(rows, seeds, strict=True))]
        decode = self.context.load_processor().decode
        prefix_states = self._prefix_states(which, rows, bank)
        chosen = _chosen(served, rows, bank)
        for place, model in enumerate(served.models):
            own = [prompts[i] for i in np.flatnonzero(chosen == place)]
            generator = self._generator(model, self._sampling())
            generator.generate(own, bank.array, lambda i, tokens: on_answer(i, decode(tokens)), prefix_states)

    def _compare(self, which: str, asked: Sequence, tokens: int) -> list[dict]:
        context, served = self.context, self.served_models[which]
        bank, clip_of = self._bank(asked)
        frozen = VanillaModel(context, [], bank)
        prompts = self._encoded(asked, bank, clip_of)
        made = answers(frozen, prompts, tokens)
        before = frozen.answer_states(prompts, made, tokens)
        prompts = self._encoded(asked, bank, clip_of, served.system)
        after, rows = np.empty_like(before), answer_rows(prompts, made)
        chosen = _chosen(served, prompts, bank)
        for place, model in enumerate(served.models):
            if len(own := np.flatnonzero(chosen == place)):
                after[own] = extract_all(
                    model,
                    [rows[i] for i in own],
                    bank.array,
                    batch_size=self.config.extract.batch_size,
                    buckets=context.buckets([len(ids) for ids, _, _ in rows]),
                    last=tokens,
                )
        found = divergences(frozen.model, along(before, made), along(after, made))
        ends = np.cumsum([len(answer) for answer in made])[:-1]
        return [
            {
                "answer": frozen.decode(answer),
                "tokens": len(answer),
                "divergence": round(float(divergence.mean()), 8),
                "unchanged": bool(same.all()),
            }
            for answer, divergence, same in zip(made, *(np.split(part, ends) for part in found), strict=True)
        ]

    def _encoded(
        self, asked: Sequence, bank: AudioBank, clip_of: dict[str, int], system: str | None = None
    ) -> list[EncodedPrompt]:
        """asked: text and clip of each prompt."""
        return [
            self.context.encode_prompt(bank, [] if clip is None else [clip_of[clip]], text, system)
            for text, clip in asked
        ]

    def _prefix_states(
        self, which: str, rows: Sequence[EncodedPrompt], bank: AudioBank
    ) -> PrefixStates | None:
        """The layers that all models share, computed when the first of them, VANILLA, is asked, and kept for
        the others; None for other clips."""
        if which == VANILLA and self.shared_layers and rows:
            self.prefix_states = None  # two at once may not fit
            self.prefix_states = (
                bank.prints,
                self.context.make_prefix_states(self.shared_layers, rows, bank, keys_values=True),
            )
        clips, prefix_states = self.prefix_states or (None, None)
        return prefix_states if clips == bank.prints else None

    def _answer_texts(
        self, prompts: Sequence, on_answer: Callable[[int, str], None] = lambda i, text: None
    ) -> None:
        context = self.context
        generator = self._generator(context.load_model(), self._sampling(greedy=True, max_new_tokens=64))
        encode, decode = context.load_processor().encode, context.load_processor().decode
        asked = [
            Prompt(key=i, row=(encode(text, (), system), [], [])) for i, (system, text) in enumerate(prompts)
        ]
        bank = empty_audio_bank(context.load_model())
        generator.generate(asked, bank.array, lambda i, tokens: on_answer(i, decode(tokens)))

    def _sampling(self, **changes) -> SamplingConfig:
        values = self.config.generate
        return SamplingConfig.from_generation_config(
            self.context.load_processor().generation,
            **{
                "greedy": values.greedy,
                "max_new_tokens": values.max_new_tokens,
                "temperature": values.temperature,
                "top_p": values.top_p,
                "top_k": values.top_k,
                "repetition_penalty": values.repetition_penalty,
            }
            | changes,
        )

    def _generator(self, model: nnx.Module, sampling: SamplingConfig) -> Generator:
        config, eos = self.config.generate, self.context.load_processor().eos_token_ids
        return self.context.cache.generator(model, sampling, eos, config.batch_size, config.cache_dtype)

    def _bank(self, asked: Sequence) -> tuple[AudioBank, dict[str, int]]:
        """Embeddings of the prompts' clips, and which one is whose: the run's own where they are its
        evaluation manifest's, else those that were made last where they are among them. asked: text and clip
        of each prompt."""
        context, clips = self.context, [clip for _, clip in asked if clip is not None]
        if not clips:
            return empty_audio_bank(context.load_model()), {}
        if not self.config.evaluate.questions:
            own = [
                str(path)
                for path in audio_paths(context.folder.evaluation_manifest, context.read_evaluation_rows())
            ]
            if set(clips) <= set(own):
                return context.encode_clips("evaluation"), {path: i for i, path in enumerate(own)}
        if self.made_bank and set(clips) <= self.made_bank[1].keys():
            return self.made_bank
        self.made_bank, different = None, list(dict.fromkeys(clips))  # two at once may not fit
        with processes.in_step():
            if missing := [path for path in different if not Path(path).is_file()]:
                raise UserError(
                    f"{missing[0]}: is no file here; put the clips, and $RRS_JAX_CACHE with the speech, where"
                    " all hosts see it."
                )
        bank = context.cache.audio_bank(
            context.load_model(),
            context.load_processor(),
            [Path(path) for path in different],
            batch_size=self.config.extract.batch_size,
            cache=None,
            key=context.model_digest(),
        )
        self.made_bank = bank, {path: i for i, path in enumerate(different)}
        return self.made_bank


def _chosen(served: Served, prompts: Sequence[EncodedPrompt], bank: AudioBank) -> np.ndarray:
    """Which of the served models answers each prompt, int (prompts,)."""
    return served.choose(prompts, bank.array) if served.choose else np.zeros(len(prompts), int)
