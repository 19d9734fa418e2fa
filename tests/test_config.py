"""The config: defaults, variants, and what is refused."""

import copy
import dataclasses
import importlib.util
import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from rrs_jax.config import FIELDS, LINEARS, default_config, flatten, given_fields, resolve, validate
from rrs_jax.config.prompts import PROMPT_REFUSAL
from rrs_jax.config.strategy_table import PLUS, STRATEGY_TABLE
from rrs_jax.config.training import train_config
from rrs_jax.errors import UserError
from rrs_jax.evaluate.problems import evaluation_problems
from rrs_jax.files import content_hash

ROOT = Path(__file__).parent.parent
RELEASED = ("", "as_written", "card24", "smoke")
VARIANTS = {
    "omni_rrs": RELEASED,
    "qwen2_rrs": RELEASED,
    "qwen_audio_rrs": RELEASED,
    "mini_rrs": ("", "full", "authors", "balanced", "smoke"),
    "small_rrs": ("", "full", "authors", "balanced", "smoke"),
}

# Others script against these (shared layout, "Names that stay"), with the types of their values.
STABLE = {
    "model.path": str,
    "model.dtype": str,
    "data.manifest": None,
    "run_dir": str,
    "rrs.top_m": float,
    "penalty.weight": float,
    "penalty.space": str,
    "lora.rank": int,
    "train.epochs": int,
    "train.batch_size": int,
    "train.learning_rate": float,
    "strategy": str,
    "seed": int,
    "mesh.data": int,
    "mesh.fsdp": int,
    "mesh.tensor": int,
}


def config_of(name: str, variant: str = ""):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


def usable_config():
    config = default_config()
    config.model.path = "mini"
    return config


def problems_of(**changes) -> str:
    config = usable_config()
    for name, value in changes.items():
        *groups, leaf = name.split("__")
        group = config
        for each in groups:
            group = group[each]
        with group.ignore_type():
            group[leaf] = value
    with pytest.raises(UserError) as error:
        validate(config, evaluation_problems)
    return str(error.value)


@pytest.mark.parametrize(
    "name, variant", [(name, variant) for name, all_ in VARIANTS.items() for variant in all_]
)
def test_every_config_file_and_variant_is_valid(name, variant):
    validate(config_of(name, variant), evaluation_problems)


def test_unknown_variant_names_those_there_are():
    with pytest.raises(UserError, match="'fulll' is no variant of this file; it has full, authors, balanced"):
        config_of("mini_rrs", "fulll")


def test_names_that_stay():
    flat = flatten(default_config())
    for name, kind in STABLE.items():
        assert flat[name] is None if kind is None else type(flat[name]) is kind, name


def test_the_papers_values_are_the_defaults():
    config = default_config()
    assert (config.train.epochs, config.train.batch_size, config.train.learning_rate) == (10, 16, 5e-5)
    assert (config.rrs.top_m, config.rrs.refusal_tokens, config.evaluate.samples) == (51, ("I",), 5)
    for name in ("mini_rrs", "small_rrs"):
        assert config_of(name, "full").train.to_dict() == config.train.to_dict()
        assert config_of(name, "full").lora.to_dict() == config.lora.to_dict()


AUTHORS = {  # docs/authors.md
    "loss.reduction": "mean",
    "penalty.weight": 1.0,
    "penalty.space": "weights",
    "lora.rank": 16,
    "lora.alpha": 4.0,
    "lora.dropout": 0.1,
    "lora.targets": ("all",),
    "lora.layers": "all",
    "rrs.top_m_rule": "authors",
    "rrs.target_dtype": "model",
    "train.epochs": 10,
    "train.batch_size": 16,
    "train.learning_rate": 5e-5,
    "train.schedule": "linear",
    "train.warmup_steps": 0,
    "train.clip_norm": 1.0,
    "train.weight_decay": 1e-3,
    "train.b1": 0.9,
    "train.b2": 0.98,
    "train.prompt_draw": "micro_batch",
    "train.prompt_group": 4,
}


