"""Two processes that do one run together, against one process with as many devices; and what goes wrong
between them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from helpers.ports import free_port
from helpers.tensors import relative_error
from helpers.xla_flags import UNOPTIMISED
from rrs_jax.config import default_config, flatten
from rrs_jax.files import read_jsonl, write_jsonl
from rrs_jax.testing import twin_rows
from rrs_jax.weights.safetensors_io import read_header

ROOT = Path(__file__).parent.parent
CONFIG = """
from rrs_jax.config import default_config
def get_config():
    config = default_config()
    config.update_from_flattened_dict(%r)
    return config
"""
STEPS = 5  # and as many epochs: batches of one length compile once


def start(arguments: list[str], devices: int, log: Path) -> subprocess.Popen:
    flags_ = f"--xla_force_host_platform_device_count={devices} {UNOPTIMISED}"
    environment = os.environ | {"XLA_FLAGS": flags_, "PYTHONPATH": str(ROOT)}
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=file, stderr=file
        )


def start_both(arguments: list[str], devices: int, logs: Path) -> list[subprocess.Popen]:
    joining = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", "--join_seconds=60"]
    return [
        start([*arguments, *joining, f"--process_id={i}"], devices, logs.with_suffix(f".{i}"))
        for i in range(2)
    ]


LOST = "process 0: lost (it was killed, or its host is down); the same command resumes\n"
GLOO = (
    "[Gloo] Rank ",
    " is connected to ",
    " peer ranks. ",
    "Expected number of connected peer ranks is : ",
    "\n",
)


def without_gloo(text: str) -> str:
    """Returns the text without the lines that XLA's CPU collectives print. They write a line in eight pieces,
    so that those of two devices' threads may stand within one another: then nothing may be left over but all
    of their pieces and numbers."""
    text = re.sub(
        rf"{re.escape(GLOO[0])}\d{GLOO[1]}\d{GLOO[2]}{GLOO[3]}\d\n", "", text
    )  # not two lines' numbers in one
    tangled = len(re.findall(re.escape(GLOO[0]), text))
    if not tangled:
        return text
    start = text.index(GLOO[0])
    for piece in GLOO:
        assert text.count(piece, start) >= tangled, text
        text = text[:start] + text[start:].replace(piece, "", tangled)
    numbers = re.match(rf"\d{{{3 * tangled}}}", text[start:])  # ranks of one digit each
    assert numbers, text
    return text[:start] + text[start + numbers.end() :]


@pytest.fixture(scope="module")
def runs(whole_folder, sound_files, tmp_path_factory):
    """`two`: by two processes with two devices each, of which the first one is killed in three stages, and
    both are started again; `one`: by one with four."""
    path = tmp_path_factory.mktemp("hosts")
    rows = twin_rows(sound_files)
    write_jsonl(path / "manifest.jsonl", rows)
    config = default_config()
    config.model.path, config.model.dtype = str(whole_folder), "float32"
    config.data.manifest = config.data.eval_manifest = str(path / "manifest.jsonl")
    config.train.epochs, config.train.batch_size, config.train.learning_rate = STEPS, 8, 1e-3
    config.evaluate.samples, config.generate.max_new_tokens, config.evaluate.modes = 2, 4, ("audio_text",)
    config.report.representation_epochs = (STEPS,)
    config.mesh.data, config.mesh.fsdp = 2, 2
    (path / "config.py").write_text(CONFIG % flatten(config))
    command = ["launch.py", f"--config={path / 'config.py'}", "--stages=data,extract,train,evaluate,export"]

    one = start([*command, f"--config.run_dir={path / 'one'}"], 4, path / "one.log")
    assert one.wait(300) == 0, (path / "one.log").read_text()

    command += [f"--config.run_dir={path / 'two'}"]
    for number, reached in enumerate((".done/data.json", "checkpoints/2", ".done/train.json")):
        first, other = start_both(command, 2, path / f"killed{number}")
        while not (path / "two" / reached).exists() and first.poll() is other.poll() is None:
            time.sleep(0.02)
        first.kill()
        first.wait(60)
        assert other.wait(60) == 1
        assert without_gloo((path / f"killed{number}.1").read_text()) == LOST
        if reached == "checkpoints/2":
            assert 2 <= len((path / "two" / "metrics.jsonl").read_text().splitlines()) < STEPS

    processes = start_both(command, 2, path / "two")
    assert [process.wait(300) for process in processes] == [0, 0], [
        (path / f"two.{i}").read_text() for i in range(2)
    ]
    return path


def test_losses_and_adapter_equal_those_of_one_process(runs):
    ours, expected = (read_jsonl(runs / name / "metrics.jsonl") for name in ("two", "one"))
    assert [row["step"] for row in ours] == [row["step"] for row in expected] == list(range(1, STEPS + 1))
    for field in ("loss", "grad_norm"):
        np.testing.assert_allclose([row[field] for row in ours], [row[field] for row in expected], rtol=1e-5)
    assert ours[-1]["penalty"] > 0
    files = [runs / name / "export" / "adapter" / "adapter_model.safetensors" for name in ("two", "one")]
    (ours, _), (expected, _) = map(read_header, files)
    assert ours.keys() == expected.keys()
    for name in ours:
        assert relative_error(ours[name].array(), expected[name].array()) < 1e-4, name


@pytest.mark.parametrize("name", ["vanilla", "rrs"])
def test_answers_and_rates_equal_those_of_one_process(runs, name):
    def read(run):
        rows = read_jsonl(runs / run / "eval" / name / "responses.jsonl")
        return {(row["set"], row["id"], row["mode"], row["sample"]): row["response"] for row in rows}

    assert read("two") == read("one") and len(read("one")) == 8 * 2
    summaries = [(runs / run / "eval" / name / "summary.json").read_text() for run in ("two", "one")]
    assert summaries[0] == summaries[1]


def test_the_first_process_alone_writes_and_talks(runs):
    def files(run):
        found = {str(file.relative_to(runs / run)) for file in (runs / run).rglob("*") if file.is_file()}
        return {name for name in found if not name.startswith(("checkpoints", "tensorboard"))}

    assert files("two") == files("one")
    assert without_gloo((runs / "two.1").read_text()).split() == []
    said = (runs / "two.0").read_text()
    assert (
        "stage train: done already" in said and "stage export: done in " in said and "seconds: data" in said
    )
    assert json.loads((runs / "two" / "config.json").read_text())["sessions"][0]["processes"] == 2


MESSAGES = """
import json, sys
from pathlib import Path
from rrs_jax.distributed import processes
from rrs_jax.errors import UserError
from rrs_jax.distributed.join import JoinOptions, joined

