"""A sweep in two processes on a small random model: what is shared, told, lost and resumed."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from helpers.sweeps import sweep_config
from helpers.xla_flags import UNOPTIMISED
from rrs_jax.config import default_config
from rrs_jax.errors import UserError
from rrs_jax.files import read_json, read_jsonl
from rrs_jax.run.sweep import read_sweep, run_sweep, status
from rrs_jax.run.sweep_jobs import Jobs, Worker
from rrs_jax.weights.safetensors_io import read_header

ROOT = Path(__file__).parent.parent
RUNS = """
def runs(config):
    yield "vanilla", {"strategy": "vanilla"}
    yield "rrs", {}
    yield "bad", {"rrs.refusal_tokens": ("two words",)}
    yield "rrs-seed1", {"seed": 1}
"""
CONFIG = """
from rrs_jax.config import default_config
def get_config():
    config = default_config()
    config.update_from_flattened_dict(%r)
    return config
"""
STAGES = "data,extract,train,evaluate,report"


@pytest.fixture(scope="module")
def base(whole_folder, sound_files, tmp_path_factory):
    path = tmp_path_factory.mktemp("sweep")
    return sweep_config(whole_folder, sound_files, path), path


@pytest.fixture(scope="module")
def launched(base):
    """The command line with four runs in two processes, one of which has a mistake."""
    from rrs_jax.config import flatten

    config, path = base
    values = flatten(config) | {"run_dir": str(path / "jobs")}
    (path / "jobs.py").write_text(RUNS)
    (path / "config.py").write_text(CONFIG % values)
    return path, launch(path)


def launch(path: Path) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "launch.py",
        f"--config={path / 'config.py'}",
        f"--sweep={path / 'jobs.py'}",
        "--sweep_jobs=2",
        f"--stages={STAGES}",
    ]
    environment = os.environ | {"XLA_FLAGS": UNOPTIMISED}  # and one device, which is quicker
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def test_all_runs_but_the_mistaken_one_are_done(launched, base):
    path, done = launched
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("bad: 'two words' is ")
    assert "Traceback" not in done.stderr
    config = base[0].copy_and_resolve_references()
    config.run_dir = str(path / "jobs")
    states = status(read_sweep(str(path / "jobs.py"), config))
    for name, state in states.items():
        wanted = {"done", "-"} if name != "bad" else {"to do"}
        assert {state[stage] for stage in ("extract", "train", "evaluate", "report")} <= wanted, name
    lines = [line for line in done.stderr.splitlines() if ": done, " in line or ": failed (" in line]
    assert {line.split(":")[0] for line in lines} == set(states)
    assert lines[-1].endswith("4 of 4 runs, about 0 s left")
    assert "training: 1 step" in (path / "jobs" / "rrs" / "log.txt").read_text()
    pooled = read_json(path / "jobs" / "report" / "pooled" / "rrs-2seeds" / "eval" / "rrs" / "summary.json")
    alone = [
        read_json(path / "jobs" / name / "eval" / "rrs" / "summary.json") for name in ("rrs", "rrs-seed1")
    ]
    assert pooled["modes"]["audio_text"]["responses"] == sum(
        one["modes"]["audio_text"]["responses"] for one in alone
    )
    assert pooled["seeds"]["orr"]["rates"] == [one["orr"]["rate"] for one in alone]
    table = (path / "jobs" / "report" / "table.md").read_text()
    assert (
        "| rrs-2seeds: rrs |" in table
        and "Mean over 2 seeds, rrs-2seeds: rrs: compliance audio-text" in table
    )
    assert table.count(": vanilla |") == 1


def test_processes_share_what_they_make(launched):
    path, _ = launched
    names = ("vanilla", "rrs", "rrs-seed1")
    answers = [(path / "jobs" / name / "eval/vanilla/responses.jsonl").read_bytes() for name in names]
    assert answers[0] == answers[1] != answers[2]  # sampled, by seed
    assert len(list((path / "jobs" / "shared" / "vanilla").iterdir())) == 2
    assert len(list((path / "jobs" / "shared").glob("audio-*"))) == 1
    states = [name for file in (path / "jobs/shared/states").iterdir() for name in read_header(file)[0]]
    assert len(states) == len(set(states)) > 0


def test_another_seed_trains_otherwise_on_the_same_data(launched):
    path, _ = launched
    one, other = path / "jobs" / "rrs", path / "jobs" / "rrs-seed1"
    for name in ("data/manifest.jsonl", "data/eval/manifest.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    first, second = (
        read_header(run / "representations.safetensors")[0]["safety_vector"].array() for run in (one, other)
    )
    np.testing.assert_array_equal(first, second)
    first, second = (read_jsonl(run / "metrics.jsonl")[0]["grad_norm"] for run in (one, other))
    assert abs(first / second - 1) > 1e-3


def test_the_same_command_does_what_is_left(launched):
    path, _ = launched
    before = {file: file.stat().st_mtime_ns for file in path.glob("jobs/*/metrics.jsonl")}
    (path / "jobs.py").write_text(
        RUNS.replace('"bad", {"rrs.refusal_tokens": ("two words",)}', '"good", {"rrs.top_m": 9.0}')
    )
    again = launch(path)
    assert again.returncode == 0, again.stderr
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert read_json(path / "jobs" / "good" / "eval" / "rrs" / "summary.json")["strategy"] == "rrs"


@pytest.fixture
def two_runs(launched, base, tmp_path):
    config = base[0].copy_and_resolve_references()
    config.run_dir = str(tmp_path / "runs")
    (tmp_path / "sweep.py").write_text(
        "def runs(config):\n    yield 'a', {}\n    yield 'b', {'rrs.top_m': 9.0}\n"
    )
    return config, str(tmp_path / "sweep.py")


def test_a_killed_process_loses_its_run_alone(two_runs, capfd):
    config, path = two_runs
    runs = read_sweep(path, config)
    jobs = Jobs(runs, ["a"], {name: ["data", "extract"] for name in runs}, 2)

    def kill() -> None:
        while not any(worker.task == "a" for worker in jobs.workers):
            time.sleep(0.01)
        os.kill(next(worker for worker in jobs.workers if worker.task == "a").process.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    failed = jobs.run()
    thread.join()
    assert set(failed) == {"a"} and "was killed by signal 9, perhaps for want of memory" in failed["a"]
    states = status(runs)
    assert (states["a"]["extract"], states["b"]["extract"]) == ("to do", "done")
    assert "b: done" in capfd.readouterr().err
    assert not any(worker.process.is_alive() for worker in jobs.workers)


def test_an_interruption_ends_the_processes(two_runs, monkeypatch):
    config, path = two_runs
    runs = read_sweep(path, config)
    jobs = Jobs(runs, ["a"], {name: ["data", "extract"] for name in runs}, 2)
    give = jobs._give

    def interrupted(worker, name: str) -> None:
        give(worker, name)
        if name == "b":
            raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "_give", interrupted)
    with pytest.raises(KeyboardInterrupt):
        jobs.run()
    assert not any(worker.process.is_alive() for worker in jobs.workers)
    assert not any(worker.process.daemon for worker in jobs.workers)  # whose data stage could start no voices


def test_a_mistake_in_the_data_ends_the_sweep(two_runs, tmp_path):
    config, path = two_runs
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"question": "How do I answer you 0?"}\n')
    config.data.exclude = (str(asked),)
    with pytest.raises(UserError, match="the data stage; .*shared/log.txt"):
        run_sweep(config, path, ["data"], jobs=2)


@pytest.mark.parametrize("cards, shares", [("", ["0.293"] * 3), ("4,7", ["0.450"] * 3)])
def test_memory_and_cards_are_dealt_out(two_runs, monkeypatch, cards, shares):
    config, path = two_runs
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", cards)
    runs = read_sweep(path, config)
    jobs = Jobs(runs | {"c": runs["a"]}, [], {}, 3)
    settings = [jobs._settings(number) for number in range(3)]
    assert [each["XLA_PYTHON_CLIENT_MEM_FRACTION"] for each in settings] == shares
    assert [each.get("CUDA_VISIBLE_DEVICES") for each in settings] == (
        ["4", "7", "4"] if cards else [None] * 3
    )
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.1")
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in jobs._settings(0)


def test_a_process_goes_on_with_the_strategies_that_it_has_compiled():
    runs = {}
    for name in ("vanilla", "rrs", "sft_deep", "rrs-seed1", "sft_deep-seed1", "rrs-seed2", "system_prompt"):
        runs[name] = default_config()
        runs[name].strategy, runs[name].run_dir = name.partition("-")[0], f"runs/{name}"
    jobs = Jobs(runs, [], {}, 2)
    jobs.workers = first, second = [Worker(None, None, number) for number in range(2)]
    given = [jobs._next(worker) for worker in (first, second, first, second, first, first, second)]
    assert given == [
        "vanilla",  # new to all
        "rrs",
        "sft_deep",
        "rrs-seed1",  # which the second has compiled
        "sft_deep-seed1",
        "system_prompt",  # new to all, before what the other has compiled
        "rrs-seed2",
    ]
    assert not jobs.waiting


def test_a_process_with_nothing_of_its_own_left_takes_the_first_run():
    runs = {name: default_config() for name in ("one", "two", "three")}
    for name, run in runs.items():
        run.run_dir = f"runs/{name}"
    jobs = Jobs(runs, [], {}, 2)
    jobs.workers = first, second = [Worker(None, None, number) for number in range(2)]
    assert [jobs._next(worker) for worker in (first, second, second)] == ["one", "two", "three"]