@pytest.mark.parametrize("name, share", [("omni_rrs", 51), ("qwen2_rrs", 25), ("qwen_audio_rrs", 51)])
def test_released_models_train_as_the_authors_did(name, share):
    """Or, as_written, with the fields' defaults; the other variants change how a run is done."""
    default, own = flatten(default_config()), {"model.path", "run_dir", "rrs.top_m"}
    for variant in ("", "card24", "smoke"):
        config = config_of(name, variant)
        changed = {"train.epochs", "train.batch_size"} if variant == "smoke" else set()
        found = flatten(config)
        assert {key: found[key] for key in AUTHORS.keys() - changed} == {
            key: value for key, value in AUTHORS.items() if key not in changed
        }
        assert found["rrs.top_m"] == share
        config.model.path = "mini"
        validate(config)
        config.strategy = "rrs_plus"  # whose preset wins where the authors' value is the field's default
        assert resolve(config).train.learning_rate == PLUS["train.learning_rate"]
    authors, written = flatten(config_of(name)), flatten(config_of(name, "as_written"))
    assert {key for key in written if written[key] != default[key]} <= own
    assert {key for key in authors if authors[key] != default[key]} <= own | AUTHORS.keys()
    assert written["run_dir"] != authors["run_dir"]


@pytest.mark.parametrize("name", ["mini_rrs", "small_rrs"])
def test_a_small_model_can_train_as_the_authors_did(name):
    full, authors = flatten(config_of(name, "full")), flatten(config_of(name, "authors"))
    assert {key: authors[key] for key in AUTHORS} == AUTHORS
    assert {key for key in full if full[key] != authors[key]} <= {"run_dir", *AUTHORS}
    validate(config_of(name, "authors"))


@pytest.mark.parametrize("variant", VARIANTS["small_rrs"])
def test_small_runs_as_the_mini_with_the_papers_refusal_prompt(variant):
    mini, small = flatten(config_of("mini_rrs", variant)), flatten(config_of("small_rrs", variant))
    own = {"model.path", "model.dtype", "run_dir", "rrs.refusal_prompt", "lora.layers"}
    assert {key for key in mini if mini[key] != small[key]} <= own
    assert small["rrs.refusal_prompt"] == flatten(default_config())["rrs.refusal_prompt"] == PROMPT_REFUSAL
    assert small["run_dir"] == mini["run_dir"].replace("mini", "small")


def test_a_preset_sets_what_was_not_given():
    config = config_of("mini_rrs", "full")
    assert flatten(resolve(config)) == flatten(config)  # strategy rrs has no preset
    before = flatten(config) | {"strategy": "rrs_plus"}
    config.strategy = "rrs_plus"
    assert PLUS and all(FIELDS[name].kind.accepts(value) for name, value in PLUS.items())
    assert flatten(resolve(config)) == before | PLUS
    assert flatten(config) == before  # the config itself stays


