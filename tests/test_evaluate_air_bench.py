"""AIR-Bench chat from its meta file to the helpfulness score, against a real server that misbehaves."""

import json
import re
import shutil

import numpy as np
import pytest
import soundfile

from helpers.misbehaving_server import FAULTS, Server
from rrs_jax.errors import UserError
from rrs_jax.evaluate.air_bench import air_bench, judge_prompt, parse_scores
from rrs_jax.evaluate.air_bench_items import META, read_meta
from rrs_jax.evaluate.air_bench_scores import GROUPS, TASKS
from rrs_jax.evaluate.endpoint import Endpoint, EndpointConfig
from rrs_jax.evaluate.engine import Engine
from rrs_jax.evaluate.plan import Target
from rrs_jax.files import read_json, read_jsonl


@pytest.fixture
def root(tmp_path):
    """Three items of each task; the first music clip is 31 s long."""
    folder = tmp_path / "air"
    entries = []
    rng = np.random.default_rng(0)
    for task in TASKS:
        place = folder / f"{task}_set1"
        place.mkdir(parents=True)
        for i in range(3):
            seconds = 31 if (task, i) == ("music_QA", 0) else 0.3
            soundfile.write(place / f"{i}.wav", rng.normal(0, 0.1, int(8_000 * seconds)), 8_000)
            entries.append(
                {
                    "path": f"{i}.wav",
                    "question": f"What is heard in {task}-{i}?",
                    "answer_gt": "A {first} bell.",
                    "task_name": task,
                    "dataset_name": "set1",
                    "meta_info": f"A clip <{task}> {i}",
                    "uniq_id": i,
                }
            )
    (folder / META).write_text(json.dumps(entries))
    return folder


def model_score(task, i):
    return 2 + TASKS.index(task) // 2 + i


def verdict(body):
    """The reference gets 9 where it comes first and 7 second; the model one point less in second place. One
    item's verdicts are never readable."""
    prompt = body["messages"][0]["content"]
    task, i = re.search(r"in (\w+)-(\d)\?", prompt).groups()
    if (task, i) == ("speech_QA", "2"):
        return "Assistant 1: 8, assistant 2: 7"
    first = re.search(r"assistant 1's answer\]\n(.*)\n\[End", prompt)[1]
    score = model_score(task, int(i))
    return f"9 {score - 1}" if first.startswith("A {first}") else f"{score} 7\n"


def generate(requests, on_finished):
    for request in requests:
        assert soundfile.info(request.audio).duration <= 30
        task, i = re.search(r"in (\w+)-(\d)\?", request.text).groups()
        on_finished(request, " " if (task, i) == ("sound_QA", "1") else f"Answer {task}-{i}")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("rrs_jax.data.service.Service.longest_wait", 0.02)


