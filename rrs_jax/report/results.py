"""Reads run folders: configs, rates pooled over seeds, and each run's place in the paper's tables."""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from rrs_jax.config import flatten
from rrs_jax.config.stages import PLACEMENT_FIELDS, belongs
from rrs_jax.errors import UserError
from rrs_jax.evaluate.pool import pool
from rrs_jax.files import read_json
from rrs_jax.report.summaries import recipe_of

PAPER = Path(__file__).parent / "paper_figures.json"
TITLES = {
    "vanilla": "vanilla",
    "sft_full": "SFT-full",
    "sft_shallow_mirror": "SFT-shallow-mirror",
    "sft_shallow_parallel": "SFT-shallow-parallel",
    "sft_deep": "SFT-deep",
    "rrs": "RRS",
    "rrs_without_penalty": "RRS w/o penalty term",
}
PAPER_NUMBERS = {"sft_full": 1, "sft_shallow_mirror": 2, "sft_shallow_parallel": 3, "sft_deep": 4}
CIRCLED = "⓪①②③④"
# Fields in which two runs of one recipe may differ.
NOT_THE_RECIPE = (
    *PLACEMENT_FIELDS,
    "seed",
    "strategy",
    "data",
    "evaluate",
    "generate",
    "judge",
    "endpoint",
    "export",
    "report",
    "rivals",
    "sft",
)
OF_THE_DATA = (
    "data.train_set",
    "data.left_out_styles",
    "data.left_out_categories",
    "data.everyday",
    "data.contrast",
    "data.contrast_role",
    "data.voices_per_question",
    "data.augment",
)  # but of the recipe


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """One run folder as its files describe it.

    Attributes:
      config: by dotted names.
      sessions: where and with which versions it ran.
      seconds: by stage.
    """

    path: Path
    config: dict[str, object]
    sessions: list[dict]
    seconds: dict[str, float]

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.path.name

    @property
    def strategy(self) -> str:
        """Name of the run's strategy."""
        return self.config["strategy"]

    def evaluation(self, strategy: str, epoch: int | None = None) -> Path | None:
        """Returns the folder of a finished evaluation, None where there is none.

        Of several question sets it is that of the run's own, else the first by name.
        """
        folder = self.path / "eval" if epoch is None else self.path / "eval" / "epochs" / str(epoch)
        found = [folder / strategy, *sorted(folder.glob(f"{strategy}-*"))]
        return next((path for path in found if (path / "summary.json").is_file()), None)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Runs that differ in the seed alone.

    Attributes:
      name: of the run, without its seed.
      key: the row of the paper's tables that it is, else None.
      summary: of all seeds together; None where no run is evaluated.
      hs: mean helpfulness on AIR-Bench, else None.
    """

    name: str
    runs: tuple[FinishedRun, ...]
    key: str | None
    summary: dict | None
    hs: float | None

    @property
    def config(self) -> dict[str, object]:
        """Config of the first run."""
        return self.runs[0].config

    @property
    def id(self) -> tuple[str | None, str]:
        """Row and name, which no other recipe of a page has together."""
        return self.key, self.name

    @property
    def label(self) -> str:
        """Name beside the recipe's mark, with the number of seeds."""
        number = len(self.summary["seeds"]["runs"]) if self.summary and "seeds" in self.summary else 1
        seeds = f" ({number} seeds)" if number > 1 else ""
        return TITLES.get(self.key, self.name) + seeds

    @property
    def title(self) -> str:
        """Name where there is no mark, with the paper's circled number."""
        number = PAPER_NUMBERS.get(self.key)
        return f"{CIRCLED[number]} {self.label}" if number else self.label


@dataclasses.dataclass(frozen=True)
class Results:
    """The findings of several runs.

    Attributes:
      vanilla: the model before training.
      recipes: the others, in the order given.
      paper: the paper's rows of this model by key, empty for another model.
      paper_title: the model's name in the paper, with the share of features of its RRS.
    """

    vanilla: Recipe | None
    recipes: tuple[Recipe, ...]
    paper: dict[str, dict]
    paper_title: str | None  # with the share of features of its RRS

    @property
    def everything(self) -> list[Recipe]:
        """The model before training and all recipes."""
        return [*([self.vanilla] if self.vanilla else []), *self.recipes]

    @property
    def main(self) -> Recipe | None:
        """RRS where it is evaluated, else the first recipe that is; None where none is."""
        evaluated = [recipe for recipe in self.recipes if recipe.summary]
        return next(
            (recipe for recipe in evaluated if recipe.key == "rrs"), evaluated[0] if evaluated else None
        )


def read_run(folder: str | Path) -> FinishedRun:
    """Reads a run folder. Raises UserError where it is none."""
    folder = Path(folder)
    record = read_json(folder / "config.json")
    if not isinstance(record.get("config"), dict) or "strategy" not in record["config"]:
        raise UserError(f"{folder / 'config.json'}: is no run's config; give the run_dir of a run.")
    seconds = stage_seconds(folder)
    return FinishedRun(folder, flatten(record["config"]), record.get("sessions", []), seconds)