def test_every_training_field_reaches_the_training():
    given = {
        "seed": 3,
        "penalty.weight": 2.0,
        "penalty.space": "lora",
        "train.epochs": 4,
        "train.batch_size": 6,
        "train.gradient_accumulation": 3,
        "train.learning_rate": 0.25,
        "train.twins_together": True,
        "train.prompt_draw": "micro_batch",
        "train.prompt_group": 2,
        "train.text_share": 0.125,
        "train.audio_share": 0.375,
        "train.kept_text_share": 0.25,
        "train.kept_task_share": 0.125,
        "train.schedule": "linear",
        "train.average": 0.5,
        "train.warmup_steps": 7,
        "train.clip_norm": 1.5,
        "train.weight_decay": 0.01,
        "train.b1": 0.8,
        "train.b2": 0.95,
        "train.eps": 1e-6,
        "train.checkpoint_every_steps": 11,
        "train.keep_checkpoints": 5,
        "train.remat": "full",
        "train.unroll": True,
        "train.log_to": ("wandb",),
    }
    of_training = {name for name in FIELDS if name.split(".")[0] in ("train", "penalty", "seed")}
    assert of_training - set(given) == {"train.lower_states_gib"}  # the context's, see `PrefixStates`
    assert not any(FIELDS[name].default == value for name, value in given.items())
    config = default_config()
    config.update_from_flattened_dict(given)
    taken = dataclasses.asdict(train_config(config))
    taken |= taken.pop("optimiser")
    assert (taken.pop("max_buckets"), taken.pop("bucket_multiple")) == (5, 8)
    names = {"penalty.weight": "penalty_weight", "penalty.space": "penalty_space"}
    assert taken == {names.get(name, name.rpartition(".")[2]): value for name, value in given.items()}


def test_an_earlier_versions_checkpoints_are_of_the_same_settings():
    """The hash of the default settings, by which a run knows whether a checkpoint is its own."""
    assert content_hash(train_config(default_config()).result_settings()) == "f5d196f8d04011cc"


@pytest.mark.parametrize("value", [7, 10, 20])  # neither's, the field's default, the preset's
def test_a_given_value_wins_over_the_preset(value):
    config = usable_config()
    config.strategy, config.train.epochs = "rrs_plus", value
    assert resolve(config).train.epochs == value
    assert resolve(config).train.learning_rate == PLUS["train.learning_rate"]


def test_what_was_given_is_recorded():
    config = default_config()
    assert given_fields(config) == set()
    config.seed = 0  # the default
    config.train.epochs = 10
    config.data["everyday"] = 0
    config.update_from_flattened_dict({"rrs.harmful_weight": 1.0})
    config.mesh.update({"fsdp": 1})
    given = {"seed", "train.epochs", "data.everyday", "rrs.harmful_weight", "mesh.fsdp"}
    assert given_fields(config) == given
    copies = (config.copy_and_resolve_references(), copy.deepcopy(config), pickle.loads(pickle.dumps(config)))
    assert all(given_fields(copied) == given for copied in copies)
    with pytest.raises(AttributeError):
        config.train.epoch = 3
    assert given_fields(config) == given


def test_resolving_again_changes_nothing():
    config = usable_config()
    config.strategy = "rrs_plus"
    once = resolve(config)
    assert given_fields(once) == set(FIELDS)
    once.train.epochs, once.data.everyday = 10, 0
    assert flatten(resolve(once)) == flatten(once)
    once.data.everyday = None  # a field of several types keeps them
    once.strategy = "rrs"
    assert flatten(resolve(once)) == flatten(once)


