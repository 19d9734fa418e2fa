"""The evaluate stage: which questions in which setting, answered by which engine, judged by whom."""

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rrs_jax.data.speech import speak_all
from rrs_jax.data.voices import draw_voice, read_voices
from rrs_jax.errors import UserError
from rrs_jax.evaluate.air_bench import air_bench, read_meta
from rrs_jax.evaluate.compare import compare_folders
from rrs_jax.evaluate.endpoint import Endpoint, EndpointConfig, reply_cache
from rrs_jax.evaluate.endpoint_engine import endpoint_engine
from rrs_jax.evaluate.judges.judge import JudgeSettings
from rrs_jax.evaluate.question_sets import question_sets_name, read_question_sets
from rrs_jax.evaluate.question_subset import chosen_rows
from rrs_jax.evaluate.run import Generate, evaluate_model
from rrs_jax.evaluate.settings import setting_rows
from rrs_jax.files import content_hash, read_json, write_json
from rrs_jax.inputs.audio import check_audios
from rrs_jax.run.context import Session
from rrs_jax.run.local_engine import TUNED, VANILLA, LocalEngine
from rrs_jax.run.recorded_epochs import evaluated_epochs
from rrs_jax.strategies.served import Serving


def evaluate_stage(session: Session, served: Callable[[Session], Serving]) -> dict:
    """The model before and after training, under the same questions, prompts and random numbers.

    `served` gives what answers for the run's strategy. Of several processes the first one does it all but for
    the computing of answers.
    """
    local = LocalEngine(session, served)
    return local.lead.run(lambda: _evaluate(session, local))


def _evaluate(session: Session, local: LocalEngine) -> dict:
    config = session.config
    tuned = config.strategy != "vanilla"
    for place, setting in enumerate(config.evaluate.setting):
        evaluation = Evaluation(session, local, setting, helpfulness=place == 0)
        vanilla = None
        if config.evaluate.vanilla or not tuned:
            engine = evaluation.engine("vanilla", VANILLA)
            vanilla = evaluation.of("vanilla", engine)
        for epoch in evaluated_epochs(config) if place == 0 else ():
            evaluation.of(config.strategy, evaluation.engine(config.strategy, str(epoch)), vanilla, epoch)
        if tuned:
            evaluation.of(config.strategy, evaluation.engine(config.strategy, TUNED), vanilla)
    return {}