def test_scores_by_hand_with_every_fault_and_nothing_bought_twice(root, tmp_path):
    with Server(verdict, faults=FAULTS, slow=1.0) as server:
        judge = Endpoint(
            EndpointConfig(server.url, "gpt", timeout=0.4, retries=20, concurrency=16), tmp_path / "cache"
        )
        items = read_meta(root)
        summary = air_bench(Engine(generate), items, judge, Target(tmp_path / "eval", "vanilla"))
        bought = sum(server.delivered.values())
        # 22 items in two orders once, the unreadable one three draws in each of its two.
        assert bought == 22 * 2 + 2 * 3
        assert {(body["temperature"], body["max_tokens"]) for body in server.bodies} == {(1.0, 1024)}
        assert air_bench(Engine(generate), items, judge, Target(tmp_path / "eval", "vanilla")) == summary
        assert air_bench(Engine(generate), items, judge, Target(tmp_path / "eval", "other")) == summary | {
            "name": "other"
        }
        assert sum(server.delivered.values()) == bought
    # Both orders' mean is half a point below the model's score in first place.
    expected = {"speech_QA": np.mean([2, 3]), "sound_QA": np.mean([3, 5])} | {
        task: model_score(task, 1) for task in TASKS if task not in ("speech_QA", "sound_QA")
    }
    for task, score in expected.items():
        assert summary["tasks"][task]["hs"] == pytest.approx(score - 0.5), task
    assert summary["groups"]["speech"]["hs"] == pytest.approx(np.mean([2, 3, 2, 3, 4]) - 0.5)
    assert summary["groups"]["sound"]["hs"] == pytest.approx(np.mean([3, 5, 3, 4, 5]) - 0.5)
    mixed = [summary["tasks"][task]["hs"] for task in GROUPS["mixed"]]
    assert summary["groups"]["mixed"]["hs"] == pytest.approx(np.mean(mixed))
    assert summary["hs"] == pytest.approx(
        np.mean([block["hs"] for block in summary["groups"].values()]), abs=1e-3
    )
    assert summary["reference_hs"] == 8.0
    assert (summary["items"], summary["empty"], summary["unparsed"], summary["cut"]) == (24, 1, 2, 1)
    assert summary["tasks"]["speech_QA"]["unparsed"] == 2 and summary["groups"]["sound"]["empty"] == 1
    assert all(block["ci95"][0] <= block["hs"] <= block["ci95"][1] for block in summary["groups"].values())
    assert read_json(tmp_path / "eval/vanilla/air_bench/summary.json") == summary
    assert len(read_jsonl(tmp_path / "eval/vanilla/air_bench/judgements.jsonl")) == 23 * 2


def test_interrupted_it_goes_on(root, tmp_path):
    items = read_meta(root)
    asked = []

    def killed(requests, on_finished):
        generate(requests[:5], on_finished)
        raise KeyboardInterrupt

    def rest(requests, on_finished):
        asked.extend(requests)
        generate(requests, on_finished)

    with Server(verdict) as server:
        judge = Endpoint(EndpointConfig(server.url, "gpt", retries=0), tmp_path / "cache")
        with pytest.raises(KeyboardInterrupt):
            air_bench(Engine(killed), items, judge, Target(tmp_path, "vanilla"))
        server.always = (500, None)
        with pytest.raises(UserError, match=r"requests failed and it counts as gone"):
            air_bench(Engine(rest), items, judge, Target(tmp_path, "vanilla"))
        assert len(asked) == 24 - 5 and not server.delivered
        server.always = None
        air_bench(Engine(rest), items, judge, Target(tmp_path, "vanilla"))
        assert len(asked) == 24 - 5


def test_a_group_without_items_has_no_score_and_no_mean(root, tmp_path):
    items = {item["task_name"]: item for item in reversed(read_meta(root))}  # one of each
    items = [item for task, item in items.items() if task != "speech_and_music_QA"]
    assert len(items) == 7
    with Server(verdict) as server:
        judge = Endpoint(EndpointConfig(server.url, "gpt"), tmp_path / "cache")
        summary = air_bench(Engine(generate), items, judge, Target(tmp_path, "vanilla"))
    assert summary["groups"]["speech"]["hs"] is not None
    assert summary["groups"]["mixed"]["hs"] is None and summary["hs"] is None


def test_the_prompt_swaps_the_answers_and_takes_texts_as_they_are():
    item = {"answer_gt": "REF {second}", "meta_info": "META", "question": "Q?"}
    first = judge_prompt(item, "ANS {question}", "reference_first")
    swapped = judge_prompt(item, "ANS {question}", "model_first")
    assert first.index("REF {second}") < first.index("ANS {question}") and first.count("Q?") == 1
    assert swapped.index("ANS {question}") < swapped.index("REF {second}")


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("8 9", (8, 9)),
        (" 10 1\n", (10, 1)),
        ("8  9", (8, 9)),
        ("8, 9", (8, 9)),
        ("8/10, 9/10", None),
        ("8", None),
        ("8 9 10", None),
        ("11 5", None),
        ("0 5", None),
        ("8 9\nbecause", (8, 9)),
        ("Scores: **8 9**", (8, 9)),
        ("<think>8 8? 7 9?</think>\n\n8 9", (8, 9)),
        ("<think>8 9", None),
        ("8 9\n9 8", None),
        ("8.5 9", None),
        ("", None),
    ],
)
def test_only_two_whole_numbers_are_a_verdict(reply, scores):
    assert parse_scores(reply) == scores


