"""Manifests are checked whole and completed."""

import json

import pytest

from rrs_jax.data.manifest import audio_paths, load_manifest
from rrs_jax.errors import UserError


def write(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_manifest_is_completed(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"x")
    row = {"id": "1", "label": "benign", "question": "Why?", "audio": "a.wav", "note": "mine"}
    path = write(tmp_path / "m.jsonl", row)
    (loaded,) = load_manifest(path)
    assert loaded == row | {
        "pair_id": "1",
        "category": "none",
        "response": None,
        "voice": None,
        "seconds": None,
    }
    assert audio_paths(path, [loaded]) == [tmp_path / "a.wav"]


def test_manifest_faults_come_all_at_once(tmp_path):
    good = {
        "id": "1",
        "pair_id": "1",
        "label": "harmful",
        "category": "self_harm",
        "question": "Why?",
        "seconds": 1,
    }
    path = write(
        tmp_path / "m.jsonl",
        good | {"audio": "missing.wav"},
        good | {"audio": " "},
        "",
        "{broken",
        "[1]",
        {"id": "6", "label": "evil", "question": None, "pair_id": ""},
        good | {"id": "7", "category": 3, "seconds": -1, "label": 5},
        good | {"id": "8", "category": None, "seconds": "two"},
    )
    with pytest.raises(UserError) as error:
        load_manifest(path)
    lines = str(error.value).splitlines()
    expected = [
        f"line 1: audio file {tmp_path / 'missing.wav'} does not exist",
        'line 2: audio is " ", no text',
        "line 2: id '1' is that of line 1 too",
        "line 3: is empty",
        "line 4: is not valid JSON",
        "line 5: holds no JSON object",
        "line 6: question is missing",
        "line 6: audio is missing",
        "line 6: label 'evil' is none of harmful, benign, borderline",
        "line 7: audio is missing",
        "line 7: seconds is -1, no positive number",
        "line 7: label 5 is none of harmful, benign, borderline",
        "line 8: audio is missing",
        'line 8: seconds is "two", no positive number',
    ]
    assert lines[0].startswith(f"{path}: {len(expected)} faults")
    assert [line.strip()[: len(want)] for line, want in zip(lines[1:], expected, strict=True)] == expected


def test_manifest_without_audio(tmp_path):
    path = write(tmp_path / "m.jsonl", {"id": "1", "label": "benign", "question": "Why?"})
    assert load_manifest(path, need_audio=False)[0]["audio"] is None
    with pytest.raises(UserError, match="m.jsonl: no question has a clip in `audio`; add its path"):
        load_manifest(path)
    unlabelled = write(tmp_path / "n.jsonl", {"id": "1", "question": "Why?"})
    with pytest.raises(UserError, match="line 1: label is missing\n  line 1: audio is missing"):
        load_manifest(unlabelled)


def test_manifest_missing_or_empty(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_manifest(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="is empty"):
        load_manifest(write(tmp_path / "m.jsonl", "", ""))
