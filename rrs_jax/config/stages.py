"""The stages of a run: their order, what each needs, and which config fields decide what it makes."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from rrs_jax.config.fields import FIELDS
from rrs_jax.config.kinds import nearest, split_names
from rrs_jax.config.strategy_table import STRATEGY_TABLE
from rrs_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage's row.

    Attributes:
      name: its name on the command line.
      what: what it makes.
      needs: the stages whose output it reads.
      fields: dotted names or groups of the fields that decide its output.
    """

    name: str
    what: str
    needs: tuple[str, ...]
    fields: tuple[str, ...]


STAGES = {stage.name: stage for stage in (
    Stage("data", "questions and speech", (), ("data", "strategy")),
    Stage("extract", "what the strategy needs of the frozen model", ("data",),
          ("model", "strategy", "rrs", "sft", "rivals")),
    Stage("train", "adapter", ("extract",), ("penalty", "loss", "lora", "train", "seed")),
    Stage("evaluate", "answers, judgements and rates", ("data", "extract", "train"),
          ("model", "strategy", "rivals", "evaluate", "generate", "judge", "endpoint", "seed")),
    Stage("export", "adapter and model for other programs", ("train",), ("export",)),
    Stage("report", "tables and page", ("evaluate",), ()),
)}  # fmt: skip

# A run may go on with other values of these, which decide only where and how fast it is done.
PLACEMENT_FIELDS = tuple(field.name for field in FIELDS.values() if field.placement)

# Fields that run folders may know and the program has no more, with the value that it acts by. They count
# among a stage's values, so that what such a folder has with this value is done.
RETIRED_FIELDS = {"evaluate.air_bench_limit": None, "evaluate.split": "all", "rivals.probe_threshold": 0.0}

# Fields that older run folders lack. With its default, such a field acts as the program did without it, and
# does not count among a stage's values.
ADDED_FIELDS = frozenset({
    "data.augment", "data.bad_rows", "data.left_out_categories",
    "data.left_out_styles", "data.train_set", "evaluate.everyday", "export.base_name", "export.checkpoint",
    "export.push", "export.scale", "lora.dropout", "lora.start", "rivals.harc_kl", "rivals.harc_margin",
    "rrs.amount", "rrs.direction", "rrs.overlap_weight", "rrs.target_dtype", "rrs.top_m_rule",
    "train.kept_task_share", "train.kept_text_share", "train.prompt_draw", "train.prompt_group",
})  # fmt: skip

# A run folder keeps the values that decide these; later stages may be repeated in it with other values.
FIXED_STAGES = ("data", "extract", "train")


def parse_stages(written: str | Iterable[str], strategy: str = "rrs") -> tuple[str, ...]:
    """Returns the stages asked for, in their order, without those that the strategy does not have.

    Raises UserError that names every unknown stage.
    """
    asked = split_names(written)
    problems = []
    for name in asked:
        if name not in STAGES:
            match = nearest(name, STAGES)
            problems.append(f"{name} is no stage" + (f", the nearest is {match}" if match else ""))
    if problems or not asked:
        raise UserError(f"--stages: {'; '.join(problems) or 'is empty'}; choose among {','.join(STAGES)}.")
    return tuple(name for name in stages_of(strategy) if name in asked)


def stages_of(strategy: str) -> tuple[str, ...]:
    """Returns the stages that a strategy has, in their order.

    Without adapters there is nothing to train and export; not every strategy extracts something.
    """
    entry = STRATEGY_TABLE.get(strategy)
    absent = set() if entry is None or entry.trains else {"train", "export"}
    if entry is not None and not entry.extracts:
        absent.add("extract")
    return tuple(name for name in STAGES if name not in absent)


def needs_of(name: str, strategy: str) -> tuple[str, ...]:
    """Returns the stages whose output a stage reads, among those that the strategy has."""
    return tuple(need for need in STAGES[name].needs if need in stages_of(strategy))


def dependents_of(name: str) -> tuple[str, ...]:
    """Returns the stages that read, directly or through others, the output of stage `name`."""
    found = [name]
    for stage in STAGES.values():
        if any(need in found for need in stage.needs):
            found.append(stage.name)
    return tuple(found[1:])


def belongs(field: str, groups: Iterable[str]) -> bool:
    """Returns True for a dotted name that is one of the groups or lies in one."""
    return any(field == group or field.startswith(group + ".") for group in groups)


def fields_of(name: str, values: dict[str, Any], strategy: str) -> dict[str, Any]:
    """Returns the values that decide a stage's output, with those of the stages that it needs."""
    groups = set(STAGES[name].fields)
    for need in needs_of(name, strategy):
        groups.update(fields_of(need, values, strategy))
    return {
        field: value
        for field, value in (values | RETIRED_FIELDS).items()
        if belongs(field, groups)
        and field not in PLACEMENT_FIELDS
        and not (field in ADDED_FIELDS and value == FIELDS[field].default)
    }
