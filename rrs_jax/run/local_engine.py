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
from rrs_jax.frozen.audio_bank import AudioBank, empty_audio_bank, make_audio_bank
from rrs_jax.frozen.prefix_states import PrefixStates
from rrs_jax.generate import Generator, Prompt, SamplingConfig
from rrs_jax.inputs.batching import EncodedPrompt
from rrs_jax.run.context import RunContext
from rrs_jax.run.lower_layers import answers_alike, shared_layers
from rrs_jax.run.recorded_epochs import adapter_hash, model_after
from rrs_jax.strategies.served import Served

VANILLA, TUNED = "vanilla", "tuned"


class LocalEngine:
    """Models by name: VANILLA, TUNED, or the number of epochs after which it stood.

    serve: gives what answers for the run's strategy.
    """

    def __init__(self, context: RunContext, serve: Callable[[RunContext], Served]):
        self.context, self.config, self.serve = context, context.config, serve
        self.served_models: dict[str, Served] = {}
        self.prefix_states: tuple[tuple[str, ...], PrefixStates | None] | None = None  # with its bank's clips
        # A sweep's vanilla model answers once for all runs, whatever they train.
        self.alike = answers_alike(context.config) and context.cache.folder is None
        self.shared_layers = shared_layers(context.config) if self.alike and not processes.several() else 0
        self.lead = processes.Leader(
            {"serve": self._serve, "answer": self._answer, "answer_texts": self._answer_texts}
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
        context, served = self.context, self.served_models[which]
        bank, clip_of = self._bank([audio for _, _, audio in asked if audio is not None])
        prompts = []
        for i, (key, text, audio) in enumerate(asked):
            clips = [] if audio is None else [clip_of[audio]]
            seed = int(content_hash(self.config.seed, list(key))[:8], 16)
            prompts.append(
                Prompt(key=i, row=context.encode_prompt(bank, clips, text, served.system), seed=seed)
            )
        decode = context.load_processor().decode
        prefix_states = self._prefix_states(which, [prompt.row for prompt in prompts], bank)
        chosen = (
            served.choose([prompt.row for prompt in prompts], bank.array)
            if served.choose
            else np.zeros(len(prompts))
        )
        for place, model in enumerate(served.models):
            own = [prompt for prompt, which in zip(prompts, chosen, strict=True) if which == place]
            generator = self._generator(model, self._sampling())
            generator.generate(own, bank.array, lambda i, tokens: on_answer(i, decode(tokens)), prefix_states)

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

    def _bank(self, clips: Sequence[str]) -> tuple[AudioBank, dict[str, int]]:
        """Embeddings of these clips, and which one is whose: the run's own where they are its evaluation
        manifest's."""
        context = self.context
        if not clips:
            return empty_audio_bank(context.load_model()), {}
        if not self.config.evaluate.questions:
            own = [
                str(path)
                for path in audio_paths(context.folder.evaluation_manifest, context.read_evaluation_rows())
            ]
            if set(clips) <= set(own):
                return context.encode_clips("evaluation"), {path: i for i, path in enumerate(own)}
        different = list(dict.fromkeys(clips))
        with processes.in_step():
            if missing := [path for path in different if not Path(path).is_file()]:
                raise UserError(
                    f"{missing[0]}: is no file here; put the clips, and $RRS_JAX_CACHE with the speech, where"
                    " all hosts see it."
                )
        bank = make_audio_bank(
            context.load_model(),
            context.load_processor().mel,
            [Path(path) for path in different],
            batch_size=self.config.extract.batch_size,
        )
        return bank, {path: i for i, path in enumerate(different)}