def sentence(act):
    try:
        act()
    except UserError as error:
        return str(error)

def wrong(where):
    def act():
        with processes.in_step():
            if index == where:
                raise UserError("it is wrong")
    return act

def refused():
    raise UserError("no")

index = int(sys.argv[1])
with joined(JoinOptions(sys.argv[2], 2, index, 60), Path(sys.argv[3])):
    seen = []
    lead = processes.Leader({"add": lambda a, b: seen.append(a + b)})
    def work():
        lead.call("add", 1, 2)
        lead.call("add", "x" * 3_000_000, "y")
        return len(seen)
    told = {
        "gather": processes.gather(str(index)),
        "by_first": processes.by_first(lambda: [index, "é"]),
        "refused": sentence(lambda: processes.by_first(refused)),
        "wrong0": sentence(wrong(0)),
        "wrong1": sentence(wrong(1)),
        "alike": sentence(lambda: processes.check_alike({"a": 1, "seed": index})),
        "shared": sentence(lambda: processes.check_shared(Path(sys.argv[3]))),
        "own": sentence(lambda: processes.check_shared(Path(sys.argv[3]) / str(index))),
        "lead": lead.run(work),
        "failed lead": sentence(lambda: lead.run(refused)),
        "seen": [seen[0], len(seen[1])],
    }
    print("TOLD " + json.dumps(told))
