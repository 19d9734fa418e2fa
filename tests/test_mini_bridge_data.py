"""The files of a bridge's data: made once, begun anew where a making was cut short, spoken from the rows."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from rrs_jax.errors import UserError
from rrs_jax.files import read_jsonl, write_jsonl
from rrs_jax.mini import bridge_data, train_bridge
from rrs_jax.mini.bridge_questions import draw_prompt

SEED = 3
TOO_LONG = "What about " + "a very long walk in the park and " * 12 + "then?"
QUESTIONS = ["How do I bake bread at home?", TOO_LONG, "Where do pandas live in China?"]
COPIES = ["How do I bake cake at home?", None, None]
LISTS = ["Velvet, torch, lemon."]
SPOKEN = [QUESTIONS[0], COPIES[0], QUESTIONS[2], *LISTS]


def prepare(work: Path, seed: int = SEED) -> train_bridge.Material:
    parser = argparse.ArgumentParser()
    train_bridge.add_arguments(parser)
    return train_bridge.prepare(parser.parse_args([f"--work={work}", f"--seed={seed}", "--dtype=float32"]))


@pytest.fixture
def patch(monkeypatch, whole_folder):
    """Puts constants in the place of what the decoder asks and answers, and counts how often it is asked."""
    asked = []

    def ask(*_, **__):
        asked.append(True)
        return QUESTIONS

    monkeypatch.setattr(train_bridge, "ensure_base", lambda name: whole_folder)
    monkeypatch.setattr(bridge_data, "ask_questions", ask)
    monkeypatch.setattr(bridge_data, "exchange_words", lambda questions, seed: COPIES)
    monkeypatch.setattr(bridge_data, "word_lists", lambda *_: LISTS)
    monkeypatch.setattr(
        bridge_data, "answer_questions", lambda *_, **__: {0: ([5, 6], True), 3: ([7], False)}
    )
    return asked


def test_speech_is_made_again_from_the_rows_byte_for_byte(patch, tmp_path):
    features = tmp_path / "features.safetensors"
    features.write_bytes(b"a making that was cut short behind this file")
    first = prepare(tmp_path)
    assert [row["text"] for row in first.rows] == SPOKEN and len(first.clips) == len(SPOKEN)
    assert [row["answer"] for row in first.rows] == [[5, 6], None, [7], None]
    assert patch == [True]
    made, rows = features.read_bytes(), (tmp_path / "data.jsonl").read_bytes()
    features.unlink()
    second = prepare(tmp_path)
    assert features.read_bytes() == made and (tmp_path / "data.jsonl").read_bytes() == rows
    assert patch == [True]  # the decoder was asked for the first making alone
    assert second.rows == first.rows
    for one, other in zip(first.clips, second.clips, strict=True):
        assert one[1] == other[1]
        np.testing.assert_array_equal(one[0], other[0])
    with pytest.raises(UserError, match=r"data.jsonl: its prompts are not those of --seed=4; give the seed"):
        features.unlink()
        prepare(tmp_path, seed=4)


def test_a_row_that_cannot_be_spoken_again_is_named(patch, tmp_path):
    texts = [QUESTIONS[0], TOO_LONG]
    rows = [{"text": text, "pair": i, "prompt": draw_prompt(i, SEED)} for i, text in enumerate(texts)]
    write_jsonl(tmp_path / "data.jsonl", rows)
    with pytest.raises(UserError, match=r"data.jsonl, line 2: the voice cannot say 'What about .* install"):
        prepare(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["data.jsonl"]
    assert read_jsonl(tmp_path / "data.jsonl") == rows and not patch
