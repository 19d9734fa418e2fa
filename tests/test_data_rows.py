"""Rows of other programs and data sets: names, forms of clips, numbers as text, halves of characters."""

import base64
import io
import itertools
import json
import math

import numpy as np
import pytest
import soundfile

from rrs_jax.data.clips import LOOSE_NAMES, NAMES, clip_path
from rrs_jax.data.manifest import audio_paths, load_manifest
from rrs_jax.data.pack import pack
from rrs_jax.data.rows import OTHER_NAMES, own_row
from rrs_jax.data.values import category_of, text_of
from rrs_jax.errors import UserError
from rrs_jax.evaluate.question_sets import read_question_sets
from rrs_jax.files import has_half_character

QUESTION = "How do I open a jar?"
ROW = {"id": "1", "label": "benign", "question": QUESTION}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RRS_JAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def clip(tmp_path):
    """Path of a clip of 0.25 s whose samples are 0.25."""
    (tmp_path / "wav").mkdir()
    soundfile.write(tmp_path / "wav" / "a b.wav", np.full(4_000, 0.25), 16_000)
    return tmp_path / "wav" / "a b.wav"


def manifest(folder, *rows, name="m.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def heard(folder, row) -> np.ndarray:
    """Samples of the only row's clip, which a manifest and a question set give alike."""
    path = manifest(folder, row)
    (loaded,) = load_manifest(path)
    (asked,) = read_question_sets([f"jsonl:{path}"])
    (clip,) = audio_paths(path, [loaded])
    assert clip.samefile(asked["audio"])
    return soundfile.read(clip)[0]


@pytest.mark.parametrize("name", [*NAMES, *(name.upper() for name in NAMES[1:4]), *LOOSE_NAMES])
def test_a_clip_is_found_under_any_known_name(tmp_path, clip, capsys, name):
    assert heard(tmp_path, ROW | {name: "wav/a b.wav"}).tolist() == [0.25] * 4_000
    said = capsys.readouterr().err
    assert said.count(f"takes audio from {name} in 1 of 1 rows") == (0 if name == "audio" else 2)


def forms(clip) -> dict:
    content = clip.read_bytes()
    letters = base64.b64encode(content).decode()
    url = "data:audio/wav;base64," + letters
    return {
        "relative": "wav/a b.wav",
        "absolute": str(clip),
        "file address": clip.as_uri(),
        "data address": url,
        "data address in lines": "data:audio/x-wav;base64,"
        + "\n".join(letters[i : i + 76] for i in range(0, 2000, 76))
        + letters[2052:],
        "percent": "data:audio/wav," + "".join(f"%{byte:02x}" for byte in content),
        "letters alone": letters,
        "path object": {"path": "wav/a b.wav", "bytes": None},
        "bytes object": {"path": "gone.wav", "bytes": letters},
        "bytes as numbers": {"bytes": list(content), "path": None},
        "array": {"path": None, "array": [0.25] * 4_000, "sampling_rate": 16_000},
        "array of a lost file": {"path": "/gone/a.wav", "array": [0.25] * 4_000, "sampling_rate": 16_000.0},
        "channels first": {"array": [[0.25] * 4_000], "sampling_rate": 16_000},
        "address object": {"url": url},
        "OpenAI's object": {"data": letters, "format": "wav"},
        "list": ["wav/a b.wav"],
        "list of an object": [{"path": str(clip)}],
    }


FORMS = (
    "relative", "absolute", "file address", "data address", "data address in lines", "percent",
    "letters alone", "path object", "bytes object", "bytes as numbers", "array", "array of a lost file",
    "channels first", "address object", "OpenAI's object", "list", "list of an object",
)  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["audio", "audios", "audio_filepath"])
def test_a_clip_is_read_in_any_clear_form(tmp_path, clip, form, name):
    assert set(FORMS) == set(forms(clip))
    samples = heard(tmp_path, ROW | {name: forms(clip)[form]})
    assert np.abs(samples - 0.25).max() < 1e-4 and samples.size == 4_000


