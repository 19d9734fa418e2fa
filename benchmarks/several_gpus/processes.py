"""One run by one process for each device, against one process with all: the same losses. One process killed
in the middle: the others end with a sentence, and the same command resumes to the same adapter."""

import argparse
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SHARE = "0.2"  # of a card's memory for each process: several runs of a small model share the cards
PATIENCE = 400.0  # seconds in which a run has to end


@dataclasses.dataclass(frozen=True)
class Plan:
    """Steps of training, a checkpoint every `saved` of them, and the one after which a process is killed."""

    steps: int
    saved: int
    killed: int


@dataclasses.dataclass
class Run:
    """Processes that do one run together.

    Attributes:
      folder: the run's.
      started: the processes, the first one first.
      logs: what each says.
    """

    folder: Path
    started: list[subprocess.Popen]
    logs: list[Path]

    def wait(self) -> list[int]:
        """Returns the exit statuses, after at most `PATIENCE` seconds."""
        until = time.monotonic() + PATIENCE
        try:
            return [one.wait(max(until - time.monotonic(), 1)) for one in self.started]
        except subprocess.TimeoutExpired:
            for one in self.started:
                one.kill()
            return [one.wait() for one in self.started]

    def losses(self) -> list[float]:
        file = self.folder / "metrics.jsonl"
        return [json.loads(line)["loss"] for line in file.read_text().splitlines()] if file.is_file() else []

    def adapter(self) -> bytes:
        return (self.folder / "export" / "adapter" / "adapter_model.safetensors").read_bytes()

    def said(self, process: int) -> str:
        """The last lines of a process, without a stack of JAX's own functions."""
        lines = [line for line in self.logs[process].read_text().splitlines() if not line.startswith("    @")]
        return "\n".join(lines[-6:])[-900:]


def processes(options: argparse.Namespace) -> None:
    """Writes the lines `processes`."""
    place = Path(tempfile.mkdtemp(prefix="several_gpus_processes_"))
    try:
        tell(place, device_count(), options.out)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def tell(place: Path, devices: int, out: Path | None) -> None:
    prepare = [sys.executable, __file__, str(place)]
    subprocess.run(prepare, env=environment(range(devices), devices) | {"JAX_PLATFORMS": "cpu"}, check=True)
    alone = start(place, "alone", 1, devices)
    together = start(place, "together", devices, devices)
    killed = start(place, "killed", devices, devices)
    write(out, **death(killed, process=devices - 1))
    facts = {"part": "processes", "devices": devices, "status_alone": alone.wait(), "status": together.wait()}
    if any(facts["status_alone"] + facts["status"]):
        write(out, **facts, failed=alone.said(0) + "\n" + together.said(0))
        return
    ours, expected = together.losses(), alone.losses()
    largest = max(abs(a - b) / abs(b) for a, b in zip(ours, expected, strict=True))
    write(
        out,
        **facts,
        steps=len(ours),
        largest_difference=largest,
        equal_adapters=together.adapter() == alone.adapter(),
    )

    before = len(killed.losses())
    resumed = start(place, "killed", devices, devices)
    status = resumed.wait()
    facts = {"part": "resumed", "devices": devices, "status": status, "steps_before": before}
    if any(status):
        write(out, **facts, failed=resumed.said(0))
        return
    write(
        out,
        **facts,
        steps=len(resumed.losses()),
        equal_losses=resumed.losses() == ours,
        equal_adapters=resumed.adapter() == together.adapter(),
    )
    first = start(place, "first", devices, devices)
    write(out, **death(first, process=0))


def death(run: Run, process: int) -> dict:
    """Kills one process behind a checkpoint; how long the others take to end, and what they say."""
    while not (run.folder / "checkpoints" / str(plan().killed)).is_dir():
        if any(one.poll() is not None for one in run.started):
            return {"part": "killed", "failed": run.said(0)}
        time.sleep(0.05)
    run.started[process].send_signal(signal.SIGKILL)
    since = time.monotonic()
    status = run.wait()
    other = next(i for i in range(len(run.started)) if i != process)
    return {
        "part": "killed",
        "devices": len(run.started),
        "process": process,
        "seconds_until_the_others_ended": round(time.monotonic() - since, 1),
        "status": status,
        "said": run.said(other),
    }


def start(place: Path, name: str, count: int, devices: int) -> Run:
    """Starts the run `name` with `count` processes over all devices."""
    command = [
        sys.executable,
        "launch.py",
        f"--config={place / 'config.py'}",
        "--stages=data,extract,train,export",
    ]
    command += [f"--config.run_dir={place / name}"]
    if count > 1:
        command += [
            f"--coordinator=127.0.0.1:{free_port()}",
            f"--num_processes={count}",
            "--join_seconds=120",
        ]
    each, run = devices // count, Run(place / name, [], [])
    for index in range(count):
        own = [*command, f"--process_id={index}"] if count > 1 else command
        run.logs.append(place / f"{name}.{index}.log")
        with run.logs[-1].open("w") as log:
            own_devices = range(index * each, (index + 1) * each)
            run.started.append(
                subprocess.Popen(own, cwd=ROOT, env=environment(own_devices, each), stdout=log, stderr=log)
            )
    return run


def environment(own: range, count: int) -> dict[str, str]:
    """Returns a process's variables: its devices, and programs that give the same bits in every run."""
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    flags += (
        " --xla_gpu_deterministic_ops=true"
        if has_gpu()
        else f" --xla_force_host_platform_device_count={count}"
    )
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    devices = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, own))} if has_gpu() else {}
    return (
        os.environ
        | devices
        | {"XLA_FLAGS": flags, "PYTHONPATH": path, "XLA_PYTHON_CLIENT_MEM_FRACTION": SHARE}
    )


def plan() -> Plan:
    """Returns the steps of a run, fewer on a CPU."""
    return Plan(240, 20, 40) if has_gpu() else Plan(16, 2, 4)


def has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None and os.environ.get("JAX_PLATFORMS") != "cpu"


def device_count() -> int:
    """Returns the number of devices, without taking them."""
    if has_gpu():
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
        return listed.count("GPU ")
    found = re.search(r"device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    return int(found.group(1)) if found else 2


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def write(out: Path | None, **line) -> None:
    print(json.dumps(line), flush=True)
    if out:
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")


def prepare(place: Path) -> None:
    """Writes a small model with random weights, questions with clips of noise, and the run's config."""
    import numpy as np
    from common import SMALL
    from folders import write_random_weights, write_small_files
    from whole_run import write_questions

    from rrs_jax.config import default_config, flatten

    manifest, evaluation = write_questions(place / "questions", np.full(32, 2.0))
    base = place / "base"
    base.mkdir()
    write_small_files(base, SMALL)
    write_random_weights(base / "model.safetensors", SMALL, "float32")
    config = default_config()
    config.model.path, config.model.dtype = str(base), "float32"
    config.data.manifest, config.data.eval_manifest = str(manifest), str(evaluation)
    config.train.batch_size, config.train.epochs = 16, plan().steps // 2
    config.train.checkpoint_every_steps, config.train.learning_rate = plan().saved, 1e-3
    config.train.keep_checkpoints = 100
    values = flatten(config)
    (place / "config.py").write_text(
        "from rrs_jax.config import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        f"    config.update_from_flattened_dict({values!r})\n"
        "    return config\n"
    )


if __name__ == "__main__":
    sys.path[0] = str(ROOT / "benchmarks")
    prepare(Path(sys.argv[1]))
