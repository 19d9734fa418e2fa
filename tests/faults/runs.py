"""A small whole run, started as a program, and its files compared with those of an undisturbed one."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from faults import marked
from rrs_jax.config import default_config, flatten
from rrs_jax.errors import UserError
from rrs_jax.files import write_jsonl
from rrs_jax.testing import twin_rows, write_clips, write_qwen2_audio
from rrs_jax.weights.safetensors_io import load_file

ROOT = Path(__file__).parents[2]
STAGES = ("data", "extract", "train", "evaluate", "export", "report")
CONFIG = """
from rrs_jax.config import default_config
def get_config():
    config = default_config()
    config.update_from_flattened_dict(%r)
    return config
"""
# What tells the time, is the library's own record of it, or has digests of such files.
APART = ("config.json", ".lock", "tensorboard", "checkpoints", "figure2.json", "index.html")
TIMES = ("seconds", "samples_per_second", "finished", "compiling_seconds", "content_sum", "outputs")


@dataclasses.dataclass
class Ended:
    """Attributes:
    status: the exit status, negative for a signal.
    said: what the program printed.
    seconds: since its start.
    marks: seconds of processor time since its first mark, and the name, of each (`faults.marked`).
    after: seconds from the signal to the end; None where it was not sent.
    """

    status: int
    said: str
    seconds: float
    marks: list[tuple[float, str]]
    after: float | None

    @property
    def told(self) -> bool:
        """True for an end with 0, or with a sentence."""
        return "Traceback" not in self.said and self.status in (0, 1, 2)


class SmallRun:
    """A run of a random model on a CPU in `folder`, and a copy of it as it is after each stage.

    repeated: how often each of the eight clips has a question. layers: of the decoder. fields: values of the
    config.
    """

    def __init__(self, folder: Path, repeated: int = 1, layers: int | None = None, **fields: object):
        self.folder = folder
        write_qwen2_audio(folder / "model", **({} if layers is None else {"num_hidden_layers": layers}))
        (folder / "clips").mkdir()
        write_jsonl(folder / "manifest.jsonl", twin_rows(write_clips(folder / "clips") * repeated))
        config = default_config()
        config.model.path, config.model.dtype = str(folder / "model"), "float32"
        config.data.manifest = config.data.eval_manifest = str(folder / "manifest.jsonl")
        config.train.epochs, config.train.batch_size, config.train.learning_rate = 6, 4, 1e-3
        config.evaluate.samples, config.generate.max_new_tokens = 2, 8
        config.export.merged = True
        config.report.representation_epochs = (0, 3, 6)
        config.update_from_flattened_dict(fields)
        (folder / "config.py").write_text(CONFIG % flatten(config))
        self.marks: dict[str, list[tuple[float, str]]] = {}

    def prepare(self, wanted: Sequence[str] = STAGES) -> None:
        """Makes the undisturbed run, stage by stage, and keeps the folder as it was before each.

        wanted: stages that will be interrupted, before which a stage is done once to compile what it needs.
        """
        whole = self.folder / "whole"
        for stage in STAGES[: STAGES.index(wanted[-1]) + 1]:
            if whole.exists():
                shutil.copytree(whole, self.before(stage))
            else:
                self.before(stage).mkdir()
            if stage in wanted:
                self.do(whole, stage)  # compiles
                shutil.rmtree(whole)
                shutil.copytree(self.before(stage), whole)
            ended = self.do(whole, stage)
            self.marks[stage] = ended.marks
            if ended.status:
                raise RuntimeError(f"{stage}: {ended.said}")
        shutil.copytree(whole, self.after(stage))

    def prepare_whole(self) -> None:
        """Makes the undisturbed run with all stages at once."""
        if (ended := self.do(self.folder / "whole", ",".join(STAGES))).status:
            raise RuntimeError(ended.said)

    def before(self, stage: str) -> Path:
        """The undisturbed run's folder before the stage."""
        return self.folder / f"before-{stage}"

    def after(self, stage: str) -> Path:
        """The undisturbed run's folder after the stage."""
        place = STAGES.index(stage) + 1
        return self.before(STAGES[place]) if place < len(STAGES) else self.folder / "after"

    def do(self, run: Path, stages: str, when: str = "-", at: Callable[[int], object] | None = None) -> Ended:
        """Starts the program; `when` as in `faults.marked`; `at` gets its number again and again until it has
        ended."""
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "RRS_JAX_CACHE": str(self.folder / "cache"),
        }
        name = f"{run.parent.name}-{run.name}"  # not beside the run, whose disk may be full
        marks, log = self.folder / f"{name}.marks", self.folder / f"{name}.log"
        command = [sys.executable, marked.__file__, str(marks), str(run), when]
        command += [f"--config={self.folder / 'config.py'}", f"--config.run_dir={run}", f"--stages={stages}"]
        start = time.monotonic()
        with log.open("w") as file:
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        while process.poll() is None:
            if at is not None:
                at(process.pid)
            time.sleep(0.005)
        end = time.monotonic()
        lines = [line.split(" ", 2) for line in marks.read_text().splitlines()]
        sent = next((end - float(moment) for moment, _, name in lines if name == marked.SENT), None)
        noted = [(float(work) - float(lines[0][1]), name) for _, work, name in lines if name != marked.SENT]
        return Ended(process.returncode, log.read_text(), end - start, noted, sent)

    def when(self, kind: signal.Signals, stage: str, share: float, by: str) -> tuple[str, str]:
        """The signal for `do` at a share of a stage's marks, or of its work, and the mark before it.

        It comes at a mark, or after half of the processor time from the mark to there, so that it is never
        too late; SIGTERM before the program looks for a signal for the last time.
        """
        marks = self.marks[stage]
        asking = [place for place, (_, name) in enumerate(marks) if name.startswith(marked.ASKS)]
        last = len(marks) - 1 if kind == signal.SIGKILL else asking[-1]
        number, seconds = int(share * last), 0.0
        if by == "time":
            moment = share * marks[last][0]
            number = max(place for place in range(last) if marks[place][0] <= moment)
            seconds = (moment - marks[number][0]) / 2
        return f"{kind.name}:{number}:{seconds:.4f}", marks[number][1]


def differences(run: Path, expected: Path, whole: Path) -> list[str]:
    """The files of a run that are not as expected, but for times. `expected` was made at `whole`."""
    listed = [
        {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()}
        for folder in (run, expected)
    ]
    ours, theirs = (
        {name for name in names if not any(part in APART for part in name.parts)} for names in listed
    )
    found = [f"{name} is there" for name in sorted(ours - theirs)]
    found += [f"{name} is missing" for name in sorted(theirs - ours)]
    return found + [
        str(name)
        for name in sorted(ours & theirs)
        if _content(run / name, run, whole) != _content(expected / name, whole)
    ]


def _content(file: Path, *places: Path) -> object:
    """What a file holds, with RUN for each place where its run was."""
    if file.suffix == ".safetensors":  # whose package writes metadata in any order
        try:
            arrays, metadata = load_file(file)
        except UserError as error:
            return str(error)
        return metadata, {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in arrays.items()}
    content = file.read_bytes()
    if file.suffix not in (".json", ".jsonl"):
        return content
    for place in places:
        content = content.replace(str(place).encode(), b"RUN")
    lines = content.decode()
    return [
        _timeless(json.loads(line)) for line in (lines.splitlines() if file.suffix == ".jsonl" else [lines])
    ]


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        return {name: _timeless(inner) for name, inner in value.items() if name not in TIMES}
    return json.loads(json.dumps(value))
