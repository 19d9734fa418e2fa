"""NaN and infinite numbers are found before anything that holds them is kept, handed out or marked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.clip_prompts import audio_bank
from rrs_jax.config import default_config
from rrs_jax.config.strategy_table import STRATEGY_TABLE, load_strategy
from rrs_jax.distributed.mesh import make_mesh
from rrs_jax.errors import UserError
from rrs_jax.files import write_jsonl
from rrs_jax.frozen.audio_bank import make_audio_bank
from rrs_jax.frozen.extraction import check_finite, extract_all
from rrs_jax.generate import Generator, Prompt, SamplingConfig
from rrs_jax.inputs.batching import bucket_lengths
from rrs_jax.inputs.mel import MelConfig
from rrs_jax.models.lora import LoRAConfig, LoRAParam
from rrs_jax.run import pipeline
from rrs_jax.strategies.extracted import Extracted, write_extracted
from rrs_jax.strategies.samples import Samples
from rrs_jax.testing import twin_rows
from rrs_jax.weights.load import load_weights

VALUES = (np.nan, np.inf, -np.inf)


@pytest.fixture
def model(folder):
    return load_weights(folder, lora=LoRAConfig(rank=2), mesh=make_mesh(devices=jax.devices()[:1]))


def break_parameter(model, part: str, value: float, kind=nnx.Param) -> None:
    """Sets one number of the first parameter whose dotted path contains `part`."""
    for path, leaf in nnx.to_flat_state(nnx.state(model, kind)):
        if part in ".".join(map(str, path)):
            array = np.array(leaf[...])
            array.reshape(-1)[0] = value
            nnx.update(model, nnx.from_flat_state([(path, leaf.replace(jnp.asarray(array)))]))
            return
    raise AssertionError(part)


BROKEN = [
    ("down_proj", nnx.Param),
    ("input_layernorm", nnx.Param),
    ("language_model.norm", nnx.Param),
    ("lora", LoRAParam),
]


@pytest.mark.parametrize(("part", "kind"), BROKEN)
@pytest.mark.parametrize("value", VALUES[:2])
def test_states_of_a_broken_model_are_not_given(model, part, kind, value):
    rows = [(list(range(60, 60 + n)), [], []) for n in (5, 9, 7)]
    bank = jnp.zeros((1, model.config.text.hidden_size))
    options = {"batch_size": 2, "buckets": bucket_lengths([5, 9, 7])}
    if kind is LoRAParam:
        break_parameter(model, "lora_b", 1.0, LoRAParam)  # else the product is 0 times whatever the other has
    assert np.isfinite(extract_all(model, rows, bank, **options)).all()
    break_parameter(model, "lora_a" if kind is LoRAParam else part, value, kind)
    with pytest.raises(UserError, match="NaN or infinite numbers among the hidden states in . of 3 rows"):
        extract_all(model, rows, bank, **options)


@pytest.mark.parametrize("part", ["down_proj", "lm_head", "language_model.norm", "embed_tokens"])
@pytest.mark.parametrize(("greedy", "samples"), [(True, 1), (False, 3)])
def test_no_answer_of_a_broken_model_is_handed_out(model, part, greedy, samples):
    prompts = [
        Prompt(key=(n, sample), row=(list(range(n)), [], []), seed=sample)
        for n in (5, 9, 7, 4)
        for sample in range(samples)
    ]
    bank, answers = jnp.zeros((1, model.config.text.hidden_size)), []

    def generate():
        sampling = SamplingConfig(max_new_tokens=3, greedy=greedy)
        generator = Generator(model, sampling, eos_token_ids=[2], batch_size=4)
        generator.generate(prompts, bank, lambda key, tokens: answers.append(key))

    generate()
    assert len(answers) == len(prompts)
    answers.clear()
    break_parameter(model, part, np.nan)
    with pytest.raises(UserError, match="the logits behind a prompt are NaN or infinite"):
        generate()
    assert not answers


@pytest.mark.parametrize("part", ["conv1.kernel", "conv2.bias", "projector", "layer_norm"])
@pytest.mark.parametrize("value", VALUES)
def test_embeddings_of_a_broken_encoder_are_not_kept(model, tmp_path, sound_files, part, value):
    options = {"cache": tmp_path / "bank.safetensors", "cache_key": "k"}
    make_audio_bank(model, MelConfig(num_mel_bins=12), sound_files[:2])
    names = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    name = next((name for name in names if part in name), part)
    break_parameter(model, name, value)
    with pytest.raises(UserError, match=r"embeddings of 2 of 2 clips \(.*0.wav\) hold NaN or infinite"):
        make_audio_bank(model, MelConfig(num_mel_bins=12), sound_files[:2], **options)
    assert not (tmp_path / "bank.safetensors").exists()


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2), ()])
def test_vectors_and_states_that_are_none_are_not_written(tmp_path, value, dtype, shape):
    good = np.ones(shape, dtype)
    check_finite({"good": good, "ids": np.arange(3), "names": np.array(["a"])})
    bad = good.copy()
    bad.reshape(-1)[:1] = value
    path = tmp_path / "steering.safetensors"
    with pytest.raises(
        UserError, match=f"steering.safetensors: NaN .* the vectors in 1 of {max(len(np.atleast_1d(bad)), 1)}"
    ):
        write_extracted(path, Extracted({"good": good, "vectors": bad}))
    assert not path.exists()


NEEDY = [
    name for name in STRATEGY_TABLE if STRATEGY_TABLE[name].module and hasattr(load_strategy(name), "check")
]


def test_strategies_that_take_means_check_their_samples():
    assert {*NEEDY} == {"rrs", "rrs_plus", "rerouting", "harc", "steering", "steering_conditional"}


def manifest(tmp_path, sound_files, kind: str):
    rows = twin_rows(sound_files)
    kept = {
        "harmful alone": [row for row in rows if row["label"] == "harmful"],
        "benign alone": [row for row in rows if row["label"] == "benign"],
        "harmful and borderline": [
            row | ({"label": "borderline"} if row["label"] == "benign" else {}) for row in rows
        ],
        "benign to keep alone": [
            row | ({"role": "keep"} if row["label"] == "benign" else {}) for row in rows
        ],
        "one harmful": rows[:1],
        "both": rows,
    }[kind]
    write_jsonl(tmp_path / "manifest.jsonl", kept)
    return tmp_path / "manifest.jsonl"


@pytest.mark.parametrize("strategy", NEEDY)
@pytest.mark.parametrize("kind", ["harmful alone", "benign alone", "benign to keep alone", "one harmful"])
def test_one_kind_of_questions_is_told_in_the_data_stage(tmp_path, sound_files, strategy, kind):
    config = default_config()
    config.strategy, config.run_dir, config.model.path = strategy, str(tmp_path / "run"), "/no/model"
    config.data.manifest = config.data.eval_manifest = str(manifest(tmp_path, sound_files, kind))
    config.data.everyday = config.data.contrast = 0  # else rrs_plus has benign questions of its own
    if kind == "benign to keep alone" and not strategy.startswith("rrs"):
        pipeline.run(config, ("data",))  # they take these as benign
        return
    with pytest.raises(UserError, match=f"training questions: {strategy} needs harmful and benign ones"):
        pipeline.run(config, ("data",))
    assert not (tmp_path / "run" / ".done" / "data.json").exists()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"rrs.target": "category"}, "rrs.target: category needs harmful and benign questions of each"),
        ({"rrs.project": 4}, "rrs.project: is 4 with 4 benign questions"),
    ],
)
def test_groups_of_variants_are_told_in_the_data_stage(tmp_path, sound_files, fields, reason):
    rows = twin_rows(sound_files)
    rows[0]["category"] = "alone"
    write_jsonl(tmp_path / "manifest.jsonl", rows)
    config = default_config()
    config.run_dir, config.model.path = str(tmp_path / "run"), "/no/model"
    config.data.manifest = config.data.eval_manifest = str(tmp_path / "manifest.jsonl")
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=reason):
        pipeline.run(config, ("data",))


def test_one_benign_question_has_no_covariance():
    config = default_config()
    config.rrs.whiten = 0.1
    rows = twin_rows([None] * 2)
    with pytest.raises(UserError, match="rrs.whiten: one benign question has no covariance"):
        load_strategy("rrs").check(Samples(rows), config)
    load_strategy("rrs").check(Samples(rows + [rows[1] | {"id": "more"}]), config)


def test_the_model_of_these_tests_hears(model, clips):
    assert np.isfinite(audio_bank(model, clips)[0]).all()
