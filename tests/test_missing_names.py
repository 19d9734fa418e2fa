"""Files that are missing, or lack a name that is read, as those of another version may: which file, what,
what to do."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rrs_jax.config import default_config
from rrs_jax.errors import UserError
from rrs_jax.evaluate.judges.sheet import read_sheet
from rrs_jax.mini.bridge_data import load_clips, save_clips
from rrs_jax.mini.ctranslate2_reader import read_variables
from rrs_jax.mini.train_bridge import load_bridge
from rrs_jax.models.lora import LoRAParam
from rrs_jax.report.separation import read_recorded
from rrs_jax.report.table import paste
from rrs_jax.report.training_figures import contributions
from rrs_jax.run.recorded_epochs import model_after
from rrs_jax.strategies.extracted import read_extracted
from rrs_jax.strategies.rivals import harc, steering
from rrs_jax.weights.export_folder import new_folder
from rrs_jax.weights.safetensors_io import load_file, save_file

EXTRACT = "delete it and run the stage extract again"
QUESTIONS = {name: json.dumps(["a", "b"]) for name in ("ids", "labels", "pairs")}


def build_harc(folder):
    samples = SimpleNamespace(harmful=np.array([True, False]))
    return harc.build(read_extracted(folder / "harc.safetensors"), samples, default_config())


def serve_steering(folder):
    frozen = SimpleNamespace(num_layers=2, steered=lambda *_: None)
    return steering.serve(read_extracted(folder / "steering.safetensors"), None, frozen, default_config())


def draw_contributions(folder):
    recipe = SimpleNamespace(runs=[SimpleNamespace(path=folder)], id=("a",), title="a")
    return contributions([recipe], {("a",): "a"})


def read_epochs(folder):
    return read_recorded(folder)


def read_adapters(folder):
    adapters = nnx.Dict(lora=LoRAParam(jnp.zeros(2)))
    run = SimpleNamespace(folder=SimpleNamespace(epochs=folder / "epochs"), fresh_adapters=lambda: adapters)
    return model_after(run, 3)


def read_bridge(folder):
    row = SimpleNamespace(names=lambda: ["a"], convert=lambda array: array)
    return load_bridge(folder, [row], nnx.State({}))


def write_bridge(folder):
    (folder / "progress.json").write_text('{"step": 5}')
    save_file(folder / "bridge-00002-of-00003.safetensors", {"b": np.zeros(2, np.float16)})


def write(name, arrays, metadata=None):
    def write(folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(folder / name, {array: np.ones((2, 2), np.float32) for array in arrays}, metadata)

    return write


@pytest.mark.parametrize(
    ("make", "read", "told"),
    [
        (
            write("harc.safetensors", ["means"]),
            build_harc,
            f"harc.safetensors: holds no directions, .*{EXTRACT}",
        ),
        (
            write("harc.safetensors", ["means", "directions"], {"layers": "[1]"}),
            build_harc,
            f"harc.safetensors: holds no closing, .*{EXTRACT}",
        ),
        (
            write("steering.safetensors", ["weights", "bias"]),
            serve_steering,
            f"steering.safetensors: holds no vectors, .*{EXTRACT}",
        ),
        (
            write("representations.safetensors", ["contribution", "safety_vector"]),
            draw_contributions,
            "representations.safetensors: holds no top_m, .*delete it and make it again",
        ),
        (
            write("epochs/3/representations.safetensors", ["rows"], QUESTIONS),
            read_epochs,
            r"3.representations.safetensors: holds no states, .*delete .*epochs and train again",
        ),
        (
            write("epochs/3/representations.safetensors", ["states"], {"ids": "[]", "labels": "[]"}),
            read_epochs,
            r"3.representations.safetensors: holds no pairs, .*delete .*epochs and train again",
        ),
        (
            write("epochs/3/adapter.safetensors", ["other"]),
            read_adapters,
            r"3.adapter.safetensors: holds no lora, .*train in another --config.run_dir",
        ),
        (
            write("features.safetensors", ["features", "frames"]),
            load_clips,
            "features.safetensors: holds no feature_lengths, .*delete it, and it is made again",
        ),
        (write_bridge, read_bridge, r"bridge-\*.safetensors: holds no a, .*copy all files of the bridge"),
    ],
)
def test_what_a_file_lacks_is_one_sentence(make, read, told, tmp_path):
    make(tmp_path)
    with pytest.raises(UserError, match=f"^{tmp_path}.*{told}") as raised:
        read(tmp_path)
    assert "\n" not in str(raised.value)


def test_features_that_are_cut_short_are_made_again(tmp_path):
    file = tmp_path / "features.safetensors"
    save_clips([(np.zeros((4, 8), np.float16), 6)], file)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match="is cut short.*; delete it, and it is made again"):
        load_clips(tmp_path)


def test_a_name_may_be_asked_for_without_being_there(tmp_path):
    save_file(tmp_path / "a.safetensors", {"a": np.zeros(2)}, {"b": "1"})
    arrays, metadata = load_file(tmp_path / "a.safetensors")
    assert arrays.get("c") is None and metadata.get("c") is None and "c" not in arrays
    assert set(arrays) == {"a"} and metadata == {"b": "1"}


READERS = (read_sheet, lambda path: paste(path, "name", ""), load_file, read_variables)


@pytest.mark.parametrize("read", READERS)
def test_a_file_that_is_missing_is_told_in_words(read, tmp_path):
    with pytest.raises(UserError, match="absent: cannot be read .*No such file or directory") as error:
        read(tmp_path / "absent")
    assert "Errno" not in str(error.value) and str(error.value).count("absent") == 1


def test_an_export_below_a_file_is_told_in_words(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="the export failed .File exists.; free space"):
        with new_folder(tmp_path / "file" / "adapter", tmp_path / "base", 0, {}):
            pass
