"""Names and paths of others that would lead out of the folder, or into it what nobody may publish."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from rrs_jax.config import default_config
from rrs_jax.data.distractors import make_variant
from rrs_jax.data.manifest import load_manifest
from rrs_jax.data.pack import pack
from rrs_jax.data.speech import placed_clip
from rrs_jax.data.voices import read_voices
from rrs_jax.errors import UserError
from rrs_jax.evaluate.air_bench_items import META, read_meta
from rrs_jax.files import safe_name
from rrs_jax.run.sweep import read_sweep

NAMES = [
    "../../outside", "/tmp/outside", "..", ".", "", ".hidden", "a/b", "a\\b", "x" * 5000, "é" * 200,
    "nul\0byte", "line\nbreak", "\x1b[2J", "~/x", "$HOME", "-rf", "con:", "a?b*c", "“q”", "../" * 50,
    "C:\\x", "a\u202eb",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_that_of_one_file_in_the_folder(tmp_path, name):
    safe = safe_name(name)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / f"{safe}.flac").write_bytes(b"x")
    assert [path.name for path in folder.iterdir()] == [f"{safe}.flac"]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert safe.isprintable() and not safe.startswith(".") and len(safe.encode()) <= 120
    assert safe_name(safe) == safe


@pytest.mark.parametrize(
    "name", ["authors-001-harmful", "a.b_c-d", "Frage 1 äß", "学习", "x=1,y=2@z+", "a" * 100]
)
def test_a_good_name_stays(name):
    assert safe_name(name) == name


def test_different_names_stay_different():
    assert len({safe_name(name) for name in NAMES}) == len(NAMES)


def rows(folder: Path, ids: list[str], audio: str = "a.wav") -> Path:
    soundfile.write(folder / "a.wav", 0.3 * np.sin(np.arange(8000) / 7), 16_000)
    path = folder / "manifest.jsonl"
    row = {"label": "harmful", "question": "Why?", "audio": audio}
    path.write_text("".join(json.dumps(row | {"id": name}) + "\n" for name in ids))
    return path


def all_files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_ids_lead_nothing_out_of_what_is_packed_or_made(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    ids = [name for name in NAMES if name.strip() and "\0" not in name]
    manifest = rows(source, ids)
    before = all_files(tmp_path)
    pack(source, tmp_path / "packed")
    for kind in ("silence", "noise"):
        made = make_variant(kind, manifest, tmp_path / "made")
        assert [row["id"] for row in load_manifest(made)] == ids
    (voice, *_) = read_voices()
    placed_clip((source / "a.wav", 0.5), voice, tmp_path / "made", "../../x")
    new = all_files(tmp_path) - before
    assert new and all(
        path.is_relative_to(tmp_path / "packed") or path.is_relative_to(tmp_path / "made") for path in new
    )
    listed = (tmp_path / "packed" / "source" / "train" / "metadata.jsonl").read_text().splitlines()
    for line, name in zip(listed, ids, strict=True):
        row = json.loads(line)
        assert row["id"] == name and row["file_name"].endswith(".wav")
        assert (tmp_path / "packed" / "source" / "train" / row["file_name"]).is_file()


@pytest.mark.parametrize("secret", ["/etc/passwd", "../secret.txt", "secret.wav"])
def test_what_is_packed_is_opened_as_sound_first(tmp_path, secret):
    source = tmp_path / "source"
    source.mkdir()
    (tmp_path / "secret.txt").write_text("password\n" * 100)
    (source / "secret.wav").write_text("password\n" * 100)
    rows(source, ["1"], secret)
    with pytest.raises(UserError, match="manifest.jsonl, row 1: .* is not readable as audio"):
        pack(source, tmp_path / "packed")
    assert not any("passw" in path.name or "secret" in path.name for path in all_files(tmp_path / "packed"))
    assert not all_files(tmp_path / "packed")


@pytest.mark.parametrize("name", ["..", "../x", ".hidden", "a/b", "a\0b"])
def test_runs_of_a_sweep_lie_in_its_folder(tmp_path, name):
    (tmp_path / "sweep.py").write_text(f"def runs(config):\n    yield {name!r}, {{}}\n")
    with pytest.raises(UserError, match="is no name of a run"):
        read_sweep(str(tmp_path / "sweep.py"), default_config())


@pytest.mark.parametrize(
    "path, dataset", [("../../secret.wav", "x"), ("/etc/passwd", "x"), ("a.wav", "x/../../..")]
)
def test_air_bench_names_files_of_its_folder_alone(tmp_path, path, dataset):
    item = {"path": path, "question": "What?", "answer_gt": "A dog.", "task_name": "speech_QA",
            "dataset_name": dataset, "uniq_id": 1, "meta_info": "A dog."}  # fmt: skip
    (tmp_path / META).write_text(json.dumps([item]))
    with pytest.raises(UserError, match="lies outside of the data set"):
        read_meta(tmp_path)