def test_a_bad_data_root_is_told_at_once(root, tmp_path):
    with pytest.raises(UserError, match=r"Chat_meta.json: cannot be read .*give the folder of AIR-Bench"):
        read_meta(tmp_path)
    entries = json.loads((root / META).read_text())
    del entries[0]["meta_info"]
    entries[1]["task_name"] = "song_QA"
    entries[2]["path"] = [[]]
    entries.append(entries[-1])
    (root / META).write_text(json.dumps(entries))
    shutil.rmtree(root / "music_QA_set1")
    with pytest.raises(UserError) as error:
        read_meta(root)
    for sentence in (
        "7 faults",
        "item 1 has no meta_info",
        "item 2 is of an unknown task song_QA",
        "item 3 has no path",
        "0.wav does not exist",
        f"item {len(entries)} has the uniq_id of another one in {TASKS[-1]}",
    ):
        assert sentence in str(error.value)


AROUND = [
    "<think>\n9 9? Or 8 7.\n</think>\n\n{} {}",
    "Here are the scores:\n{}, {}",
    "```\n{} {}\n```",
    "**{}  {}**",
    "{}, {}\n\nThe first one is more complete.",
]


@pytest.mark.parametrize("around", AROUND)
def test_a_judge_that_thinks_or_prefaces_is_read_and_paid_for_once(root, tmp_path, around):
    with Server(lambda body: around.format(9, 7)) as server:
        judge = Endpoint(EndpointConfig(server.url, "gpt"), tmp_path / "cache")
        summary = air_bench(Engine(generate), read_meta(root), judge, Target(tmp_path / "eval", "vanilla"))
        assert sum(server.delivered.values()) == 23 * 2
    assert (summary["unparsed"], summary["hs"], summary["reference_hs"]) == (0, 8.0, 8.0)


@pytest.mark.parametrize(
    "reply", ["<think>\nLet me see", "Both are fine.", "8 out of 10 and 7 out of 10", ""]
)
def test_more_than_a_tenth_unparsed_is_not_done_and_asked_again_alone(root, tmp_path, reply):
    mended = False

    def sometimes(body):
        unreadable = not mended and "speech_QA-" in body["messages"][0]["content"]
        return reply if unreadable else "9 7"

    with Server(sometimes) as server:
        judge = Endpoint(EndpointConfig(server.url, "gpt"), tmp_path / "cache")
        target = Target(tmp_path / "eval", "vanilla")
        with pytest.raises(UserError, match=r"judge gpt: 6 of 46 verdicts cannot be read, such as '"):
            air_bench(Engine(generate), read_meta(root), judge, target)
        assert not (target.path / "air_bench/summary.json").exists()
        mended, before = True, sum(server.delivered.values())
        assert air_bench(Engine(generate), read_meta(root), judge, target)["unparsed"] == 0
        assert sum(server.delivered.values()) == before + 6


def test_answers_behind_thoughts_are_judged_and_unfinished_ones_are_empty(root, tmp_path):
    prompts = []

    def think(requests, on_finished):
        for i, request in enumerate(requests):
            on_finished(request, "<think>\nsecret" if i < 2 else f"<think>\nsecret\n</think>\nAnswer {i}")

    with Server(lambda body: prompts.append(body["messages"][0]["content"]) or "9 7") as server:
        judge = Endpoint(EndpointConfig(server.url, "gpt"), tmp_path / "cache")
        summary = air_bench(Engine(think), read_meta(root), judge, Target(tmp_path / "eval", "vanilla"))
    assert summary["empty"] == 2 and len(prompts) == 22 * 2
    assert all("secret" not in prompt and "Answer " in prompt for prompt in prompts)