def test_home_folder(tmp_path, clip, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert heard(tmp_path, ROW | {"audio": "~/wav/a b.wav"}).size == 4_000


@pytest.mark.parametrize("value", [None, "", [], {}, {"path": None, "bytes": None}, [None], math.nan])
@pytest.mark.parametrize("name", ["audio", "audio_path", "audios"])
def test_no_clip_is_none(tmp_path, value, name):
    (row,) = load_manifest(manifest(tmp_path, ROW | {name: value}), need_audio=False)
    assert row["audio"] is None


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("https://example.org/a.wav", "is an address"),
        ("s3://bucket/a.wav", "is an address"),
        (3, "is 3, no text"),
        (True, "is true, no text"),
        (" ", 'is " ", no text'),
        (["a.wav", "b.wav"], "has 2 clips; a question has one"),
        ([0.1, 0.2, 0.3], "is a list of numbers"),
        ({"array": [0.1, 0.2]}, "an array without its sampling_rate"),
        ({"array": ["x"], "sampling_rate": 16_000}, "an array that holds no numbers"),
        ({"array": [0.1], "sampling_rate": 2**31}, "at most 64 channels and 768000 Hz"),
        ({"array": [0.1], "sampling_rate": 10**300}, "at most 64 channels and 768000 Hz"),
        ({"array": [[]], "sampling_rate": 16_000}, "an array holds samples"),
        ({"array": [[0.1] * 70] * 80, "sampling_rate": 16_000}, "at most 64 channels"),
        ({"width": 3}, "is an object with width"),
        ("data:audio/wav;base64,???", "no base64"),
        ("data:audio/wav;base64,", "no bytes of audio"),
        ("data:audio/wav;base64", "without content"),
        ("x" * 5_000, "audio"),
    ],
)
@pytest.mark.parametrize("name", ["audio", "audio_filepath"])
def test_what_is_no_clip_is_a_fault_of_its_line(tmp_path, value, reason, name):
    path = manifest(tmp_path, ROW, ROW | {"id": "2", name: value})
    for read in (load_manifest, lambda path: read_question_sets([f"jsonl:{path}"])):
        with pytest.raises(UserError) as refused:
            read(path)
        (line,) = [line for line in str(refused.value).splitlines() if "line 2" in line]
        assert reason in line and len(line) < 500


@pytest.mark.parametrize("name", ["recording", "wavs", "my_clip", "question_audio", "Tonspur"])
@pytest.mark.parametrize(
    "value", ["a.wav", ["b.MP3"], {"bytes": None, "path": "c.flac"}, "data:audio/wav;base64,AA"]
)
def test_a_clip_under_an_unknown_name_is_refused_with_the_name_to_use(tmp_path, name, value):
    with pytest.raises(UserError, match=f"line 1: seems to have a clip under {name}.*write it under audio"):
        load_manifest(manifest(tmp_path, ROW | {name: value}), need_audio=False)
    (row,) = load_manifest(manifest(tmp_path, ROW | {name: value, "audio": "x.wav"}), need_audio=False)
    assert row["audio"] == "x.wav"  # audio counts before all


@pytest.mark.parametrize(
    "own", [{"image": {"bytes": "x", "path": "a.png"}}, {"note": "see a.wav"}, {"path": "data/3"}]
)
def test_fields_that_are_no_clips_stay(tmp_path, own):
    (row,) = load_manifest(manifest(tmp_path, ROW | own), need_audio=False)
    assert row["audio"] is None and row.items() >= own.items()


def test_two_names_with_different_clips_are_a_fault_and_with_the_same_are_not(tmp_path, clip):
    both = {"file_name": "wav/a b.wav", "audio_path": "wav/a b.wav"}
    assert heard(tmp_path, ROW | both).size == 4_000
    with pytest.raises(UserError, match="under file_name and another under audio_path; keep one"):
        load_manifest(manifest(tmp_path, ROW | both | {"audio_path": "other.wav"}))


