"""The store of responses: what it resumes, drops and refuses."""

from dataclasses import replace

import pytest

from helpers.responses import QUERY, response_row
from rrs_jax.errors import UserError
from rrs_jax.evaluate import Query, ResponseStore
from rrs_jax.files import read_json, read_jsonl

BENIGN = "How do I teach my dog to befriend cats?"


def test_store_resumes(tmp_path):
    path = tmp_path / "responses.jsonl"
    store = ResponseStore(path, {"model": "m"})
    assert store.missing([QUERY], 3) == [(QUERY, 0), (QUERY, 1), (QUERY, 2)]
    store.append([response_row(sample=1)])
    again = ResponseStore(path, {"model": "m"})
    assert again.missing([QUERY], 3) == [(QUERY, 0), (QUERY, 2)]
    again.append([response_row(sample=0), response_row(sample=2)])
    assert again.missing([QUERY], 3) == []
    assert [row["sample"] for row in ResponseStore(path, {"model": "m"}).select([QUERY], 2)] == [0, 1]
    assert len(read_jsonl(path)) == 3


def test_store_keeps_line_separators_within_a_response(tmp_path):
    text = "one\ntwo\u2028three\u0085four\x0bfive"
    ResponseStore(tmp_path / "responses.jsonl", {}).append([response_row(text=text)])
    (row,) = ResponseStore(tmp_path / "responses.jsonl", {}).rows.values()
    assert row["response"] == text


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_store_drops_a_torn_last_line(tmp_path, cut):
    path = tmp_path / "responses.jsonl"
    rows = [response_row(sample=0), response_row(sample=1, text="\u00e4\u00f6 " * 20)]
    ResponseStore(path, {}).append(rows)
    path.write_bytes(path.read_bytes()[:-cut])
    store = ResponseStore(path, {})
    assert store.missing([QUERY], 2) == [(QUERY, 1)]
    store.append([response_row(sample=1)])
    assert [row["sample"] for row in read_jsonl(path)] == [0, 1]


def test_store_refuses_other_settings(tmp_path):
    path = tmp_path / "responses.jsonl"
    ResponseStore(path, {"model": "m", "top_k": 20}).append([response_row()])
    with pytest.raises(UserError, match=r"other settings \(top_k, top_p\); choose another run_dir or delete"):
        ResponseStore(path, {"model": "m", "top_k": 50, "top_p": 0.5})
    (tmp_path / "responses.meta.json").unlink()
    with pytest.raises(UserError, match=r"responses\.meta\.json: is missing"):
        ResponseStore(path, {"model": "m", "top_k": 20})


def test_store_without_responses_takes_new_settings(tmp_path):
    ResponseStore(tmp_path / "responses.jsonl", {"model": "a"})
    ResponseStore(tmp_path / "responses.jsonl", {"model": "b"})
    assert read_json(tmp_path / "responses.meta.json")["made_by"] == {"model": "b"}


def test_store_refuses_another_question_under_the_same_id(tmp_path):
    store = ResponseStore(tmp_path / "responses.jsonl", {})
    store.append([response_row()])
    with pytest.raises(UserError, match=r"other questions under the same id \(q1\)"):
        store.missing([Query("q1", "harmful", "audio_text", "animal_abuse", BENIGN)], 1)


def test_store_refuses_an_answer_to_another_clip(tmp_path):
    store = ResponseStore(tmp_path / "responses.jsonl", {})
    store.append([response_row() | {"clip_sum": "a"}, response_row(sample=1)])
    assert store.missing([replace(QUERY, clip_sum="a")], 2) == store.missing([QUERY], 2) == []
    with pytest.raises(UserError, match=r"other clips under the same id \(q1\)"):
        store.missing([replace(QUERY, clip_sum="b")], 2)
    assert store.missing([replace(QUERY, id="q2", clip_sum="b")], 1)


def test_store_goes_on_with_responses_of_a_version_that_summed_all_clips(tmp_path):
    ResponseStore(tmp_path / "responses.jsonl", {"model": "m", "clips": "sum"}).append([response_row()])
    assert ResponseStore(tmp_path / "responses.jsonl", {"model": "m"}).missing([QUERY], 1) == []
