"""Epochs that a run keeps, against transformers and PEFT, also where it was killed on the way."""

import json

import numpy as np
import peft
import pytest
import transformers

from helpers.qwen2_audio import reference_representations
from helpers.tensors import relative_error
from rrs_jax.config import default_config, validate
from rrs_jax.config.prompts import PROMPT_T
from rrs_jax.errors import UserError
from rrs_jax.files import read_json, read_jsonl, write_jsonl
from rrs_jax.run import pipeline
from rrs_jax.run.recorded_epochs import model_after, recorded_epochs
from rrs_jax.testing import twin_rows
from rrs_jax.weights.safetensors_io import read_header

STAGES = ("data", "extract", "train", "evaluate", "export", "report")


def configured(whole_folder, sound_files, path, **fields):
    rows = twin_rows(sound_files)
    path.mkdir(exist_ok=True)
    write_jsonl(path / "train.jsonl", rows[:4])
    write_jsonl(path / "eval.jsonl", rows[4:])
    config = default_config()
    config.model.path, config.model.dtype, config.run_dir = str(whole_folder), "float32", str(path / "run")
    config.data.manifest, config.data.eval_manifest = str(path / "train.jsonl"), str(path / "eval.jsonl")
    config.train.epochs, config.train.batch_size, config.train.learning_rate = 3, 4, 1e-2
    config.evaluate.samples, config.generate.max_new_tokens, config.evaluate.modes = 1, 3, ("audio_text",)
    config.update_from_flattened_dict(fields)
    return config


def states(run_dir, epoch):
    entries, metadata = read_header(run_dir / "epochs" / str(epoch) / "representations.safetensors")
    return np.array(entries["states"].array()), metadata


@pytest.fixture(scope="module")
def finished(whole_folder, sound_files, tmp_path_factory):
    """Killed by the step behind epoch 2, before its checkpoint was written, and started again."""
    path = tmp_path_factory.mktemp("epochs")
    config = configured(whole_folder, sound_files, path, **{"evaluate.epochs": ("1", "3")})
    validate(config)
    whole = pipeline.keep_adapter

    def killed(session, epoch, lora):
        whole(session, epoch, lora)
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "keep_adapter", killed)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(config, STAGES)
    pipeline.run(config, STAGES)
    return config, path / "run"


def test_states_are_those_of_transformers_and_peft(finished, whole_folder, sound_files):
    """Epoch 0 is the base model, the last epoch the exported adapter; float16 has three digits."""
    _, path = finished
    assert sorted(int(found.name) for found in (path / "epochs").iterdir()) == [0, 1, 2, 3]
    base = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(whole_folder)
    before, metadata = states(path, 0)
    assert before.dtype == np.float16 and before.shape == (4, 48)
    expected = reference_representations(base, whole_folder, sound_files[4:], PROMPT_T)
    assert relative_error(before.astype(np.float32), expected) < 1e-3
    adapted = peft.PeftModel.from_pretrained(base, path / "export" / "adapter").eval()
    after, _ = states(path, 3)
    expected = reference_representations(adapted, whole_folder, sound_files[4:], PROMPT_T)
    assert relative_error(after.astype(np.float32), expected) < 1e-3
    assert relative_error(before.astype(np.float32), expected) > 1e-2
    assert [json.loads(metadata[name]) for name in ("ids", "labels", "pairs")] == [
        ["q4", "q5", "q6", "q7"],
        ["harmful", "benign"] * 2,
        ["p2", "p2", "p3", "p3"],
    ]


def test_recording_and_killing_change_no_result(finished, whole_folder, sound_files, tmp_path):
    """Beside a run that records nothing and was left alone."""
    _, path = finished
    other = configured(whole_folder, sound_files, tmp_path, **{"report.representation_epochs": ()})
    pipeline.run(other, ("data", "extract", "train"))
    assert not (tmp_path / "run" / "epochs").exists()
    assert (
        read_json(path / ".done" / "train.json")["adapter"]
        == read_json(tmp_path / "run" / ".done" / "train.json")["adapter"]
    )
    losses = [[row["loss"] for row in read_jsonl(run / "metrics.jsonl")] for run in (path, tmp_path / "run")]
    assert losses[0] == losses[1] and len(losses[0]) == 3


def test_an_epoch_is_evaluated_like_the_last(finished):
    """The adapters after the last epoch, evaluated as an epoch, give the answers of the final evaluation."""
    config, path = finished
    assert [found.name for found in (path / "eval" / "epochs").iterdir()] == ["1"]
    assert read_json(path / "eval" / "epochs" / "1" / "rrs" / "summary.json")["nsi"] is not None
    context = pipeline.RunContext(config, pipeline.RunFolder(config.run_dir, config))
    hashes = [pipeline.adapter_hash(model_after(context, epoch)) for epoch in (1, 2, 3)]
    assert len(set(hashes)) == 3 and hashes[2] == read_json(path / ".done" / "train.json")["adapter"]
    meta = read_json(path / "eval" / "epochs" / "1" / "rrs" / "responses.meta.json")
    assert hashes[0] in json.dumps(meta)


def test_the_page_has_what_was_kept(finished):
    """Figure 2 of the epochs 0, 2 and the last; the rates before training, after epoch 1, and after the
    last."""
    _, path = finished
    text = (path / "report" / "index.html").read_text()
    assert [f"t-SNE of RRS after epoch {epoch}" in text for epoch in range(5)] == [
        True,
        False,
        True,
        True,
        False,
    ]
    assert [f"ORR benign, epoch {epoch}:" in text for epoch in range(4)] == [True, True, False, True]
    assert set(read_json(path / "report" / "figure2.json")["numbers"]) == {"0", "2", "3"}


def test_an_epoch_that_was_not_kept_is_named(finished, whole_folder, sound_files, tmp_path):
    config = configured(whole_folder, sound_files, tmp_path, **{"report.representation_epochs": (0,)})
    pipeline.run(config, ("data", "extract", "train"))
    assert sorted(found.name for found in (tmp_path / "run" / "epochs").iterdir()) == ["0"]
    config.evaluate.epochs = (2,)
    with pytest.raises(
        UserError,
        match=r"evaluate\.epochs: the adapters after epoch 2 were not kept; choose among .*\(none\)",
    ):
        pipeline.run(config, ("evaluate",))


@pytest.mark.parametrize("field", ["evaluate.epochs", "report.representation_epochs"])
def test_wrong_epochs_are_sentences(field):
    config = default_config()
    config.model.path = "mini"
    config.update_from_flattened_dict({field: (4, 12)})
    with pytest.raises(UserError, match=f"{field} has 12, behind the last of train.epochs 10"):
        validate(config)
    for value in (("a",), (1, 1), (-1,)):
        config.update_from_flattened_dict({field: value})
        with pytest.raises(UserError, match=f"{field} is .*, give different epochs"):
            validate(config)


def test_which_epochs_are_recorded():
    """The paper's six panels are the default."""
    config = default_config()
    assert recorded_epochs(config) == [0, 2, 4, 6, 8, 10]
    config.train.epochs = 5
    assert recorded_epochs(config) == [0, 2, 4, 5]
    config.report.representation_epochs = "ends"
    assert recorded_epochs(config) == [0, 5]
    config.report.representation_epochs = ("3", 1)
    assert recorded_epochs(config) == [1, 3]
    config.strategy = "steering"
    assert recorded_epochs(config) == []
