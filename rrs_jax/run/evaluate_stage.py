"""The evaluate stage: which questions in which setting, answered by which engine, judged by whom."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from rrs_jax.config.prompts import TASK_PROMPTS
from rrs_jax.data.speech import speak_missing
from rrs_jax.data.voices import Voice, read_voices
from rrs_jax.errors import UserError
from rrs_jax.evaluate.air_bench import air_bench
from rrs_jax.evaluate.air_bench_items import read_meta
from rrs_jax.evaluate.compare import compare_folders
from rrs_jax.evaluate.endpoint import Endpoint, EndpointConfig, reply_cache
from rrs_jax.evaluate.endpoint_engine import endpoint_engine
from rrs_jax.evaluate.engine import Engine
from rrs_jax.evaluate.judges.judge import Judge
from rrs_jax.evaluate.judges.registry import make_judges
from rrs_jax.evaluate.plan import EvaluationPlan, Questions, Target
from rrs_jax.evaluate.question_sets import question_sets_name, read_question_sets
from rrs_jax.evaluate.question_subset import chosen_rows
from rrs_jax.evaluate.responses import CLIP_SUM
from rrs_jax.evaluate.run import evaluate_model
from rrs_jax.evaluate.settings import setting_rows
from rrs_jax.files import content_hash, read_json, with_sum, write_json
from rrs_jax.run.clips import clip_digest
from rrs_jax.run.context import RunContext
from rrs_jax.run.data_stage import rows_with_sound, skips_bad_rows
from rrs_jax.run.deployment import measure_deployment
from rrs_jax.run.everyday import spoken_everyday, with_everyday
from rrs_jax.run.local_engine import TUNED, VANILLA, LocalEngine
from rrs_jax.run.logged_rates import log_rates
from rrs_jax.run.recorded_epochs import evaluated_epochs
from rrs_jax.run.servers import judge_settings, sampling_of, served_model
from rrs_jax.strategies.served import Served


def evaluate_stage(context: RunContext, serve: Callable[[RunContext], Served]) -> dict:
    """Evaluates the model before and after training on the same questions, prompts and random numbers.

    `serve` returns what answers for the run's strategy. Of several processes the first one does everything
    except computing answers, in which all take part.
    """
    local = LocalEngine(context, serve)
    return local.lead.run(lambda: _evaluate(context, local))


def _evaluate(context: RunContext, local: LocalEngine) -> dict:
    config = context.config
    trained = config.strategy != "vanilla"
    done: list[tuple[Target, dict]] = []
    for place, setting in enumerate(config.evaluate.setting):
        # AIR-Bench and the epochs between know no settings: they come with the first one.
        evaluation = Evaluation(context, local, setting, with_air_bench=place == 0)
        vanilla = evaluation.vanilla() if config.evaluate.vanilla or not trained else None
        for epoch in evaluated_epochs(config) if place == 0 else ():
            evaluation.epoch(epoch, vanilla)
        if trained:
            evaluation.trained(vanilla)
        done += evaluation.done
    log_rates(context, done)
    if trained and (config.evaluate.everyday or set(config.evaluate.setting) & set(TASK_PROMPTS)):
        measure_deployment(context, local)
    return {}


class Evaluation:
    """The evaluations of a run's models in one setting, which share questions, clips and judges.

    `with_air_bench`: AIR-Bench is asked too, where the config names its folder. The attribute `done` has each
    evaluation's place and summary.
    """

    def __init__(self, context: RunContext, local: LocalEngine, setting: str, with_air_bench: bool):
        self.context, self.local, self.config, self.setting = context, local, context.config, setting
        self.done: list[tuple[Target, dict]] = []
        config = self.config.evaluate
        parts = [question_sets_name(config.questions), setting if setting != "spoken" else ""]
        self.suffix = "".join(f"-{part}" for part in parts if part)  # of the folders in RUN/eval
        self.plan = EvaluationPlan(
            modes=config.modes if self.config.endpoint.url else context.modes(),
            samples=config.samples,
            text_only_variant=config.text_only_variant,
            over_refusal_modes=config.over_refusal_modes,
        )
        self.questions = self._questions()
        self.judges = self._judges()
        self.air_bench_items = self._air_bench_items() if with_air_bench else None

    def vanilla(self) -> dict:
        """Evaluates the model before training in RUN/eval/vanilla; returns the summary.

        Of a sweep's runs, one evaluates it and the others copy its files.
        """
        engine, target = self._engine("vanilla", VANILLA), self._target("vanilla")
        shared, key = self.context.cache, self._key(engine)
        with shared.alone(f"vanilla-{key}"):
            shared.borrow(key, target.path)
            summary = self._evaluate(engine, target)
            shared.lend(key, target.path)
        self._ask_air_bench(engine, "vanilla")
        return summary

    def epoch(self, epoch: int, vanilla: dict | None) -> None:
        """Evaluates the adapters after an epoch in RUN/eval/epochs/EPOCH/STRATEGY."""
        engine = self._engine(self.config.strategy, str(epoch))
        self._evaluate(engine, self._target(self.config.strategy, Path("epochs") / str(epoch)), vanilla)

    def trained(self, vanilla: dict | None) -> None:
        """Evaluates the trained model in RUN/eval/STRATEGY and compares it to the model before training."""
        strategy = self.config.strategy
        engine, target = self._engine(strategy, TUNED), self._target(strategy)
        # A task refused less is no gain in safety, so that tasks have no NSI.
        self._evaluate(engine, target, None if self.setting in TASK_PROMPTS else vanilla)
        if vanilla is not None:
            comparison = compare_folders(self._target("vanilla").path, target.path)
            write_json(target.path / "compared_to_vanilla.json", with_sum(comparison))
        self._ask_air_bench(engine, strategy)

    def _target(self, name: str, below: Path = Path(".")) -> Target:
        return Target(self.context.folder.evaluations / below, name + self.suffix, strategy=name)

    def _evaluate(self, engine: Engine, target: Target, vanilla: dict | None = None) -> dict:
        summary = evaluate_model(engine, self.questions, self.plan, self.judges, target, vanilla)
        self.done.append((target, summary))
        return summary

    def _key(self, engine: Engine) -> str:
        """Hash of all that decides the vanilla model's answers, for the cache that a sweep's runs share."""
        return content_hash(
            engine.made_by,
            self.config.model.dtype,
            self.config.model.quantize,
            [[row["id"], row["label"], row["question"], row[CLIP_SUM]] for row in self.questions.rows],
            self.plan.samples,
            self.plan.modes,
            self.plan.over_refusal_modes,
            self.plan.text_only_variant,
            self.suffix,
        )

    def _judges(self) -> list[Judge]:
        generate = None if self.config.endpoint.url else self.local.answer_texts
        settings = replace(judge_settings(self.config), generate=generate)
        return make_judges(self.config.evaluate.judges, settings)

    def _engine(self, name: str, which: str) -> Engine:
        """The engine that answers for `name`: the endpoint, or the local model `which`."""
        if self.config.endpoint.url:
            return self._served_engine(name)
        made_by = self.local.made_by(which)
        return Engine(partial(self.local.answer, which), made_by["model"], made_by)

    def _served_engine(self, name: str) -> Engine:
        config = self.config
        server, sampling = served_model(config, name), sampling_of(config)
        made_by = {
            "model": server.model,
            # The server's model may be retrained under the same name; the run knows by its adapter.
            "adapter": None if name == "vanilla" else self._trained_adapter(),
            "endpoint": server.shown,
            "sampling": sampling,
            "seed": config.seed,
        }
        generate = endpoint_engine(server, sampling, config.seed)
        return Engine(generate, server.model, made_by, write_every=0.0)  # its answers may cost money

    def _trained_adapter(self) -> str | None:
        mark = self.context.folder.path / ".done" / "train.json"
        return read_json(mark).get("adapter") if mark.is_file() else None

    def _air_bench_items(self) -> list[dict] | None:
        config = self.config.evaluate
        if config.air_bench is None:
            return None
        if not self.config.judge.url or not self.config.judge.model:
            raise UserError("evaluate.air_bench: needs judge.url and judge.model, the judge of the answers.")
        return read_meta(config.air_bench)

    def _ask_air_bench(self, engine: Engine, name: str) -> None:
        if self.air_bench_items is not None:
            judge = Endpoint(EndpointConfig.from_group(self.config.judge), reply_cache())
            air_bench(engine, self.air_bench_items, judge, Target(self.context.folder.evaluations, name))

    def _questions(self) -> Questions:
        """The questions, spoken, with the setting's clips; where they are asked as they are, the everyday
        ones behind them."""
        context, data = self.context, self.config.data
        if self.config.evaluate.questions:
            rows, folder = self._published_rows(), Path(".")
        else:
            rows, folder = context.read_evaluation_rows(), context.folder.evaluation_manifest.parent
        if self.setting == "spoken":
            everyday = spoken_everyday(self.config, self.plan.modes)
            rows = with_everyday(rows, everyday, self.config.evaluate.limit)
        rows = setting_rows(
            self.setting,
            rows,
            folder,
            context.folder.path / "data" / self.setting,
            voices=self._setting_voices(),
            seed=data.seed,
            max_cost_usd=data.max_cost_usd,
        )
        sums = [clip_digest(folder / row["audio"]) if row["audio"] else None for row in rows]
        rows = [row | {CLIP_SUM: digest} for row, digest in zip(rows, sums, strict=True)]
        return Questions(rows, folder, self.setting)

    def _published_rows(self) -> list[dict]:
        """Reads published question sets; rows without a clip are spoken where the setting needs it."""
        config, data = self.config.evaluate, self.config.data
        skip = skips_bad_rows(self.config)
        rows = chosen_rows(read_question_sets(config.questions, skip), config.limit)
        rows = rows_with_sound(rows, "evaluate.questions", self.config)
        if set(config.modes) != {"text_only"} or self.setting != "spoken":
            rows = speak_missing(
                rows, data.voices, data.seed, data.max_cost_usd, source="evaluate.questions", skip_bad=skip
            )
        if not rows:
            raise UserError("evaluate.questions: no row can be used; mend the files.")
        return rows

    def _setting_voices(self) -> tuple[Voice, ...] | None:
        """Returns the voices to draw from: the run's, or for `other_voices` those that it lacks."""
        if self.setting not in ("spelled", "other_voices"):
            return None
        voices = read_voices(self.config.data.voices)
        if self.setting == "other_voices":
            return tuple(set(read_voices("")) - set(voices)) or voices
        return voices
