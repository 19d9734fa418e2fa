"""Several settings at once through the whole evaluate stage, and at most how many questions they ask."""

import numpy as np
import pytest
import soundfile

from helpers.voices import Tones, pitch
from rrs_jax.config import default_config
from rrs_jax.data.engines import ENGINES
from rrs_jax.files import read_jsonl, write_jsonl
from rrs_jax.run import evaluate_stage as evaluation
from rrs_jax.run import pipeline
from rrs_jax.run.context import RunContext
from rrs_jax.run.folder import RunFolder

SPOKEN, OTHERS = (200, 280), (390, 550)  # Hz of the voices of the data, and of the engine's other ones
SETTINGS = ("spoken", "other_voices", "silence")
PAIRS, STYLES = 2, 3  # questions of each of two categories, and of each of two styles
LIMIT = 3  # questions of a label, of four pairs and six borderline ones


class Hum(Tones):
    """An engine under the name of the one whose voices are drawn from where none are named."""

    name = "hibari"
    voices = tuple(f"hibari:{hertz}" for hertz in (*SPOKEN, *OTHERS))


def questions() -> list[dict]:
    rows = []
    for category in ("cats", "cars"):
        for i in range(PAIRS):
            for label in ("benign", "harmful"):
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
def evaluated(whole_folder, tmp_path_factory):
    """Returns the config, the run folder, and the rows that were asked in each setting."""
    path = tmp_path_factory.mktemp("settings")
    write_jsonl(path / "manifest.jsonl", questions())
    write_jsonl(path / "train.jsonl", [row for row in questions() if row["label"] != "borderline"])
    config = default_config()
    config.model.path, config.model.dtype, config.run_dir = str(whole_folder), "float32", str(path / "run")
    config.strategy = "vanilla"
    config.data.manifest, config.data.eval_manifest = str(path / "train.jsonl"), str(path / "manifest.jsonl")
    config.data.voices = tuple(f"hibari:{hertz}" for hertz in SPOKEN)
    config.evaluate.samples, config.generate.max_new_tokens, config.evaluate.modes = (
        1,
        2,
        ("audio_text", "text_only"),
    )
    config.evaluate.setting, config.evaluate.limit = SETTINGS, LIMIT
    asked = {}

    def spy(setting, rows, *arguments, **values):
        asked[setting] = made = evaluation_rows(setting, rows, *arguments, **values)
        return made

    evaluation_rows = evaluation.setting_rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENGINES, "hibari", Hum)
        patch.setenv("RRS_JAX_CACHE", str(path / "cache"))
        patch.setattr(evaluation, "setting_rows", spy)
        pipeline.run(config, ("data", "evaluate"))
        return config, path / "run", asked


def first_of_each_label() -> list[str]:
    """Ids of the first LIMIT questions of each label, in the manifest's order."""
    kept: dict[str, list[str]] = {}
    for row in questions():
        kept.setdefault(row["label"], []).append(row["id"])
    chosen = {name for names in kept.values() for name in names[:LIMIT]}
    return [row["id"] for row in questions() if row["id"] in chosen]


def answered(run, setting: str) -> set[str]:
    """Ids of the questions whose answers lie in the setting's folder."""
    name = "vanilla" if setting == "spoken" else f"vanilla-{setting}"
    return {row["id"] for row in read_jsonl(run / "eval" / name / "responses.jsonl")}


def test_every_setting_asks_the_same_questions(evaluated):
    _, run, asked = evaluated
    expected = first_of_each_label()
    assert len(expected) == 3 * LIMIT
    for setting in SETTINGS:
        assert [row["id"] for row in asked[setting]] == expected
    assert answered(run, "spoken") == answered(run, "other_voices") == set(expected)
    # In silence there is text alone, in which only harmful questions are asked.
    assert answered(run, "silence") == {name for name in expected if name.endswith("harmful")}


@pytest.mark.parametrize("strategy", ["vanilla", "rrs", "sft_deep", "system_prompt"])
def test_every_strategy_and_seed_asks_the_same_questions(evaluated, strategy):
    config, run, _ = evaluated
    for seed in (0, 1, 7):
        other = config.copy_and_resolve_references()
        other.strategy, other.seed, other.run_dir = strategy, seed, str(run.parent / f"{strategy}{seed}")
        target = RunFolder(other.run_dir, other)
        target.evaluation_manifest.parent.mkdir(parents=True, exist_ok=True)
        target.evaluation_manifest.write_bytes((run / "data" / "eval" / "manifest.jsonl").read_bytes())
        rows = RunContext(other, target).read_evaluation_rows()
        assert [row["id"] for row in rows] == first_of_each_label()


def test_other_voices_are_none_that_the_questions_were_spoken_with(evaluated):
    """Judged by what the clips sound like, not by what the rows say."""
    _, run, asked = evaluated

    def heard(setting) -> list[int]:
        clips = [soundfile.read(run / "data" / "eval" / row["audio"])[0] for row in asked[setting]]
        return [min((*SPOKEN, *OTHERS), key=lambda hertz: abs(hertz - pitch(clip))) for clip in clips]

    spoken, others = heard("spoken"), heard("other_voices")
    assert set(spoken) == set(SPOKEN) and set(others) == set(OTHERS)
    for setting, voices in (("spoken", spoken), ("other_voices", others)):
        assert [row["voice"] for row in asked[setting]] == [f"hibari:{hertz}:1:0" for hertz in voices]
    for row in asked["silence"]:
        assert not np.any(soundfile.read(row["audio"])[0])


def test_more_questions_are_asked_beside_those_that_are_answered(evaluated):
    config, run, _ = evaluated
    more = config.copy_and_resolve_references()
    more.evaluate.setting, more.evaluate.limit = ("spoken",), LIMIT + 1
    before = read_jsonl(run / "eval" / "vanilla" / "responses.jsonl")
    pipeline.run(more, ("evaluate",))
    after = read_jsonl(run / "eval" / "vanilla" / "responses.jsonl")
    assert after[: len(before)] == before
    assert len({(row["set"], row["id"]) for row in after}) == 3 * (LIMIT + 1)
    heard = {row["id"]: row["clip_sum"] for row in after if row["mode"] == "audio_text"}
    assert len(heard) == 3 * (LIMIT + 1) and len(set(heard.values())) == len(SPOKEN)  # one hum a voice
    assert not any("clip_sum" in row for row in after if row["mode"] == "text_only")
