"""A run that goes on from an adapter that PEFT has trained: its start, its updates, what is refused."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import peft
import pytest
import torch
import transformers

import rrs_jax
from helpers.qwen2_audio import last_state, reference_representations
from helpers.tensors import relative_error
from rrs_jax.config import default_config
from rrs_jax.config.prompts import PROMPT_POOL, PROMPT_REFUSAL, PROMPT_T
from rrs_jax.errors import UserError
from rrs_jax.files import read_json, read_jsonl, write_jsonl
from rrs_jax.frozen.extraction import extract_reps
from rrs_jax.run import dry_run, pipeline
from rrs_jax.run.context import RunContext
from rrs_jax.run.folder import RunFolder
from rrs_jax.testing import twin_rows
from rrs_jax.weights import hub

DECODER = r".*language_model.*layers\.\d+\.(self_attn|mlp)\.[a-z]+_proj"
RANK, ALPHA, RATE, WEIGHT, EPOCHS, TOP_M = 4, 7.0, 3e-3, 0.5, 3, 25


def base_model(folder):
    return transformers.Qwen2AudioForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def start(whole_folder, tmp_path_factory):
    """A LoRA that PEFT has trained for some steps on random tokens."""
    torch.manual_seed(0)
    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules=DECODER)
    model = peft.get_peft_model(base_model(whole_folder), settings)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.03)
    ids = torch.randint(3, 120, (4, 12))
    for _ in range(4):
        optimiser.zero_grad()
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
        optimiser.step()
    path = tmp_path_factory.mktemp("start") / "adapter"
    model.save_pretrained(path)
    return path


def make_config(whole_folder, sound_files, start, folder: Path):
    write_jsonl(folder / "manifest.jsonl", twin_rows(sound_files))
    config = default_config()
    config.model.path, config.model.dtype = str(whole_folder), "float32"
    config.run_dir, config.lora.start = str(folder / "run"), start and str(start)
    config.lora.rank, config.lora.alpha = RANK, ALPHA
    config.data.manifest = config.data.eval_manifest = str(folder / "manifest.jsonl")
    config.train.epochs, config.train.batch_size, config.train.learning_rate = EPOCHS, 8, RATE
    config.penalty.weight, config.rrs.top_m = WEIGHT, TOP_M
    config.evaluate.samples, config.evaluate.modes = 1, ("audio_text",)
    config.generate.max_new_tokens = 4
    config.report.representation_epochs = ()
    return config


@pytest.fixture(scope="module")
def run(whole_folder, sound_files, start, tmp_path_factory):
    config = make_config(whole_folder, sound_files, start, tmp_path_factory.mktemp("run"))
    pipeline.run(config, ("data", "extract", "train", "evaluate", "export"))
    return config


def context_of(config) -> RunContext:
    return RunContext(config, RunFolder(config.run_dir, config))


def targets(folder, files, harmful: np.ndarray) -> np.ndarray:
    """Equations 5, 9, 10 and 12 with the representations of the model without any adapter."""
    base = base_model(folder)
    plain, refused = (reference_representations(base, folder, files, t) for t in (PROMPT_T, PROMPT_REFUSAL))
    change = refused[harmful].mean(0) - plain[~harmful].mean(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    (token,) = tokenizer("I", add_special_tokens=False).input_ids
    shares = base.lm_head.weight[token].detach().numpy() * change
    kept = np.argsort(-shares)[: round(TOP_M / 100 * len(shares))]
    vector = np.zeros_like(change)
    vector[kept] = change[kept]
    return plain + np.where(harmful, 1, -1)[:, None] * vector


def continued_by_peft(folder, start, files, harmful, steps) -> peft.PeftModel:
    """The adapter after RRS's updates, written down with PEFT and torch's AdamW.

    steps: of each update the questions and their prompts.
    """
    model = peft.PeftModel.from_pretrained(base_model(folder), start, is_trainable=True)
    processor = transformers.Qwen2AudioProcessor.from_pretrained(folder)
    wanted = torch.tensor(targets(folder, files, harmful), dtype=torch.float32)
    parameters = dict(model.named_parameters())
    pairs = [
        (value, parameters[name.replace("lora_A", "lora_B")])
        for name, value in parameters.items()
        if "lora_A" in name
    ]
    optimiser = torch.optim.AdamW([p for pair in pairs for p in pair], lr=RATE, weight_decay=0.0)
    for step in steps:
        optimiser.zero_grad()
        distances = [
            ((last_state(model, processor, files[i], text) - wanted[i]) ** 2).sum() for i, text in step
        ]
        moved = sum(
            ((ALPHA / RANK * b @ a) ** 2).sum() for a, b in pairs
        )  # from the base, not from the start
        (sum(distances) / len(distances) + WEIGHT * moved).backward()
        optimiser.step()
    return model.eval()


def tensors(model: peft.PeftModel) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy() for name, p in model.named_parameters() if "lora_" in name}


def test_before_the_first_step_the_model_is_that_of_peft(run, start, whole_folder, sound_files):
    model = context_of(run).start_adapters()
    loaded = rrs_jax.load_model(whole_folder)
    batch = rrs_jax.make_batch(loaded, sound_files[:3], PROMPT_T)
    ours = extract_reps(model, batch.batch, batch.audio_bank)[: batch.rows]
    theirs = peft.PeftModel.from_pretrained(base_model(whole_folder), start).eval()
    expected = reference_representations(theirs, whole_folder, sound_files[:3], PROMPT_T)
    assert relative_error(ours, expected) < 1e-4
    without = reference_representations(base_model(whole_folder), whole_folder, sound_files[:3], PROMPT_T)
    assert relative_error(without, expected) > 1e-2


def test_going_on_gives_the_adapter_of_peft_and_torch(run, start, whole_folder, sound_files):
    context = context_of(run)
    schedule, steps = context.training_set().schedule(), []
    for epoch in range(EPOCHS):
        draws, ((selection,),) = schedule.epoch(epoch)
        steps.append([(i, PROMPT_POOL[draws.prompts[i]]) for i in selection.indices])
    theirs = continued_by_peft(
        whole_folder, start, sound_files, context.training_set().samples.harmful, steps
    )
    ours = peft.PeftModel.from_pretrained(base_model(whole_folder), context.folder.adapter)
    began = tensors(peft.PeftModel.from_pretrained(base_model(whole_folder), start))
    found, expected = tensors(ours), tensors(theirs)
    assert found.keys() == expected.keys() == began.keys()
    for name, value in expected.items():
        assert relative_error(found[name] - began[name], value - began[name]) < 1e-3, name
    reps = [reference_representations(m, whole_folder, sound_files, PROMPT_T) for m in (ours.eval(), theirs)]
    assert relative_error(*reps) < 1e-4


def test_the_penalty_counts_from_the_base_and_in_lora_space_from_the_start(
    run, start, whole_folder, sound_files, tmp_path
):
    pairs = tensors(peft.PeftModel.from_pretrained(base_model(whole_folder), start))
    moved = sum(
        ((ALPHA / RANK * pairs[name.replace("lora_A", "lora_B")] @ value) ** 2).sum()
        for name, value in pairs.items()
        if "lora_A" in name
    )
    assert read_jsonl(Path(run.run_dir) / "metrics.jsonl")[0]["penalty"] == pytest.approx(moved, rel=1e-4)
    other = make_config(whole_folder, sound_files, start, tmp_path)
    other.penalty.space = "lora"
    pipeline.run(other, ("data", "extract", "train"))
    penalties = [row["penalty"] for row in read_jsonl(Path(other.run_dir) / "metrics.jsonl")]
    assert penalties[0] == 0 < penalties[1]


def test_vanilla_is_the_model_without_the_start(run, whole_folder, sound_files, tmp_path):
    other = make_config(whole_folder, sound_files, None, tmp_path)
    pipeline.run(other, ("data", "extract", "train", "evaluate"))
    answers = [
        read_jsonl(Path(config.run_dir) / "eval" / "vanilla" / "responses.jsonl") for config in (run, other)
    ]
    assert [row["response"] for row in answers[0]] == [row["response"] for row in answers[1]]


def test_a_runs_own_adapter_is_a_start(run, whole_folder, sound_files, tmp_path):
    again = make_config(whole_folder, sound_files, run.run_dir, tmp_path)
    trained, started = context_of(run).restore_adapters(), context_of(again).start_adapters()
    for ours, theirs in zip(started.lora.pairs(), trained.lora.pairs(), strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture
def config(whole_folder, sound_files, start, tmp_path, monkeypatch):
    """A run in which no stage begins."""
    monkeypatch.setattr(pipeline, "do_stage", lambda *_: pytest.fail("a stage has begun"))
    return make_config(whole_folder, sound_files, start, tmp_path)


def refused(config) -> str:
    with pytest.raises(UserError) as error:
        pipeline.run(config, ("data", "extract", "train"))
    assert str(error.value).endswith(".") and "\n" not in str(error.value)
    return str(error.value)


def changed_settings(start, folder: Path, **changes) -> str:
    shutil.copytree(start, folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | changes))
    return str(folder)


def test_other_settings_are_refused_with_the_flags_to_give(config, start):
    config.lora.rank, config.lora.alpha, config.lora.layers = 8, 16.0, 1
    config.lora.targets = ("q_proj", "v_proj")
    message = refused(config)
    assert message == (
        f"lora.start: {start} was trained with other settings than the run's; give --config.lora.rank=4"
        " --config.lora.alpha=7 --config.lora.targets=all --config.lora.layers=all."
    )
    with pytest.raises(UserError, match="lora.start: .* give --config.lora.rank=4"):
        dry_run.make_plan(config, ("data", "extract", "train"))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"use_dora": True}, "the adapter has DoRA"),
        ({"bias": "all"}, "trained biases (bias=all)"),
        ({"alpha_pattern": {"q_proj": 3}}, "has pairs of different ranks or scales, or lacks some"),
    ],
)
def test_what_training_cannot_go_on_from_is_refused(config, start, tmp_path, changes, words):
    config.lora.start = changed_settings(start, tmp_path / "changed", **changes)
    assert words in refused(config)


def test_an_adapter_of_another_base_is_refused(config, start, tmp_path):
    config.lora.start = changed_settings(start, tmp_path / "other", base_model_name_or_path="OWNER/BASE")
    config.export.base_name = "OWNER/OTHER"
    assert "was trained on OWNER/BASE and the model is OWNER/OTHER; give that model, or" in refused(config)
    config.export.base_name = "OWNER/BASE"
    with pytest.raises(pytest.fail.Exception, match="a stage has begun"):
        pipeline.run(config, ("data",))


def test_a_start_that_is_not_there_is_refused(config, tmp_path, monkeypatch):
    config.lora.start = str(tmp_path / "nowhere")
    assert "nowhere: holds no adapter_config.json; give a PEFT adapter's folder" in refused(config)

    def absent(path, allow_patterns):
        raise OSError(f"{path} is not on the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", absent)
    config.lora.start = "OWNER/ABSENT"
    assert refused(config) == str(
        hub._not_to_be_had("OWNER/ABSENT", OSError("OWNER/ABSENT is not on the hub"), "lora.start")
    )
    assert refused(config).startswith("lora.start: OWNER/ABSENT is no folder and could not be fetched")


def test_a_changed_start_makes_training_stale(run, start, whole_folder, sound_files, tmp_path):
    """Another adapter, or another content of the same one, is another run."""
    copied = shutil.copytree(Path(run.run_dir), tmp_path / "run")
    config = run.copy_and_resolve_references()
    config.run_dir, config.lora.start = str(copied), None
    with pytest.raises(
        UserError, match=r"is a run with another config \(lora.start '.*adapter' there and None"
    ):
        RunFolder(copied, config)
    config.lora.start = str(start)
    assert RunFolder(copied, config).stage_done("train")
    config.lora.start = str(shutil.copytree(start, tmp_path / "same"))
    record = read_json(copied / "config.json")
    record["config"]["lora"]["start"] = config.lora.start
    (copied / "config.json").write_text(json.dumps(record))
    assert not RunFolder(copied, config).stage_done("train")
    settings = read_json(tmp_path / "same" / "adapter_config.json")
    (tmp_path / "same" / "adapter_config.json").write_text(json.dumps(settings | {"revision": "x"}))
    with pytest.raises(UserError, match="lora.start: .*same is not what the run in .* began with"):
        RunFolder(copied, config)