def stage_seconds(folder: Path) -> dict[str, float]:
    """Returns the seconds of each finished stage that its mark tells; a damaged mark tells nothing."""
    found = {}
    for path in sorted((folder / ".done").glob("*.json")):
        with contextlib.suppress(UserError):
            found[path.stem] = read_json(path).get("seconds")
    return {name: seconds for name, seconds in found.items() if seconds is not None}


def read_results(folders: Sequence[str | Path]) -> Results:
    """Reads several run folders and groups them to recipes.

    Raises UserError where a folder is no run, or seeds were evaluated by different judges.
    """
    runs = [read_run(folder) for folder in folders]
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault(recipe_of(run.name) if len(runs) > 1 else run.name, []).append(run)
    tuned = {name: group for name, group in groups.items() if group[0].strategy != "vanilla"}
    base = _base(tuned)
    recipes = []
    for name, group in tuned.items():
        key = paper_key(group[0], base)
        summary = _summary(group, group[0].strategy)
        recipes.append(Recipe(name, tuple(group), key, summary, _helpfulness(group, group[0].strategy)))
    models = {run.config["model.path"] for run in runs}
    paper = paper_of(models.pop()) if len(models) == 1 else None
    title = f"{paper['title']}, whose RRS has the top {paper['top_m']:g} % of the features" if paper else None
    return Results(_vanilla(groups, tuned), tuple(recipes), paper["rows"] if paper else {}, title)


def read_paper() -> dict:
    """Reads the paper's numbers."""
    return json.loads(PAPER.read_text(encoding="utf-8"))


def paper_of(model_path: str) -> dict | None:
    """Returns the paper's rows of a model, known by its released name in the path; None for any other."""
    models = read_paper()["models"].values()
    return next(
        (model for model in models if any(name in model_path.lower() for name in model["names"])), None
    )


def paper_key(run: FinishedRun, base: FinishedRun | None) -> str | None:
    """Returns the row of the paper's tables that a run is, None where it is none.

    That is its strategy, and for RRS what distinguishes it from `base`. A run that goes on from an adapter is
    none.
    """
    if run.config.get("lora.start") is not None:
        return None
    if run.strategy != "rrs":
        return run.strategy if run.strategy in TITLES else None
    different = recipe_differences(run, base) if base else set()
    if run.config["penalty.weight"] == 0 and different <= {"penalty.weight"}:
        return "rrs_without_penalty"
    if not different:
        return "rrs"
    return top_key(run.config["rrs.top_m"]) if different == {"rrs.top_m"} else None


def top_key(top_m: object) -> str:
    """Returns the key of RRS with this share of features."""
    return "top51" if top_m == "positive" else f"top{float(top_m):g}"


def recipe_differences(run: FinishedRun, other: FinishedRun) -> set[str]:
    """Returns the fields that make two runs different recipes."""
    return {
        field
        for field in {*run.config, *other.config}
        if not belongs(field, NOT_THE_RECIPE) and run.config.get(field) != other.config.get(field)
    } | {field for field in OF_THE_DATA if run.config.get(field) != other.config.get(field)}


def _base(tuned: dict[str, list[FinishedRun]]) -> FinishedRun | None:
    """Returns the RRS run that the others vary.

    It is the one so named, else the first with a penalty, else the first.
    """
    of_rrs = {name: group[0] for name, group in tuned.items() if group[0].strategy == "rrs"}
    if "rrs" in of_rrs:
        return of_rrs["rrs"]
    return next(
        (run for run in of_rrs.values() if run.config["penalty.weight"]), next(iter(of_rrs.values()), None)
    )


def _vanilla(groups: dict[str, list[FinishedRun]], tuned: dict[str, list[FinishedRun]]) -> Recipe | None:
    """Returns the model before training as a recipe.

    It is taken from the runs of the strategy vanilla, else from the recipe with the most seeds that evaluated
    it.
    """
    own = [group for group in groups.values() if group[0].strategy == "vanilla"]
    candidates = own or sorted(tuned.values(), key=len, reverse=True)
    for group in candidates:
        if summary := _summary(group, "vanilla"):
            return Recipe("vanilla", tuple(group), "vanilla", summary, _helpfulness(group, "vanilla"))
    return None


def _summary(group: list[FinishedRun], strategy: str) -> dict | None:
    """Returns one run's summary; of several seeds the pooled one, over those that are evaluated."""
    folders = [folder for run in group if (folder := run.evaluation(strategy))]
    if len(folders) < 2:
        return read_json(folders[0] / "summary.json") if folders else None
    before = [folder for run in group if (folder := run.evaluation("vanilla"))]
    vanilla = pool(before) if strategy != "vanilla" and len(before) == len(folders) else None
    return pool(folders, vanilla)


def _helpfulness(group: list[FinishedRun], strategy: str) -> float | None:
    found = [run.path / "eval" / strategy / "air_bench" / "summary.json" for run in group]
    scores = [read_json(path)["hs"] for path in found if path.is_file()]
    scores = [score for score in scores if score is not None]
    return sum(scores) / len(scores) if scores else None
