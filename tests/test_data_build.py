"""Basic, Mirror and Parallel as a whole: written, spoken, and by the official client."""

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from helpers.rewriters import Parrot
from helpers.stand_ins import OpenAI
from helpers.synthetic_beavertails import BENIGN, CATEGORIES, lines, source_rows
from helpers.voices import Tones
from rrs_jax.config import default_config, validate
from rrs_jax.data.beavertails import group_rows
from rrs_jax.data.build import BuildOptions, build
from rrs_jax.data.check import text_faults
from rrs_jax.data.manifest import load_manifest
from rrs_jax.data.questions import clean
from rrs_jax.data.rewrite import write_mirror
from rrs_jax.data.selection import make_pool
from rrs_jax.data.speech import clip_path
from rrs_jax.data.spoken import SpeechOptions
from rrs_jax.data.voices import ENGINES, read_voices
from rrs_jax.data.writers import Ledger, OpenAIWriter
from rrs_jax.errors import UserError
from rrs_jax.evaluate.problems import evaluation_problems
from rrs_jax.files import read_json, read_jsonl
from rrs_jax.generate.local_writer import LocalWriter
from rrs_jax.run.context import RunContext
from rrs_jax.run.folder import RunFolder
from rrs_jax.run.pipeline import make_data


@pytest.fixture(autouse=True)
def quick_voice(monkeypatch):
    monkeypatch.setitem(ENGINES, "tones", Tones)


ROWS = source_rows(6)
OPTIONS = BuildOptions(basic=20, per_category=2, seed=3)


def make(out, rows, writer, tmp_path, options=OPTIONS, **speech):
    speech = SpeechOptions(**{"voices": ("tones",), "cache": tmp_path / "cache", "workers": 1} | speech)
    return build(out, group_rows(rows), writer, options, speech)


def test_the_three_sets(tmp_path):
    evaluation = tmp_path / "evaluation.csv"
    evaluation.write_text("Goal,other\n" + f'"{ROWS[0]["prompt"]}",x\n')
    options = BuildOptions(basic=20, per_category=2, seed=3, exclude=(str(evaluation),))
    manifests = make(tmp_path / "a", ROWS, Parrot(), tmp_path, options)
    rows = {name: load_manifest(path) for name, path in manifests.items()}  # every clip is there
    assert len(rows["basic"]) == 20 and all(item["response"] for item in rows["basic"])
    answers = {(clean(item["prompt"]), item["response"]) for item in ROWS if item["is_safe"]}
    assert {(item["question"], item["response"]) for item in rows["basic"]} <= answers
    assert {item["label"] for item in rows["basic"]} == {"harmful", "benign"}
    for name in ("mirror", "parallel"):
        labels = Counter((item["label"], item["category"]) for item in rows[name])
        assert all(labels["harmful", category] == 2 for category in CATEGORIES)
        assert Counter(item["label"] for item in rows[name]) == {"harmful": 28, "benign": 28}
        assert set(Counter(item["pair_id"] for item in rows[name]).values()) == {2}
        assert all(item["response"] is None for item in rows[name])
    harmful = {name: [item["question"] for item in rows[name] if item["label"] == "harmful"] for name in rows}
    assert harmful["mirror"] == harmful["parallel"]
    sound = {item["question"]: item["voice"] for item in rows["mirror"]}
    assert all(
        sound[item["question"]] == item["voice"] for item in rows["parallel"] if item["label"] == "harmful"
    )
    assert text_faults(rows["mirror"], rewritten=True) == []
    assert text_faults(rows["parallel"], rewritten=False) == []
    assert not {ROWS[0]["prompt"]} & {item["question"] for name in rows for item in rows[name]}
    summary = read_json(tmp_path / "a" / "summary.json")
    assert summary["sizes"]["mirror"] == {"harmful": 28, "benign": 28} and summary["for_a_person"] == 0

    shuffled = random.Random(5).sample(ROWS, len(ROWS))
    again = make(tmp_path / "b", shuffled, Parrot(), tmp_path, options)
    assert [path.read_bytes() for path in again.values()] == [
        path.read_bytes() for path in manifests.values()
    ]