@pytest.mark.parametrize(
    ("ours", "other"), [(ours, other) for ours, names in OTHER_NAMES.items() for other in names]
)
def test_fields_are_read_under_names_of_others(tmp_path, capsys, ours, other):
    value = {"seconds": 2.5}.get(ours, "Some words")
    row = {name: entry for name, entry in ROW.items() if name != ours} | {other: value}
    (loaded,) = load_manifest(manifest(tmp_path, row), need_audio=False)
    assert loaded[ours] == value and other not in loaded
    assert f"takes {ours} from {other} in 1 of 1 rows" in capsys.readouterr().err


TURN = {"role": "user", "content": f"<audio>{QUESTION}"}
CONVERSATIONS = {
    "ms-swift": {"messages": [TURN, {"role": "assistant", "content": "Turn it."}], "audios": ["wav/a b.wav"]},
    "ms-swift with a system": {"messages": [{"role": "system", "content": "Be kind."}, TURN,
                               {"role": "assistant", "content": "Turn it."}], "audios": "wav/a b.wav"},
    "ms-swift's first": {"query": f"Audio 1: <audio>wav/a b.wav</audio>\n{QUESTION}", "response": "Turn it."},
    "ms-swift's second": {"query": f"<audio>{QUESTION}", "response": "Turn it.", "audios": ["wav/a b.wav"]},
    "LLaMA-Factory": {"conversations": [{"from": "human", "value": f"<audio>{QUESTION}"},
                                        {"from": "gpt", "value": "Turn it."}], "audios": ["wav/a b.wav"]},
    "Alpaca": {"instruction": f"<audio>{QUESTION}", "input": "", "output": "Turn it.",
               "audios": ["wav/a b.wav"]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "wav/a b.wav"},
                            {"type": "text", "text": QUESTION}]},
                           {"role": "assistant", "content": "Turn it."}]},
    "address parts": {"messages": [{"role": "user", "content": [
                          {"type": "audio_url", "audio_url": {"url": "wav/a b.wav"}},
                          {"type": "text", "text": QUESTION}]},
                          {"role": "assistant", "content": [{"type": "text", "text": "Turn it."}]}]},
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations_are_rows(tmp_path, clip, name):
    row = CONVERSATIONS[name] | {"label": "benign"}
    path = manifest(tmp_path, row, row)
    first, second = load_manifest(path)
    assert (first["question"], first["response"], first["label"]) == (QUESTION, "Turn it.", "benign")
    assert (first["id"], second["id"], second["pair_id"]) == ("line-1", "line-2", "line-2")
    assert {"messages", "conversations", "audios"}.isdisjoint(first)
    assert all(p.samefile(clip) for p in audio_paths(path, [first, second]))
    assert heard(tmp_path, row).size == 4_000
    (tmp_path / "list.json").write_text(json.dumps([row, row]))
    listed = load_manifest(tmp_path / "list.json")
    assert [entry["id"] for entry in listed] == ["row-1", "row-2"] and listed[0]["question"] == QUESTION


def test_openai_audio_within_the_line(tmp_path, clip):
    letters = base64.b64encode(clip.read_bytes()).decode()
    parts = [
        {"type": "text", "text": QUESTION},
        {"type": "input_audio", "input_audio": {"data": letters, "format": "wav"}},
    ]
    assert (
        heard(tmp_path, {"label": "benign", "messages": [{"role": "user", "content": parts}]}).size == 4_000
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [TURN, TURN]}, "messages has 2 of the field question"),
        ({"messages": [{"role": "user", "content": "<audio>"}]}, "question is missing"),
        ({"messages": [{"content": "x"}]}, "a turn in messages without role and content"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "a turn of 'wizard'"),
        ({"messages": [TURN], "audios": ["a.wav", "b.wav"]}, "has 2 clips"),
        ({"messages": [TURN], "label": None}, "label is missing"),
    ],
)
def test_conversations_that_are_no_question_are_faults(tmp_path, row, reason):
    with pytest.raises(UserError, match=reason):
        load_manifest(manifest(tmp_path, {"label": "benign"} | row), need_audio=False)


