"""Halves of the evaluation questions and several settings at once, through the whole evaluate stage."""

import numpy as np
import pytest
import soundfile
from test_pipeline import folder  # noqa: F401 (fixture)
from test_speech import Tones, pitch

from rrs_jax.config import default_config
from rrs_jax.data.engines import ENGINES
from rrs_jax.files import read_jsonl, write_jsonl
from rrs_jax.run import evaluate_stage as evaluation
from rrs_jax.run import pipeline
from rrs_jax.run.context import Session
from rrs_jax.run.folder import RunFolder

SPOKEN, OTHERS = (200, 280), (390, 550)  # Hz of the voices of the data, and of the engine's other ones
SPLITS, SETTINGS = ("all", "choose", "check"), ("spoken", "other_voices", "silence")
PAIRS, STYLES = 3, 5  # of each of two categories; of each of two styles, an odd number


class Hum(Tones):
    """Under the name of the engine whose voices are drawn from where none are named."""

    name = "hibari"
    voices = tuple(f"hibari:{hertz}" for hertz in (*SPOKEN, *OTHERS))


def questions() -> list[dict]:
    rows = []
    for category in ("cats", "cars"):
        for i in range(PAIRS):
            for label in ("benign", "harmful"):  # twins are neighbours, so that turns by rows would part them
                rows.append(
                    {
                        "id": f"{category}{i}-{label}",
                        "pair_id": f"{category}{i}",
                        "label": label,
                        "category": category,
                        "question": f"How do I {label} {category} {i}?",
                    }
                )
        rows += [
            {
                "id": f"{category}-style{i}",
                "label": "borderline",
                "category": f"style of {category}",
                "question": f"How do I kill {category} {i}?",
            }
            for i in range(STYLES)
        ]
    return rows


@pytest.fixture(scope="module")
def evaluated(folder, tmp_path_factory):  # noqa: F811
    """The config, and of each split and setting the rows that were asked."""
    path = tmp_path_factory.mktemp("split")
    write_jsonl(path / "manifest.jsonl", questions())
    write_jsonl(path / "train.jsonl", [row for row in questions() if row["label"] != "borderline"])
    config = default_config()
    config.model.path, config.model.dtype, config.run_dir = str(folder), "float32", str(path / "run")
    config.strategy = "vanilla"
    config.data.manifest, config.data.eval_manifest = str(path / "train.jsonl"), str(path / "manifest.jsonl")
    config.data.voices = tuple(f"hibari:{hertz}" for hertz in SPOKEN)
    config.evaluate.samples, config.generate.max_new_tokens, config.evaluate.modes = (
        1,
        2,
        ("audio_text", "text_only"),
    )
    config.evaluate.setting = SETTINGS
    asked = {}

    def spy(setting, rows, *arguments, **values):
        asked[config.evaluate.split, setting] = made = evaluation_rows(setting, rows, *arguments, **values)
        return made

    evaluation_rows = evaluation.setting_rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENGINES, "hibari", Hum)
        patch.setenv("RRS_JAX_CACHE", str(path / "cache"))
        patch.setattr(evaluation, "setting_rows", spy)
        for config.evaluate.split in SPLITS:
            pipeline.run(config, ("data", "evaluate"))
        return config, path / "run", asked


def answered(run, split: str, setting: str) -> set[str]:
    """The questions of which the evaluation's folder holds answers."""
    parts = ["vanilla", *([setting] if setting != "spoken" else []), *([split] if split != "all" else [])]
    return {row["id"] for row in read_jsonl(run / "eval" / "-".join(parts) / "responses.jsonl")}


@pytest.mark.parametrize("setting", SETTINGS)
def test_halves_are_disjoint_keep_twins_and_are_everything(evaluated, setting):
    _, run, _ = evaluated
    rows = {row["id"]: row for row in questions()}
    whole, choose, check = (answered(run, split, setting) for split in SPLITS)
    assert not choose & check and choose | check == whole
    # In silence there is text alone, in which only harmful questions are asked.
    assert whole == {name for name, row in rows.items() if setting != "silence" or row["label"] == "harmful"}
    for half in (choose, check):
        pairs = [rows[name]["pair_id"] for name in half if rows[name]["label"] != "borderline"]
        if setting != "silence":
            assert all(pairs.count(pair) == 2 for pair in pairs)
        for category in ("cats", "cars"):
            assert len({pair for pair in pairs if pair.startswith(category)}) in (PAIRS // 2, -(-PAIRS // 2))
            borderline = [name for name in half if name.startswith(f"{category}-style")]
            assert setting == "silence" or len(borderline) in (STYLES // 2, -(-STYLES // 2))


def test_halves_are_the_same_in_every_setting(evaluated):
    _, run, asked = evaluated
    for split in SPLITS:
        ids = [[row["id"] for row in asked[split, setting]] for setting in SETTINGS]
        assert ids[0] == ids[1] == ids[2]
        assert answered(run, split, "spoken") == answered(run, split, "other_voices") == set(ids[0])


@pytest.mark.parametrize("strategy", ["vanilla", "rrs", "sft_deep", "system_prompt"])
def test_halves_are_the_same_for_every_strategy_and_seed(evaluated, strategy):
    config, run, asked = evaluated
    for seed in (0, 1, 7):
        for split in SPLITS:
            other = config.copy_and_resolve_references()
            other.strategy, other.seed, other.evaluate.split = strategy, seed, split
            other.run_dir = str(run.parent / f"{strategy}{seed}")
            target = RunFolder(other.run_dir, other)
            target.evaluation_manifest.parent.mkdir(parents=True, exist_ok=True)
            target.evaluation_manifest.write_bytes((run / "data" / "eval" / "manifest.jsonl").read_bytes())
            rows = Session(other, target).evaluation_rows
            assert [row["id"] for row in rows] == [row["id"] for row in asked[split, "spoken"]]


@pytest.mark.parametrize("split", SPLITS)
def test_other_voices_are_none_that_the_questions_were_spoken_with(evaluated, split):
    """By what the clips sound like, not by what the rows say."""
    _, run, asked = evaluated

    def heard(setting) -> list[int]:
        clips = [soundfile.read(run / "data" / "eval" / row["audio"])[0] for row in asked[split, setting]]
        return [min((*SPOKEN, *OTHERS), key=lambda hertz: abs(hertz - pitch(clip))) for clip in clips]

    spoken, others = heard("spoken"), heard("other_voices")
    assert set(spoken) == set(SPOKEN) and set(others) == set(OTHERS)
    for setting, voices in (("spoken", spoken), ("other_voices", others)):
        assert [row["voice"] for row in asked[split, setting]] == [f"hibari:{hertz}:1:0" for hertz in voices]
    for row in asked[split, "silence"]:
        assert not np.any(soundfile.read(row["audio"])[0])


def test_a_question_keeps_its_other_voice_in_every_half(evaluated):
    _, _, asked = evaluated
    whole = {row["id"]: row["audio"] for row in asked["all", "other_voices"]}
    for split in ("choose", "check"):
        for row in asked[split, "other_voices"]:
            assert row["audio"] == whole[row["id"]]