def test_a_smaller_set_is_part_of_a_larger_one(tmp_path):
    small = make(tmp_path / "s", ROWS, Parrot(), tmp_path, BuildOptions(("mirror",), per_category=1))
    large = make(tmp_path / "l", ROWS, Parrot(), tmp_path, BuildOptions(("mirror",), per_category=3))
    small, large = (read_jsonl(path["mirror"]) for path in (small, large))
    assert large[: len(small)] == small
    grown = make(tmp_path / "s", ROWS, Parrot(), tmp_path, BuildOptions(("mirror",), per_category=3))
    assert read_jsonl(grown["mirror"]) == large  # in the same folder


def test_another_draw_in_the_same_folder_is_refused(tmp_path):
    make(tmp_path / "a", ROWS, Parrot(), tmp_path)
    with pytest.raises(UserError, match=r"was begun with another seed, source \(settings.json\)"):
        make(tmp_path / "a", ROWS[:-40], Parrot(), tmp_path, BuildOptions(basic=20, per_category=2, seed=4))


def test_a_list_that_the_command_writes_is_no_edits(tmp_path):
    with pytest.raises(UserError, match="for_a_person.jsonl is written anew by this command; give a copy"):
        make(
            tmp_path,
            ROWS,
            Parrot(),
            tmp_path,
            BuildOptions(("mirror",), edits=str(tmp_path / "for_a_person.jsonl")),
        )


def test_too_small_a_source(tmp_path):
    with pytest.raises(UserError, match="--basic: the source has .* questions with a safe answer, not 9999"):
        make(tmp_path / "a", ROWS, Parrot(), tmp_path, BuildOptions(("basic",), basic=9999))
    with pytest.raises(UserError, match=r"--per_category=9: too few pairs in .*for_a_person.jsonl: fill in"):
        make(tmp_path / "a", ROWS, Parrot(), tmp_path, BuildOptions(("mirror",), per_category=9))


def test_parallel_asks_about_benign_questions_too(tmp_path):
    pool = make_pool(group_rows(ROWS), seed=3)
    doubtful = pool.benign[0].text
    writer = Parrot(verdict=lambda question: "yes" if question == doubtful else "no")
    manifests = make(tmp_path / "a", ROWS, writer, tmp_path)
    chosen = [item["question"] for item in read_jsonl(manifests["parallel"]) if item["label"] == "benign"]
    assert chosen == [question.text for question in pool.benign[1:29]]
    assert read_json(tmp_path / "a" / "summary.json")["benign_by_label_harmful_by_writer"] == 1


def test_the_project_itself_can_write(tmp_path, whole_folder):
    """A small random model: its rewrites are nonsense, all are asked for, kept, and left to a person."""
    pool = make_pool(group_rows([item for item in ROWS if "my cats" in item["prompt"]]))
    writer = LocalWriter(str(whole_folder), dtype="float32", max_new_tokens=4)
    with pytest.raises(UserError, match="too few pairs") as error:
        write_mirror(pool, 1, Ledger(tmp_path / "ledger.jsonl", writer), tries=2)
    assert error.value.failures and all(len(f.tries) == 2 for f in error.value.failures)
    assert len(read_jsonl(tmp_path / "ledger.jsonl")) >= 2 * len(error.value.failures)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--writer=gpt"], "--writer: 'gpt' is none of openai:MODEL, local:FOLDER (or local:mini) and none."),
        (["--sets=mirror,basics"], "--sets: basics is none of basic, mirror, parallel."),
        (
            ["--source=nowhere.jsonl"],
            (
                "--source: 'nowhere.jsonl' is no file and no hub repository OWNER/NAME such as "
                "PKU-Alignment/BeaverTails."
            ),
        ),
        (["--out="], "--out: give the folder that the data set is to be written to."),
    ],
)
def test_mistakes_on_the_command_line(flags, sentence, tmp_path):
    (tmp_path / "source.jsonl").write_text(lines(ROWS[:9]))
    command = [
        sys.executable,
        "-m",
        "rrs_jax.data.build",
        f"--source={tmp_path / 'source.jsonl'}",
        f"--out={tmp_path}",
        *flags,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False
    )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, sentence)
    assert "Traceback" not in done.stderr


# Speech


class Moody(Tones):
    """The speaker 300 hums what it likes and is silent otherwise."""

    name = "moody"
    voices = ("moody:200", "moody:300")

    def say(self, text, speaker, speed):
        return super().say(text, speaker, speed) * (speaker == "200" or "cats" in text)


