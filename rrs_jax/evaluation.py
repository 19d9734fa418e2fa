"""The evaluate stage: which questions in which setting, answered by which engine, judged by whom."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from rrs_jax.audio_bank import empty_audio_bank, make_audio_bank
from rrs_jax.data.speech import speak_all
from rrs_jax.data.voices import draw_voice, read_voices
from rrs_jax.epochs import evaluated_epochs, model_after
from rrs_jax.errors import UserError
from rrs_jax.evaluate.air_bench import air_bench, read_meta
from rrs_jax.evaluate.choice import chosen_rows
from rrs_jax.evaluate.compare import compare_folders
from rrs_jax.evaluate.endpoint import Endpoint, EndpointConfig, reply_cache
from rrs_jax.evaluate.endpoint_engine import endpoint_engine
from rrs_jax.evaluate.judges import JudgeSettings
from rrs_jax.evaluate.question_sets import question_sets_name, read_question_sets
from rrs_jax.evaluate.run import Generate, GenerationRequest, OnFinished, evaluate_model
from rrs_jax.evaluate.settings import setting_rows
from rrs_jax.files import content_hash, read_json, write_json
from rrs_jax.generate import Generator, Prompt, SamplingConfig
from rrs_jax.inputs.audio import check_audios
from rrs_jax.models.lora import LoRAParam
from rrs_jax.serving import Serving
from rrs_jax.session import Session


def evaluate_stage(session: Session, served: Callable[[Session], Serving]) -> dict:
    """The model before and after training, under the same questions, prompts and random numbers.

    `served` gives what answers for the run's strategy.
    """
    config = session.config
    tuned = config.strategy != "vanilla"
    for place, setting in enumerate(config.evaluate.setting):
        evaluation = Evaluation(session, setting, helpfulness=place == 0)
        vanilla = None
        if config.evaluate.vanilla or not tuned:
            engine = evaluation.engine("vanilla", lambda: Serving([session.vanilla], {"adapter": None}))
            vanilla = evaluation.of("vanilla", engine)
        for epoch in evaluated_epochs(config) if place == 0 else ():
            model = model_after(session, epoch)
            served_then = Serving([model], {"adapter": adapter_hash(model)})
            engine = evaluation.engine(config.strategy, lambda served_then=served_then: served_then)
            evaluation.of(config.strategy, engine, vanilla, epoch)
        if tuned:
            engine = evaluation.engine(config.strategy, lambda: served(session))
            evaluation.of(config.strategy, engine, vanilla)
    return {}


class Evaluation:
    """What the evaluations in one setting share: rows with the setting's clips, judges, the answers' settings.

    helpfulness: whether AIR-Bench is asked too, where the config has it.
    """

    def __init__(self, session: Session, setting: str, helpfulness: bool):
        self.session, self.config, self.setting = session, session.config, setting
        config = self.config.evaluate
        others = [value for value, usual in ((setting, "spoken"), (config.split, "all")) if value != usual]
        parts = [question_sets_name(config.questions), *others]
        self.suffix = "".join(f"-{part}" for part in parts if part)  # of the folders in RUN/eval
        self.rows, self.audio_folder = self._rows()
        judge = self.config.judge
        self.judges = JudgeSettings(
            judge.url, judge.model, judge.key_variable, judge.concurrency, judge.timeout, judge.retries,
            judge.temperature, generate=None if self.config.endpoint.url else self._answer_texts,
        )  # fmt: skip
        self.air_bench_items = None
        if config.air_bench is not None and helpfulness:
            if not judge.url or not judge.model:
                raise UserError("evaluate.air_bench: needs judge.url and judge.model, the judge of the answers.")
            self.air_bench_items = read_meta(config.air_bench, config.air_bench_limit)

    def of(
        self, name: str, engine: tuple[Generate, dict], vanilla: dict | None = None, epoch: int | None = None
    ) -> dict:
        """Evaluates one model; writes RUN/eval/NAME (with the questions' and the setting's name behind it), or
        RUN/eval/epochs/EPOCH/NAME and its rates alone."""
        config, folder = self.config.evaluate, self.session.folder.evaluations
        if epoch is not None:
            folder = folder / "epochs" / str(epoch)
        generate, made_by = engine
        served = self.config.endpoint.url
        write_every = 0.0 if served else 2.0  # what a server answers may cost money
        modes = config.modes if served else self.session.modes
        audios = [row["audio"] for row in self.rows if row["audio"]]
        made_by |= {"clips": content_hash([content_hash((self.audio_folder / audio).read_bytes()) for audio in audios])}
        answers = content_hash(
            made_by, self.config.model.dtype, self.config.model.quantize,
            [[row["id"], row["label"], row["question"]] for row in self.rows],
            config.samples, modes, config.over_refusal_modes, config.text_only_variant, self.suffix,
        )  # fmt: skip
        shared = self.session.shared
        with shared.alone(f"vanilla-{answers}") if name == "vanilla" else contextlib.nullcontext():
            if name == "vanilla":
                shared.borrow(answers, folder / (name + self.suffix))
            summary = evaluate_model(
                name + self.suffix, self.rows, generate, modes=modes, samples=config.samples,
                judge_names=config.judges, judge_settings=self.judges, folder=folder,
                setting=self.setting, text_only_variant=config.text_only_variant,
                over_refusal_modes=config.over_refusal_modes, audio_folder=self.audio_folder, made_by=made_by,
                model=made_by["model"], strategy=name, vanilla=vanilla, write_every=write_every,
            )  # fmt: skip
            if name == "vanilla":
                shared.lend(answers, folder / (name + self.suffix))
        if epoch is not None:
            return summary
        if vanilla is not None:
            path = folder / (name + self.suffix)
            write_json(path / "compared_to_vanilla.json", compare_folders(folder / ("vanilla" + self.suffix), path))
        if self.air_bench_items is not None:
            judge = self.config.judge
            endpoint = EndpointConfig(
                judge.url, judge.model, judge.key_variable, judge.concurrency, judge.timeout, judge.retries
            )
            made_by.pop("clips")
            air_bench(
                name, self.air_bench_items, generate, Endpoint(endpoint, reply_cache()), folder=folder, made_by=made_by,
                write_every=write_every,
            )  # fmt: skip
        return summary

    def engine(self, name: str, serving: Callable[[], Serving]) -> tuple[Generate, dict]:
        """What answers, and what decides the answers besides prompts and clips."""
        config = self.config
        if not config.endpoint.url:
            sampling, local = self._sampling(), serving()
            made_by = {"model": config.model.path, **local.made_by, "sampling": vars(sampling),
                       "cache_dtype": config.generate.cache_dtype, "seed": config.seed}  # fmt: skip
            return self._local_engine(local, sampling), made_by
        served = config.endpoint.vanilla_model if name == "vanilla" else config.endpoint.model
        if name == "vanilla" and config.strategy == "vanilla":
            served = config.endpoint.model
        endpoint = EndpointConfig(
            config.endpoint.url, served, config.endpoint.key_variable, config.endpoint.concurrency,
            config.endpoint.timeout, config.endpoint.retries,
        )  # fmt: skip
        names = ("max_new_tokens", "greedy", "temperature", "top_p", "top_k", "repetition_penalty")
        sampling = {name: config.generate[name] for name in names}
        mark = self.session.folder.path / ".done" / "train.json"
        # The server's model may be retrained under the same name; the run knows by its adapter.
        adapter = read_json(mark).get("adapter") if name != "vanilla" and mark.is_file() else None
        made_by = {"model": served, "adapter": adapter, "endpoint": config.endpoint.url, "sampling": sampling,
                   "seed": config.seed}  # fmt: skip
        return endpoint_engine(endpoint, sampling, config.seed), made_by

    def _rows(self) -> tuple[list[dict], Path]:
        """The questions, spoken, with the setting's clips; and the folder to which their audio paths are relative."""
        session, config = self.session, self.config.evaluate
        if config.questions:
            rows, folder = chosen_rows(read_question_sets(config.questions), config.split, config.limit), Path(".")
            mute = [row for row in rows if not row["audio"]]
            if mute and (set(config.modes) != {"text_only"} or self.setting != "spoken"):
                drawn = read_voices(",".join(self.config.data.voices))
                texts = [(row["question"], draw_voice(row["question"], self.config.data.seed, drawn)) for row in mute]
                clips = speak_all(texts, max_cost_usd=self.config.data.max_cost_usd)
                for row, (_, voice), (path, seconds) in zip(mute, texts, clips, strict=True):
                    row |= {"audio": str(path.absolute()), "seconds": round(seconds, 3), "voice": voice.name}
            given = [row["audio"] for row in rows if row["audio"] and row["voice"] is None]
            check_audios(given, max_seconds=self.config.data.audio_max_seconds)
        else:
            rows, folder = session.evaluation_rows, session.folder.evaluation_manifest.parent
        voices = None
        if self.setting in ("spelled", "other_voices"):
            voices = read_voices(",".join(self.config.data.voices))
        if self.setting == "other_voices":
            voices = tuple(set(read_voices("")) - set(voices)) or voices
        rows = setting_rows(
            self.setting, rows, folder, session.folder.path / "data" / self.setting, voices=voices,
            seed=self.config.data.seed, max_cost_usd=self.config.data.max_cost_usd,
        )  # fmt: skip
        return rows, folder

    def _sampling(self, **changes) -> SamplingConfig:
        values = self.config.generate
        return SamplingConfig.from_generation_config(
            self.session.processor.generation, **{
                "greedy": values.greedy, "max_new_tokens": values.max_new_tokens, "temperature": values.temperature,
                "top_p": values.top_p, "top_k": values.top_k, "repetition_penalty": values.repetition_penalty,
            } | changes,
        )  # fmt: skip

    def _local_engine(self, serving: Serving, sampling: SamplingConfig) -> Generate:
        session, config = self.session, self.config

        def generate(requests: Sequence[GenerationRequest], on_finished: OnFinished) -> None:
            bank, clip_of = self._bank([request.audio for request in requests if request.audio is not None])
            prompts = []
            for i, request in enumerate(requests):
                clips = [] if request.audio is None else [clip_of[request.audio]]
                seed = int(content_hash(config.seed, list(request.key))[:8], 16)
                prompts.append(Prompt(key=i, row=session.encode(bank, clips, request.text, serving.system), seed=seed))
            decode = session.processor.decode
            chosen = serving.choose([prompt.row for prompt in prompts], bank.array) if serving.choose else np.zeros(len(prompts))
            for place, model in enumerate(serving.models):
                own = [prompt for prompt, which in zip(prompts, chosen, strict=True) if which == place]
                generator = self._generator(model, sampling)
                generator.generate(own, bank.array, lambda i, tokens: on_finished(requests[i], decode(tokens)))

        return generate

    def _generator(self, model: nnx.Module, sampling: SamplingConfig) -> Generator:
        config, eos = self.config.generate, self.session.processor.eos_token_ids
        return self.session.shared.generator(model, sampling, eos, config.batch_size, config.cache_dtype)

    def _bank(self, clips: Sequence[Path]):
        """Embeddings of these clips: the run's own where they are its evaluation manifest's."""
        session = self.session
        if not clips:
            return empty_audio_bank(session.vanilla), {}
        if not self.config.evaluate.questions and self.setting == "spoken":
            own = [self.audio_folder / row["audio"] for row in session.evaluation_rows]
            if set(clips) <= set(own):
                return session.evaluation_bank, {path: i for i, path in enumerate(own)}
        different = list(dict.fromkeys(clips))
        bank = make_audio_bank(
            session.vanilla, session.processor.mel, different, batch_size=self.config.extract.batch_size
        )
        return bank, {path: i for i, path in enumerate(different)}

    def _answer_texts(
        self, prompts: Sequence[tuple[str | None, str]], on_answer: Callable[[int, str], None]
    ) -> None:
        """The vanilla model's greedy answers to written prompts, for `own` judges."""
        session = self.session
        generator = self._generator(session.vanilla, self._sampling(greedy=True, max_new_tokens=64))
        encode, decode = session.processor.encode, session.processor.decode
        asked = [Prompt(key=i, row=(encode(text, (), system), [], [])) for i, (system, text) in enumerate(prompts)]
        bank = empty_audio_bank(session.vanilla)
        generator.generate(asked, bank.array, lambda i, tokens: on_answer(i, decode(tokens)))


def adapter_hash(model: nnx.Module) -> str:
    leaves = jax.device_get([leaf[...] for _, leaf in nnx.to_flat_state(nnx.state(model, LoRAParam))])
    return content_hash(*(leaf.tobytes() for leaf in leaves))