"""


def test_what_processes_tell_one_another(tmp_path):
    for i in range(2):
        (tmp_path / str(i)).mkdir()
    (tmp_path / "messages.py").write_text(MESSAGES)
    port = free_port()
    arguments = [
        [str(tmp_path / "messages.py"), str(i), f"127.0.0.1:{port}", str(tmp_path)] for i in range(2)
    ]
    processes = [start(own, 1, tmp_path / f"log{i}") for i, own in enumerate(arguments)]
    assert [process.wait(120) for process in processes] == [0, 0], (tmp_path / "log0").read_text()
    for i in range(2):
        told = next(
            line for line in (tmp_path / f"log{i}").read_text().splitlines() if line.startswith("TOLD ")
        )
        assert json.loads(told.removeprefix("TOLD ")) == {
            "gather": ["0", "1"],
            "by_first": [0, "é"],
            "refused": "no",
            "wrong0": "it is wrong",
            "wrong1": "process 1: it is wrong",
            "alike": (
                "the processes are not started alike (seed 0 in process 0 and 1 in process 1); give all the"
                " same command and program."
            ),
            "shared": None,
            # Each has its own folder here, so each names its own.
            "own": (
                f"run_dir: {tmp_path / str(i)} is not the same folder in all processes (process 1 does not"
                " see what process 0 writes); give a --config.run_dir on a file system that all hosts share."
            ),
            "lead": 2,
            "failed lead": "no",
            "seen": [3, 3_000_001],
        }
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0", "1", "log0", "log1", "messages.py"]


ENDINGS = """
import sys, time
from pathlib import Path
from rrs_jax.distributed import processes
from rrs_jax.errors import UserError, exit_status
from rrs_jax.distributed import join
from rrs_jax.distributed.join import JoinOptions, end, joined

join.LOST_SECONDS = 6.0
index, how = int(sys.argv[1]), sys.argv[3]
with exit_status() as told, joined(JoinOptions(sys.argv[2], 2, index, 60), Path(__file__).parent):
    print("READY", flush=True)
    if index == 1 and how == "mistake":
        raise UserError("this host has no model")
    if how == "waits" or how == "gathers" and index == int(sys.argv[4]):
        time.sleep(100)
    processes.gather("")
end(told.code)
"""


@pytest.mark.parametrize(
    "how, sent, status, first_says",
    [
        ("mistake", None, 2, "process 1: this host has no model"),
        ("waits", signal.SIGTERM, 1, "interrupted; the same command resumes"),
    ],
)
def test_all_end_where_one_ends(tmp_path, how, sent, status, first_says):
    """After a mistake of one, and after a signal to one while the other is busy."""
    (tmp_path / "endings.py").write_text(ENDINGS)
    port = free_port()
    arguments = [[str(tmp_path / "endings.py"), str(i), f"127.0.0.1:{port}", how] for i in range(2)]
    logs = [tmp_path / f"log{i}" for i in range(2)]
    processes = [start(own, 1, log) for own, log in zip(arguments, logs, strict=True)]
    if sent:
        while not all("READY" in log.read_text() for log in logs):
            assert all(process.poll() is None for process in processes), logs[0].read_text()
            time.sleep(0.05)
        processes[0].send_signal(sent)
    assert [process.wait(60) for process in processes] == [status, status], (
        logs[0].read_text() + logs[1].read_text()
    )
    assert without_gloo(logs[0].read_text()).split("\n") == ["READY", first_says, ""]
    assert "Traceback" not in logs[1].read_text()


@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("how", ["waits", "gathers"])
def test_the_others_end_where_one_is_killed(tmp_path, how, killed):
    """The other one is busy, or waits for a message."""
    (tmp_path / "endings.py").write_text(ENDINGS)
    port = free_port()
    arguments = [
        [str(tmp_path / "endings.py"), str(i), f"127.0.0.1:{port}", how, str(killed)] for i in range(2)
    ]
    logs = [tmp_path / f"log{i}" for i in range(2)]
    processes = [start(own, 1, log) for own, log in zip(arguments, logs, strict=True)]
    while not all("READY" in log.read_text() for log in logs):
        assert all(process.poll() is None for process in processes), logs[0].read_text()
        time.sleep(0.05)
    processes[killed].kill()
    assert processes[1 - killed].wait(40) == 1  # JAX would notice after 100 seconds, or abort
    told = f"process {killed}: lost (it was killed, or its host is down); the same command resumes"
    assert without_gloo(logs[1 - killed].read_text()).split("\n") == ["READY", told, ""]
    assert not list(tmp_path.glob(".join*"))