def test_a_text_that_one_voice_cannot_speak_gets_another(tmp_path, monkeypatch):
    monkeypatch.setitem(ENGINES, "moody", Moody)
    manifests = make(
        tmp_path / "a", ROWS, Parrot(), tmp_path, BuildOptions(("mirror",), per_category=2), voices=("moody",)
    )
    rows = load_manifest(manifests["mirror"])
    assert {row["voice"] for row in rows} == {"moody:200:1:0", "moody:300:1:0"}
    assert all("cats" in row["question"] for row in rows if row["voice"] == "moody:300:1:0")
    assert read_json(tmp_path / "a" / "summary.json")["clips_failed"] > 10
    with pytest.raises(UserError) as error:
        make(
            tmp_path / "b",
            ROWS,
            Parrot(),
            tmp_path,
            BuildOptions(("mirror",), per_category=2),
            voices=("moody:300",),
        )
    assert "of 56 texts could be spoken by none of 1 voices; give other --voices" in str(error.value)
    assert "voice moody:300:1:0: gives silence for 'How do I frighten a child" in str(error.value)


def test_what_is_misheard_is_spoken_by_another_voice(tmp_path, monkeypatch):
    """Heard by a stand-in for Whisper that hears the clips of one voice as noise; each clip is heard once."""
    heard = []

    class Deaf:
        def __init__(self, model):
            self.name = model

        def hear(self, path):
            heard.append(path)
            text, voice = known[path]
            return "hum hum" if voice.speed == 1.2 else text

    texts = {clean(row["prompt"]) for row in ROWS}
    texts |= {" ".join(BENIGN.get(word, word) for word in text.split()) for text in texts}
    known = {
        clip_path(text, voice, tmp_path / "cache"): (text, voice)
        for text in texts
        for voice in read_voices("tones:200,tones:200:1.2")
    }
    monkeypatch.setattr("rrs_jax.data.spoken.Listener", Deaf)
    options = BuildOptions(("mirror",), per_category=2)
    speech = {"voices": ("tones:200", "tones:200:1.2"), "listener": "deaf"}
    manifests = make(tmp_path / "a", ROWS, Parrot(), tmp_path, options, **speech)
    summary = read_json(tmp_path / "a" / "summary.json")
    assert 10 <= summary["clips_misheard"] <= 46
    assert len(heard) == len(set(heard)) == 56 + summary["clips_misheard"]
    assert {row["voice"] for row in load_manifest(manifests["mirror"])} == {"tones:200:1:0"}
    make(tmp_path / "a", ROWS, Parrot(), tmp_path, options, **speech)
    assert len(heard) == 56 + summary["clips_misheard"]  # kept in heard.jsonl


def test_a_run_takes_a_built_set_and_refuses_evaluation_questions(tmp_path):
    manifests = make(tmp_path / "a", ROWS, Parrot(), tmp_path, BuildOptions(("mirror",), per_category=1))
    rows = load_manifest(manifests["mirror"])
    config = default_config()
    config.data.manifest = config.data.eval_manifest = str(manifests["mirror"])
    config.run_dir = str(tmp_path / "run")
    facts = make_data(RunContext(config, RunFolder(config.run_dir, config)))
    assert facts == {"harmful": 14, "questions": 28}
    (tmp_path / "xstest.csv").write_text(f'prompt\n"{rows[3]["question"].lower()}"\n')
    config.run_dir, config.data.exclude = str(tmp_path / "other run"), (str(tmp_path / "xstest.csv"),)
    with pytest.raises(
        UserError, match="data.exclude: 2 training questions are or nearly are evaluation questions"
    ):
        make_data(RunContext(config, RunFolder(config.run_dir, config)))
    config.data.exclude = ("missing.csv",)
    config.model.path = "x"
    with pytest.raises(UserError, match="data.exclude has 'missing.csv' and there is no such file"):
        validate(config, evaluation_problems)


def test_a_build_by_the_official_client(tmp_path):
    """End to end over HTTP; the failing servers are in test_data_writers.py."""
    with OpenAI() as server:
        writer = OpenAIWriter("stand-in", server.base_url, first_wait=0.01)
        manifests = make(tmp_path / "a", ROWS, writer, tmp_path)
        assert set(server.sold.values()) == {1}
    assert len(read_jsonl(manifests["mirror"])) == 56