def test_every_value_of_a_plain_config_counts_as_given():
    plain = ConfigDict(usable_config().to_dict() | {"strategy": "rrs_plus"})
    assert given_fields(plain) == set(FIELDS)
    assert flatten(resolve(plain)) == flatten(plain)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"rrs.whiten": 0.5, "rrs.project": 3}, "rrs.whiten and rrs.project are both given"),
        (
            {"rrs.harmful_audio_weight": 5.0},
            "rrs.harmful_audio_weight is 5.0 and no question is asked by its clip alone",
        ),
        (
            {"train.text_share": 0.5, "train.audio_share": 0.25, "train.kept_text_share": 0.5},
            "train.audio_share 0.25 and train.kept_text_share 0.5, together more than 1",
        ),
        (
            {"train.audio_share": 0.5, "train.kept_text_share": 0.25, "train.kept_task_share": 0.5},
            "train.audio_share 0.5 and train.kept_text_share 0.25 and train.kept_task_share 0.5, together",
        ),
        (
            {"train.kept_task_share": 0.25, "strategy": "rerouting"},
            "train.kept_task_share is 0.25 and the strategy rerouting keeps nothing so",
        ),
        ({"train.kept_task_share": 0.25, "rrs.positions": 3}, "at its prompt's last position alone"),
        (
            {"train.kept_text_share": 0.25, "strategy": "sft_deep"},
            "train.kept_text_share is 0.25 and the strategy sft_deep keeps nothing so",
        ),
        (
            {"rrs.direction": "twins", "rrs.target": "category"},
            "rrs.direction is twins and rrs.target category",
        ),
        ({"rrs.amount": "own", "rrs.target": "category"}, "rrs.amount is own and rrs.target category"),
        (
            {"rrs.amount": "own", "rrs.benign_target": "hinge"},
            "rrs.amount is own and rrs.benign_target hinge",
        ),
        ({"train.kept_text_share": 0.25, "rrs.positions": 3}, "at its prompt's last position alone"),
        (
            {"train.kept_text_share": 0.25, "rrs.benign_target": "hinge"},
            "train.kept_text_share is 0.25 and rrs.benign_target hinge",
        ),
        ({"data.manifest": __file__, "strategy": "sft_full"}, "strategy sft_full needs data.basic_manifest"),
        (
            {"data.parallel_manifest": "absent.jsonl"},
            "data.parallel_manifest is 'absent.jsonl' and there is no such file",
        ),
    ],
)
def test_contradictions_of_strategies(changes, words):
    config = config_of("mini_rrs")
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=words):
        validate(config, evaluation_problems)


def test_contradictions_are_those_of_the_preset_too():
    config = config_of("mini_rrs")
    config.strategy, config.rrs.harmful_audio_weight = "rrs_plus", 5.0
    validate(resolve(config), evaluation_problems)
    config.train.text_share = 0.9
    with pytest.raises(
        UserError, match="train.text_share is 0.9 and train.audio_share 0.25, together more than 1"
    ):
        validate(resolve(config), evaluation_problems)


def test_words_are_those_of_the_rooms_that_use_them():
    import importlib.util

    from rrs_jax.models.decoder_layer import DecoderConfig
    from rrs_jax.models.qwen_decoder import QwenDecoderConfig

    decoder = DecoderConfig(8, 8, 1, 2, 2, 4, 9, 1e-6, 1e4, False)
    qwen = QwenDecoderConfig(
        8, 8, 1, 2, 2, 4, 9, 1e-6, 1e4, False, seq_length=8, use_dynamic_ntk=True, use_logn_attn=True
    )
    assert set(LINEARS) == {*decoder.adapted_linears(), *qwen.adapted_linears()}
    for entry in STRATEGY_TABLE.values():
        assert entry.module is None or importlib.util.find_spec(f"rrs_jax.strategies.{entry.module}")
    assert [name for name, entry in STRATEGY_TABLE.items() if entry.module is None] == ["vanilla"]


@pytest.mark.parametrize(
    "name, value",
    [
        ("rrs__top_m", 0),
        ("rrs__top_m", 100.5),
        ("rrs__top_m", -1),
        ("rrs__top_m", "all"),
        ("rrs__top_m", True),
        ("rrs__top_m", float("nan")),
        ("rrs__top_m", None),
        ("train__epochs", 0),
        ("train__epochs", "3"),
        ("train__epochs", 2.0),
        ("train__learning_rate", 0.0),
        ("train__learning_rate", float("inf")),
        ("train__b2", 1.0),
        ("strategy", "rss"),
        ("model__path", " "),
        ("model__dtype", "float16"),
        ("lora__targets", ()),
        ("lora__targets", ("q_proj", "q_proj")),
        ("lora__targets", ("c_proj",)),
        ("lora__targets", "q_proj"),
        ("lora__layers", -1),
        ("lora__layers", "upper"),
        ("mesh__data", 0),
        ("generate__top_p", 1.5),
        ("generate__greedy", 1),
        ("evaluate__modes", ("audio",)),
        ("evaluate__judges", ()),
        ("evaluate__limit", 0),
        ("seed", -1),
        ("data__audio_max_seconds", 2400.0),
        ("penalty__weight", -1.0),
        ("rrs__top_m_rule", "sign"),
        ("rrs__target_dtype", "bfloat16"),
        ("train__prompt_draw", "epoch"),
        ("train__prompt_group", 1),
    ],
)
def test_wrong_value_is_refused_by_name(name, value):
    message = problems_of(**{name: value})
    assert message.startswith(f"config: {name.replace('__', '.')} is {value!r}, give "), message