def test_what_pack_writes_is_read_again(tmp_path, clip):
    rows = [ROW | {"id": f"r{i}", "audio": "wav/a b.wav", "seconds": 0.25, "voice": "v"} for i in range(3)]
    before = load_manifest(manifest(tmp_path, *rows, name="manifest.jsonl"))
    pack(tmp_path / "manifest.jsonl", tmp_path / "packed")
    (metadata,) = (tmp_path / "packed").rglob("metadata.jsonl")
    after = load_manifest(metadata)
    assert [row | {"audio": None} for row in after] == [row | {"audio": None} for row in before]
    assert all(soundfile.info(path).frames == 4_000 for path in audio_paths(metadata, after))


NUMBERS = [(3, "3"), (0, "0"), (3.0, "3"), (-7, "-7"), (2.5, "2.5"), (10**15, str(10**15)), ([4], "4")]


@pytest.mark.parametrize(("value", "text"), NUMBERS)
@pytest.mark.parametrize("name", ["id", "pair_id", "category", "question", "response", "voice"])
def test_a_number_counts_as_its_text_in_every_field(tmp_path, value, text, name):
    assert text_of(value) == category_of(value) == text
    path = manifest(tmp_path, ROW | {name: value})
    assert load_manifest(path, need_audio=False)[0][name] == text
    if name in ("id", "pair_id", "category", "question"):
        assert read_question_sets([f"jsonl:{path}"])[0][name] == text


@pytest.mark.parametrize("value", [True, {"a": 1}, ["a", "b"], [[1, 2]], math.inf])
@pytest.mark.parametrize("name", ["id", "pair_id", "question", "response", "label", "voice"])
def test_what_is_no_text_is_a_fault_and_never_dropped(tmp_path, value, name):
    said = f"{name} is .*, no text" if value != math.inf else "is not valid JSON .holds Infinity"
    with pytest.raises(UserError, match=f"line 1: {said}"):
        load_manifest(manifest(tmp_path, ROW | {name: value}), need_audio=False)


@pytest.mark.parametrize("value", [[[]], [[[]]], [None], [math.nan], [""], [[None]], [{}]])
def test_a_list_of_nothing_is_missing(tmp_path, value):
    names = ("id", "pair_id", "response", "voice", "category")
    rows = load_manifest(manifest(tmp_path, ROW | dict.fromkeys(names, value)), need_audio=False)
    assert rows == load_manifest(manifest(tmp_path, ROW | {"id": None}), need_audio=False)
    for name in ("question", "label"):
        with pytest.raises(UserError, match=f"line 1: {name} is missing"):
            load_manifest(manifest(tmp_path, ROW | {name: value}), need_audio=False)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        ("", "none"),
        (math.nan, "none"),
        ([], "none"),
        (["theft", 3], "theft,3"),
        ({"theft": True, "harm": False, "fraud": True}, "theft,fraud"),
        ({"theft": False}, "none"),
        ("theft", "theft"),
    ],
)
def test_categories_of_any_form_are_texts(tmp_path, value, text):
    path = manifest(tmp_path, ROW | {"category": value}, ROW | {"id": "2", "category": "kitchen"})
    for rows in (load_manifest(path, need_audio=False), read_question_sets([f"jsonl:{path}"])):
        assert [row["category"] for row in rows] == [text, "kitchen"]
        assert sorted({row["category"] for row in rows})


HALVES = ("\ud83d", "\ude00", "a\udfffb", "\ude00\ud83d")
PLACES = ("question", "category", "id", "note", "deep", "name")


def broken(half: str, place: str) -> dict:
    row = ROW | {"note": {"deep": ["x"]}}
    if place == "deep":
        return row | {"note": {"deep": [f"x{half}"]}}
    return row | ({f"n{half}": 1} if place == "name" else {place: f"Why {half}?"})


