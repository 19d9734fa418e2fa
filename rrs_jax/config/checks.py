"""Mistakes in a config, told before any weight is read."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rrs_jax.config.fields import FIELDS
from rrs_jax.config.kinds import Field, nearest
from rrs_jax.config.run_config import flatten
from rrs_jax.config.strategy_table import DATA, STRATEGY_TABLE
from rrs_jax.errors import UserError

KEPT_SHARES = ("train.kept_text_share", "train.kept_task_share")


def validate(config: ConfigDict, *further: Callable[[dict[str, Any]], Iterable[str]]) -> None:
    """Raises one UserError that names every unknown, missing and wrong field, before any weight is read.

    Give it a resolved config (`rrs_jax.config.resolve`), so that contradictions are found in the values of
    the run. Each of `further` takes the values by dotted names and yields what else is wrong.
    """
    values = flatten(config)
    problems = [unknown_field(name) for name in values if name not in FIELDS]
    problems += [f"{name} is missing, start from default_config()" for name in FIELDS if name not in values]
    known = ((FIELDS[name], value) for name, value in values.items() if name in FIELDS)
    problems += [problem for field, value in known if (problem := field.problem(value) or _odd(field, value))]
    if not problems:
        problems = [problem for check in (_contradictions, *further) for problem in check(values)]
    if problems:
        raise config_error(problems)


def _odd(field: Field, value: object) -> str | None:
    """Faults of a text whatever the field: half characters, and `~` of a user that there is not."""
    texts = [item for item in (value if isinstance(value, tuple) else (value,)) if isinstance(item, str)]
    for text in texts:
        if any("\ud800" <= character <= "\udfff" for character in text):
            return f"{field.name} is {ascii(text)}, which is not UTF-8, give another"
        if field.kind.with_home and text.startswith("~"):
            return f"{field.name} is {text!r} and there is no such home folder"
    return None


def config_error(problems: Iterable[str]) -> UserError:
    """Returns one error for all problems of a config."""
    return UserError(f"config: {'; '.join(problems)}.")


def unknown_field(name: str) -> str:
    """Returns the problem of a name that is no field, with the field that was probably meant."""
    members = [field for field in FIELDS if field.startswith(name + ".")]
    if members:
        return f"{name} is a group, give one of its fields such as {members[0]}"
    match = nearest(name, FIELDS)
    hint = f"the nearest is {match}" if match else "`python -m rrs_jax.config` lists all fields"
    return f"{name} is no field, {hint}"


def _contradictions(values: dict[str, Any]) -> Iterator[str]:
    """Yields what is wrong although every field is right by itself."""
    for check in (_files, _built_in, _batches, _prompt_groups, _shares, _strategy, _evaluation, _servers):
        yield from check(values)


def _files(values: dict[str, Any]) -> Iterator[str]:
    for name in (*DATA.values(), "data.eval_manifest"):
        path = None if values[name] is None else Path(values[name])
        is_folder = name == "data.manifest" and path is not None and path.is_dir()  # the authors' questions
        if path is not None and not path.is_file() and not is_folder:
            yield f"{name} is {values[name]!r} and there is no such file"
    everyday = values["evaluate.everyday"]
    if everyday not in (None, "starter") and not Path(everyday).is_file():
        yield f"evaluate.everyday is {everyday!r}, which is neither starter nor a file"
    for path in values["data.exclude"]:
        if not Path(path).is_file():
            yield f"data.exclude has {path!r} and there is no such file"


def _built_in(values: dict[str, Any]) -> Iterator[str]:
    """Yields what is wrong with the choice among the built-in training pairs."""
    choosing = ("data.train_set", "data.left_out_styles", "data.left_out_categories")
    chosen = [name for name in choosing if values[name] != FIELDS[name].default]
    given = DATA[STRATEGY_TABLE[values["strategy"]].data]
    if chosen and values[given]:
        yield f"{chosen[0]} is about the built-in pairs, and {given} gives other questions, give one of them"
    elif values["data.left_out_styles"] and values["data.train_set"] != "styles":
        yield "data.left_out_styles needs data.train_set=styles, the starter set's pairs have no styles"
    if values["data.rewrites_per_pair"] == 2 and values["data.train_set"] == "styles":
        yield "data.rewrites_per_pair is 2 and data.train_set=styles has one rewrite of each question, give 1"


def _batches(values: dict[str, Any]) -> Iterator[str]:
    if sum(values[f"mesh.{axis}"] == -1 for axis in ("data", "fsdp", "tensor")) > 1:
        yield "mesh has more than one -1, give all axes but one a number"
    size, parts = values["train.batch_size"], values["train.gradient_accumulation"]
    if size % parts:
        yield f"train.gradient_accumulation is {parts} and does not divide train.batch_size {size}"
    if values["train.twins_together"] and size // parts % 2:
        yield (
            "train.twins_together needs an even train.batch_size (over train.gradient_accumulation), it is "
            f"{size // parts}"
        )


def _prompt_groups(values: dict[str, Any]) -> Iterator[str]:
    rows = values["train.batch_size"] // values["train.gradient_accumulation"]
    if values["train.prompt_draw"] == "each" or not rows:
        return
    if rows % min(values["train.prompt_group"], rows):
        yield (
            f"train.prompt_group is {values['train.prompt_group']} and does not divide train.batch_size (over"
            f" train.gradient_accumulation) {rows}"
        )
    if values["train.twins_together"]:
        yield (
            "train.prompt_draw is micro_batch, in which no prompt comes twice, and train.twins_together gives"
            " two questions the same, give one of them"
        )


def _shares(values: dict[str, Any]) -> Iterator[str]:
    written, heard = values["train.text_share"], values["train.audio_share"]
    kept = {name: values[name] for name in KEPT_SHARES if values[name]}
    if written + heard + sum(kept.values()) > 1:
        more = "".join(f" and {name} {share}" for name, share in kept.items())
        yield f"train.text_share is {written} and train.audio_share {heard}{more}, together more than 1"
    weight = values["rrs.harmful_audio_weight"]
    if weight is not None and not heard:
        yield (
            f"rrs.harmful_audio_weight is {weight} and no question is asked by its clip alone, give"
            " train.audio_share more than 0"
        )


def _strategy(values: dict[str, Any]) -> Iterator[str]:
    needed = DATA[STRATEGY_TABLE[values["strategy"]].data]
    if values["data.manifest"] and values[needed] is None:
        yield (
            f"strategy {values['strategy']} needs {needed} beside data.manifest, give a manifest of such"
            " questions"
        )
    for name in KEPT_SHARES:
        yield from _kept_share(name, values)
    if values["rrs.direction"] == "twins" and values["rrs.target"] == "category":
        yield "rrs.direction is twins and rrs.target category, and each gives the direction, give one of them"
    if values["rrs.amount"] == "own":
        if values["rrs.target"] != "mean":
            yield (
                f"rrs.amount is own and rrs.target {values['rrs.target']}, and each sets how far a harmful"
                " question moves, give one of them"
            )
        if values["rrs.benign_target"] == "hinge":
            yield (
                "rrs.amount is own and rrs.benign_target hinge, and each sets how far a rewrite moves, give"
                " one of them"
            )
    if values["rrs.whiten"] is not None and values["rrs.project"]:
        yield "rrs.whiten and rrs.project are both given, and each removes what the other would, give one"


def _kept_share(name: str, values: dict[str, Any]) -> Iterator[str]:
    if not values[name]:
        return
    given = f"{name} is {values[name]}"
    entry = STRATEGY_TABLE[values["strategy"]]
    if entry.trains and entry.module not in ("rrs", "rivals.harc"):
        strategy = values["strategy"]
        yield f"{given} and the strategy {strategy} keeps nothing so, give 0, or rrs, rrs_plus or harc"
    if values["rrs.positions"] > 1:
        yield (
            f"{given} and rrs.positions {values['rrs.positions']}, and what is kept so is kept at its"
            " prompt's last position alone, give one of them"
        )
    if values["rrs.benign_target"] == "hinge":
        yield (
            f"{given} and rrs.benign_target hinge, which pulls a rewrite under every prompt, give one of them"
        )


def _evaluation(values: dict[str, Any]) -> Iterator[str]:
    for name in ("evaluate.epochs", "report.representation_epochs"):
        given = values[name] if isinstance(values[name], tuple) else ()
        late = [str(epoch) for epoch in given if int(epoch) > values["train.epochs"]]
        if late:
            yield f"{name} has {', '.join(late)}, behind the last of train.epochs {values['train.epochs']}"
    if values["generate.greedy"] and values["evaluate.samples"] > 1:
        yield (
            f"evaluate.samples is {values['evaluate.samples']} with generate.greedy, which answers "
            "the same each time, give evaluate.samples=1 or greedy=false"
        )
    outside = [mode for mode in values["evaluate.over_refusal_modes"] if mode not in values["evaluate.modes"]]
    if outside:
        yield f"evaluate.over_refusal_modes has {', '.join(outside)}, which evaluate.modes lacks"


def _servers(values: dict[str, Any]) -> Iterator[str]:
    by_server = [name for name in values["evaluate.judges"] if name.startswith("llm:")]
    unnamed_model = any("@" not in name for name in by_server) or values["evaluate.air_bench"] is not None
    if unnamed_model and not (values["judge.url"] and values["judge.model"]):
        yield "judge.url and judge.model are needed by evaluate.air_bench and by judges called llm"
    elif by_server and not values["judge.url"]:
        yield "judge.url is needed by judges called llm"
    if not values["endpoint.url"]:
        return
    if not values["endpoint.model"]:
        yield "endpoint.model is needed with endpoint.url"
    before_training = values["strategy"] != "vanilla" and values["evaluate.vanilla"]
    if before_training and not values["endpoint.vanilla_model"]:
        yield "endpoint.vanilla_model is needed with endpoint.url, or evaluate.vanilla=false"
    if any(name.startswith("own:") for name in values["evaluate.judges"]):
        yield "evaluate.judges has own, which needs a model that runs here and not endpoint.url"