@pytest.mark.parametrize(
    "name, value",
    [
        ("rrs.top_m", 100),
        ("rrs.top_m", 12.5),
        ("rrs.top_m", "positive"),
        ("lora.layers", 12),
        ("seed", 0),
        ("train.learning_rate", 1),
        ("train.clip_norm", None),
        ("generate.top_k", 0),
        ("mesh.fsdp", -1),
        ("lora.targets", ("q_proj",)),
        ("evaluate.over_refusal_modes", ()),
        ("penalty.weight", 0),
    ],
)
def test_right_value_is_accepted(name, value):
    config = usable_config()
    config.mesh.data = 1
    config.update_from_flattened_dict({name: value})
    validate(config, evaluation_problems)


def test_all_wrong_values_are_named_at_once():
    message = problems_of(rrs__top_m=101, train__epochs=0, strategy="rss")
    assert all(name in message for name in ("rrs.top_m is 101", "train.epochs is 0", "strategy is 'rss'"))


def test_a_config_of_other_fields_is_refused():
    config = usable_config().to_dict()
    config["trian"] = {"epochs": 3}
    del config["loss"]
    with pytest.raises(UserError) as error:
        validate(ConfigDict(config), evaluation_problems)
    assert "trian.epochs is no field, the nearest is train.epochs" in str(error.value)
    assert "loss.reduction is missing" in str(error.value)


def test_a_misspelt_field_in_a_config_file_fails_where_it_stands():
    with pytest.raises(AttributeError, match="epochs"):
        default_config().train.epoch = 3


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data__manifest": "no/such.jsonl"}, "data.manifest is 'no/such.jsonl' and there is no such file"),
        ({"mesh__fsdp": -1}, "mesh has more than one -1"),
        ({"train__gradient_accumulation": 3}, "does not divide train.batch_size 16"),
        (
            {"train__prompt_draw": "micro_batch", "train__prompt_group": 5},
            "train.prompt_group is 5 and does not divide train.batch_size",
        ),
        (
            {"train__prompt_draw": "micro_batch", "train__twins_together": True},
            "train.prompt_draw is micro_batch, in which no prompt comes twice, and train.twins_together",
        ),
        ({"generate__greedy": True}, "evaluate.samples is 5 with generate.greedy"),
        ({"evaluate__modes": ("text_only",)}, "evaluate.over_refusal_modes has audio_text"),
    ],
)
def test_contradiction_is_refused(changes, words):
    assert words in problems_of(**changes)


def test_the_list_of_fields_has_each_of_them():
    listed = subprocess.run(
        [sys.executable, "-m", "rrs_jax.config"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert [
        line.split("=")[0].removeprefix("--config.") for line in listed.stdout.splitlines() if line[0] == "-"
    ] == list(FIELDS)


def test_the_balanced_variant_has_the_fields_that_were_measured():
    kept_tasks = runpy.run_path(str(ROOT / "benchmarks" / "research" / "kept_tasks.py"))
    measured = config_of("small_rrs", "full")
    measured.update_from_flattened_dict(kept_tasks["ROWS"]["whole"])
    before, now = flatten(resolve(measured)), flatten(resolve(config_of("small_rrs", "balanced")))
    differing = {name for name in before if before[name] != now[name]}
    assert differing == {"strategy", "run_dir"}
