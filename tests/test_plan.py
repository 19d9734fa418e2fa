"""The dry run's figures against torch, PEFT and arithmetic by hand."""

import json

import peft
import pytest
import torch
import transformers

from rrs_jax.config import default_config
from rrs_jax.costs import DeviceRate
from rrs_jax.errors import UserError
from rrs_jax.plan import MINI_CONFIG, format_plan, make_plan
from rrs_jax.run_folder import RunFolder
from rrs_jax.stages import STAGES

RATE = DeviceRate(flops=1e9, bandwidth=1e8)


@pytest.fixture
def config(folder, tmp_path):
    config = default_config()
    config.model.path = str(folder)
    config.model.dtype = "float32"
    config.run_dir = str(tmp_path / "run")
    config.mesh.data = 8
    return config


@pytest.mark.parametrize("first", ["all", 1])
def test_parameters_are_those_of_torch_and_peft(config, reference, first):
    config.lora.layers = first
    config.lora.rank = 3
    plan = make_plan(config, tuple(STAGES), RATE)
    assert plan.frozen == sum(parameter.numel() for parameter in reference.parameters())
    layers = "[12]" if first == 1 else r"\d+"
    lora = peft.LoraConfig(r=3, target_modules=rf".*language_model.*layers\.{layers}\..*_proj")
    adapted = peft.get_peft_model(on_meta(reference.config), lora)
    assert plan.trainable == sum(p.numel() for name, p in adapted.named_parameters() if "lora_" in name)
    assert plan.memory["weights"] == 4 * plan.frozen
    assert plan.memory["adapter, gradient, moments"] == 4 * 4 * plan.trainable


def on_meta(config: transformers.Qwen2AudioConfig) -> transformers.Qwen2AudioForConditionalGeneration:
    with torch.device("meta"):
        return transformers.Qwen2AudioForConditionalGeneration(config)


def test_mini_before_it_is_made_has_the_sizes_of_its_parts():
    config = default_config()
    config.model.path = "mini"
    config.mesh.data = 8
    text = MINI_CONFIG["text_config"] | {"model_type": "qwen2"}
    model = on_meta(transformers.Qwen2AudioConfig(audio_config=MINI_CONFIG["audio_config"], text_config=text))
    tied = sum(parameter.numel() for name, parameter in model.named_parameters() if name != "lm_head.weight")
    assert make_plan(config, (), RATE).frozen == tied


def test_questions_steps_and_answers(config, tmp_path):
    plan = make_plan(config, tuple(STAGES), RATE)
    assert (plan.sizes.train, plan.sizes.harmful, plan.sizes.benign, plan.sizes.borderline) == (
        560,
        140,
        140,
        120,
    )
    assert plan.steps == 350  # 560 / 16 × 10
    assert plan.responses == 2 * 5 * (3 * 140 + 140 + 120)

    rows = [
        {"id": str(i), "label": "harmful" if i % 2 else "benign", "seconds": 4.0, "audio": "a.wav"}
        for i in range(33)
    ]
    manifest = tmp_path / "questions.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.data.manifest = config.data.eval_manifest = str(manifest)
    config.evaluate.limit = 5
    config.evaluate.vanilla = False
    plan = make_plan(config, tuple(STAGES), RATE)
    assert (plan.sizes.train, plan.sizes.tokens, plan.steps) == (33, 145, 30)
    assert plan.responses == 5 * (3 * 5 + 5)
    assert plan.seconds["data"] == 0


def test_training_time_is_four_operations_a_weight_and_token_where_there_are_adapters(config, reference):
    matrices = sum(
        parameter.numel()
        for name, parameter in reference.named_parameters()
        if "language_model" in name and "_proj" in name and name.endswith("weight")
    )
    plan = make_plan(config, ("train",), RATE)
    questions = 10 * 560 * plan.sizes.tokens
    assert plan.seconds["train"] == pytest.approx(4 * matrices * questions / (RATE.flops * 0.5 * 8))
    config.lora.layers = 2  # of 3
    assert make_plan(config, ("train",), RATE).seconds["train"] == pytest.approx(
        (2 + 2 / 3) * matrices * questions / (RATE.flops * 0.5 * 8)
    )


def test_sharding_divides_the_memory_of_weights(config):
    whole = make_plan(config, (), RATE).memory["weights"]
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, 4, 2
    assert make_plan(config, (), RATE).memory["weights"] < 0.5 * whole


def test_the_page_says_what_is_done_and_writes_nothing(config, tmp_path):
    text = format_plan(make_plan(config, tuple(STAGES), RATE), config)
    assert "data      to do" in text and "estimate" in text and not (tmp_path / "run").exists()
    RunFolder(config.run_dir, config).mark_done("data")
    assert "data      done" in format_plan(make_plan(config, tuple(STAGES), RATE), config)


def test_what_a_run_would_refuse_is_refused(config):
    config.lora.layers = 3
    with pytest.raises(UserError, match="lora.layers: 3 leaves no layer"):
        make_plan(config, (), RATE)
    config.lora.layers, config.train.batch_size = "all", 12
    with pytest.raises(UserError, match="train.batch_size: 12 is no multiple of .* = 8"):
        make_plan(config, (), RATE)
    config.model.path, config.train.batch_size = "./nowhere", 16
    with pytest.raises(UserError, match="model.path: ./nowhere is no folder"):
        make_plan(config, (), RATE)


def test_questions_already_written_are_counted(config, tmp_path):
    for folder, labels in (
        ("data", ["harmful", "benign"]),
        ("data/eval", ["harmful", "borderline", "borderline"]),
    ):
        rows = [{"label": label, "seconds": 2.0, "audio": "a.wav"} for label in labels]
        (tmp_path / "run" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / folder / "manifest.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )
    plan = make_plan(config, tuple(STAGES), RATE)
    assert (plan.sizes.train, plan.sizes.harmful, plan.sizes.benign, plan.sizes.borderline) == (2, 1, 0, 2)
    assert (plan.sizes.tokens, plan.seconds["data"]) == (95, 0)