class Evaluation:
    """What the evaluations in one setting share: rows with the setting's clips, judges, the answers'
    settings.

    helpfulness: whether AIR-Bench is asked too, where the config has it.
    """

    def __init__(self, session: Session, local: LocalEngine, setting: str, helpfulness: bool):
        self.session, self.local, self.config, self.setting = session, local, session.config, setting
        config = self.config.evaluate
        parts = [question_sets_name(config.questions), setting if setting != "spoken" else ""]
        self.suffix = "".join(f"-{part}" for part in parts if part)  # of the folders in RUN/eval
        self.rows, self.audio_folder = self._rows()
        judge = self.config.judge
        self.judges = JudgeSettings(
            judge.url,
            judge.model,
            judge.key_variable,
            judge.concurrency,
            judge.timeout,
            judge.retries,
            judge.temperature,
            generate=None if self.config.endpoint.url else local.answer_texts,
        )
        self.air_bench_items = None
        if config.air_bench is not None and helpfulness:
            if not judge.url or not judge.model:
                raise UserError(
                    "evaluate.air_bench: needs judge.url and judge.model, the judge of the answers."
                )
            self.air_bench_items = read_meta(config.air_bench)

    def of(
        self, name: str, engine: tuple[Generate, dict], vanilla: dict | None = None, epoch: int | None = None
    ) -> dict:
        """Evaluates one model; writes RUN/eval/NAME (with the questions' and the setting's name behind it),
        or RUN/eval/epochs/EPOCH/NAME and its rates alone."""
        config, folder = self.config.evaluate, self.session.folder.evaluations
        if epoch is not None:
            folder = folder / "epochs" / str(epoch)
        generate, made_by = engine
        served = self.config.endpoint.url
        write_every = 0.0 if served else 2.0  # what a server answers may cost money
        modes = config.modes if served else self.session.modes
        audios = [row["audio"] for row in self.rows if row["audio"]]
        made_by |= {
            "clips": content_hash(
                [content_hash((self.audio_folder / audio).read_bytes()) for audio in audios]
            )
        }
        answers = content_hash(
            made_by,
            self.config.model.dtype,
            self.config.model.quantize,
            [[row["id"], row["label"], row["question"]] for row in self.rows],
            config.samples,
            modes,
            config.over_refusal_modes,
            config.text_only_variant,
            self.suffix,
        )
        shared = self.session.shared
        with shared.alone(f"vanilla-{answers}") if name == "vanilla" else contextlib.nullcontext():
            if name == "vanilla":
                shared.borrow(answers, folder / (name + self.suffix))
            summary = evaluate_model(
                name + self.suffix,
                self.rows,
                generate,
                modes=modes,
                samples=config.samples,
                judge_names=config.judges,
                judge_settings=self.judges,
                folder=folder,
                setting=self.setting,
                text_only_variant=config.text_only_variant,
                over_refusal_modes=config.over_refusal_modes,
                audio_folder=self.audio_folder,
                made_by=made_by,
                model=made_by["model"],
                strategy=name,
                vanilla=vanilla,
                write_every=write_every,
            )
            if name == "vanilla":
                shared.lend(answers, folder / (name + self.suffix))
        if epoch is not None:
            return summary
        if vanilla is not None:
            path = folder / (name + self.suffix)
            write_json(
                path / "compared_to_vanilla.json", compare_folders(folder / ("vanilla" + self.suffix), path)
            )
        if self.air_bench_items is not None:
            judge = self.config.judge
            endpoint = EndpointConfig(
                judge.url, judge.model, judge.key_variable, judge.concurrency, judge.timeout, judge.retries
            )
            made_by.pop("clips")
            air_bench(
                name,
                self.air_bench_items,
                generate,
                Endpoint(endpoint, reply_cache()),
                folder=folder,
                made_by=made_by,
                write_every=write_every,
            )
        return summary

    def engine(self, name: str, which: str) -> tuple[Generate, dict]:
        """What answers, and what decides the answers besides prompts and clips. `which`: of the local
        models."""
        config = self.config
        if not config.endpoint.url:
            return partial(self.local.answer, which), self.local.made_by(which)
        served = config.endpoint.vanilla_model if name == "vanilla" else config.endpoint.model
        if name == "vanilla" and config.strategy == "vanilla":
            served = config.endpoint.model
        endpoint = EndpointConfig(
            config.endpoint.url,
            served,
            config.endpoint.key_variable,
            config.endpoint.concurrency,
            config.endpoint.timeout,
            config.endpoint.retries,
        )
        names = ("max_new_tokens", "greedy", "temperature", "top_p", "top_k", "repetition_penalty")
        sampling = {name: config.generate[name] for name in names}
        mark = self.session.folder.path / ".done" / "train.json"
        # The server's model may be retrained under the same name; the run knows by its adapter.
        adapter = read_json(mark).get("adapter") if name != "vanilla" and mark.is_file() else None
        made_by = {
            "model": served,
            "adapter": adapter,
            "endpoint": config.endpoint.url,
            "sampling": sampling,
            "seed": config.seed,
        }
        return endpoint_engine(endpoint, sampling, config.seed), made_by

    def _rows(self) -> tuple[list[dict], Path]:
        """The questions, spoken, with the setting's clips; and the folder to which their audio paths are
        relative."""
        session, config = self.session, self.config.evaluate
        if config.questions:
            rows, folder = chosen_rows(read_question_sets(config.questions), config.limit), Path(".")
            mute = [row for row in rows if not row["audio"]]
            if mute and (set(config.modes) != {"text_only"} or self.setting != "spoken"):
                drawn = read_voices(",".join(self.config.data.voices))
                texts = [
                    (row["question"], draw_voice(row["question"], self.config.data.seed, drawn))
                    for row in mute
                ]
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
            self.setting,
            rows,
            folder,
            session.folder.path / "data" / self.setting,
            voices=voices,
            seed=self.config.data.seed,
            max_cost_usd=self.config.data.max_cost_usd,
        )
        return rows, folder