@pytest.mark.parametrize(("half", "place"), [*itertools.product(HALVES, PLACES)])
def test_half_a_character_is_a_fault_of_its_line_in_every_file(tmp_path, half, place):
    row = broken(half, place)
    assert has_half_character(row) and not has_half_character(ROW | {"question": "Whole 😀 \u2028?"})
    path = manifest(tmp_path, ROW | {"id": "0"}, row)
    for read in (lambda path: load_manifest(path, False), lambda path: read_question_sets([f"jsonl:{path}"])):
        with pytest.raises(UserError, match="line 2: holds half a character") as refused:
            read(path)
        str(refused.value).encode()
    kept = load_manifest(path, need_audio=False, skip_bad=True)
    assert [entry["id"] for entry in kept] == ["0"]


def test_line_separators_within_a_text_are_no_ends_of_lines(tmp_path):
    texts = [f"Why{mark}so?" for mark in "\u2028\u2029\x85\x0b\x0c\x1c"]
    path = tmp_path / "m.jsonl"
    path.write_text(
        "".join(
            json.dumps(ROW | {"id": str(i), "question": text}, ensure_ascii=False) + "\n"
            for i, text in enumerate(texts)
        ),
        encoding="utf-8",
    )
    assert [row["question"] for row in load_manifest(path, need_audio=False)] == texts
    assert [row["question"] for row in read_question_sets([f"jsonl:{path}"])] == [
        text.strip() for text in texts
    ]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "parquet", "jsonl.gz"])
def test_a_manifest_of_any_kind_of_file(tmp_path, clip, suffix):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame([
        {"id": 7, "label": "Harmful", "question": 'Say "x", then?', "audio": "wav/a b.wav", "seconds": 0.25},
        {"id": 8, "label": "benign", "question": QUESTION, "audio": "wav/a b.wav", "seconds": None},
    ])  # fmt: skip
    path = tmp_path / f"metadata.{suffix}"
    if suffix in ("csv", "tsv"):
        table.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    elif suffix == "parquet":
        table.to_parquet(path)
    else:
        table.to_json(path, orient="records", lines=suffix != "json")
    one, two = load_manifest(path)
    assert (one["id"], one["label"], one["question"], one["seconds"]) == (
        "7",
        "harmful",
        'Say "x", then?',
        0.25,
    )
    assert (two["id"], two["seconds"], two["category"], two["response"]) == ("8", None, "none", None)


def test_a_table_of_the_datasets_library(tmp_path, clip, capsys):
    import datetime

    import pyarrow
    import pyarrow.parquet

    rows = [ROW | {"audio": {"bytes": clip.read_bytes(), "path": "a.wav"}, "picture": b"\x89PNG",
                   "day": datetime.date(2025, 1, 1)}]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train-00000.parquet")
    (row,) = load_manifest(tmp_path / "train-00000.parquet")
    assert soundfile.read(row["audio"])[0].size == 4_000 and json.dumps(row)
    said = capsys.readouterr().err
    assert "picture is left out of 1 rows" in said and "day is left out of 1 rows" in said


def test_bytes_are_kept_once(tmp_path, clip):
    paths = {clip_path({"bytes": clip.read_bytes()}) for _ in range(3)}
    assert len(paths) == 1 and len(list((tmp_path / "cache" / "clips").iterdir())) == 1
    for kind in ("FLAC", "OGG", "MP3"):
        stream = io.BytesIO()
        soundfile.write(stream, np.zeros(4_000), 16_000, format=kind)
        assert clip_path(stream.getvalue()).endswith(f".{kind.lower()}")


def test_an_own_row_is_left_as_it_is():
    row = ROW | {
        "audio": "a.wav",
        "pair_id": "p",
        "role": "keep",
        "answer_key": 3,
        "text": "mine",
        "input": "x",
    }
    read = own_row(row)
    assert read.fields == row and not read.taken and not read.faults
