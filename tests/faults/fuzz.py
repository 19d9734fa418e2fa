"""Mutated inputs over all readers, under limits of time and memory.

A worker process reads; this one hands it inputs, notices a hang or a crash, and starts another. An input is
named by its reader and its number, from which it is made again.
"""

import collections
import contextlib
import dataclasses
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

SECONDS = 20  # for one input
MEMORY = 1_500_000_000  # bytes beyond what a worker has when it begins


@dataclasses.dataclass
class Outcome:
    """Attributes:
    read: inputs that were read in spite of their change.
    told: inputs that ended in a sentence.
    faults: number of each fault, with the first input that showed it.
    """

    read: int = 0
    told: int = 0
    seconds: float = 0.0
    faults: dict[str, list] = dataclasses.field(default_factory=dict)

    def fault(self, what: str, number: int) -> None:
        self.faults.setdefault(what, [0, number])[0] += 1


def shares(total: int, names: list[str]) -> dict[str, int]:
    """How many of `total` inputs each reader gets, at least one."""
    from faults.readers import ALL

    weights = {name: ALL[name].share for name in names}
    return {name: max(1, round(total * weight / sum(weights.values()))) for name, weight in weights.items()}


def fuzz(
    total: int, names: list[str] | None = None, seed: int = 0, progress: bool = False
) -> dict[str, Outcome]:
    """Reads `total` mutated inputs and returns what came of them, by reader."""
    from faults.readers import READERS

    outcomes = {name: Outcome() for name in names or READERS}
    work = collections.deque(
        (name, first, min(first + 500, count))
        for name, count in shares(total, list(outcomes)).items()
        for first in range(0, count, 500)
    )
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as samples:
        worker = stack.enter_context(_Worker(seed, samples))
        while work:
            name, first, end = work.popleft()
            start = time.monotonic()
            done, fault = worker.do(name, first, end, outcomes[name])
            outcomes[name].seconds += time.monotonic() - start
            if progress:
                print(name, first, end, outcomes[name], file=sys.stderr, flush=True)
            if fault is None:
                continue
            outcomes[name].fault(fault, done)
            worker.__exit__()
            worker = stack.enter_context(_Worker(seed, samples))
            if done + 1 < end:
                work.appendleft((name, done + 1, end))
    return outcomes


class _Worker:
    def __init__(self, seed: int, samples: str):
        self.seed, self.samples = seed, samples

    def __enter__(self) -> "_Worker":
        self.process = subprocess.Popen(
            [sys.executable, "-m", "faults.fuzz", str(self.seed), self.samples],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])},
        )
        self.rest = b""
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()

    def do(self, name: str, first: int, end: int, outcome: Outcome) -> tuple[int, str | None]:
        """Has these inputs read; the number of the one that hung or crashed, and how, or None."""
        self.process.stdin.write(json.dumps([name, first, end]).encode() + b"\n")
        self.process.stdin.flush()
        number = first
        while number < end:
            # The first one waits for imports and for the sample.
            said = self._line(SECONDS if number > first else 300)
            if said is not None and said.startswith("sample: "):
                raise RuntimeError(f"{name}: {said}")
            if said is None:
                hung = self.process.poll() is None
                return number, "hangs" if hung else f"crashes ({signal.Signals(-self.process.wait()).name})"
            if said == "read":
                outcome.read += 1
            elif said == "told":
                outcome.told += 1
            else:
                outcome.fault(said, number)
            number += 1
        return end, None

    def _line(self, seconds: float) -> str | None:
        until = time.monotonic() + seconds
        while b"\n" not in self.rest:
            ready, _, _ = select.select([self.process.stdout], [], [], max(until - time.monotonic(), 0))
            part = os.read(self.process.stdout.fileno(), 2**16) if ready else b""
            if not part:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(0.5)
                return None
            self.rest += part
        line, _, self.rest = self.rest.partition(b"\n")
        return json.loads(line)


def made(files: dict[Path, bytes], name: str, number: int, seed: int) -> tuple[Path, bytes]:
    """The file and the content of an input."""
    from faults.mutations import mutated

    draw = random.Random(f"{seed} {name} {number}")
    file = draw.choice(sorted(files))
    return file, mutated(files[file], draw)


def sample(name: str, samples: Path, folder: Path) -> dict[Path, bytes]:
    """Puts the reader's sample into `folder`, out of `samples` where it is there, and returns the files'
    content."""
    from faults.readers import ALL

    place = samples / f"{list(ALL).index(name)}"
    listed = place.with_suffix(".json")
    if not listed.exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        files = ALL[name].write(place)
        ALL[name].read(place)
        listed.write_text(json.dumps([str(file.relative_to(place)) for file in files]))
    shutil.copytree(place, folder)
    return {folder / name: (folder / name).read_bytes() for name in json.loads(listed.read_text())}


def work(seed: int, samples: Path) -> None:
    """Reads the inputs that come as lines [reader, first, end] and says what came of each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what readers print
    from faults.readers import ALL
    from rrs_jax.errors import UserError

    folders: dict[str, tuple[Path, dict]] = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as root:
        for line in sys.stdin:
            name, first, end = json.loads(line)
            if name not in folders:
                resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                folder = Path(root) / str(len(folders))
                try:
                    folders[name] = folder, sample(name, samples, folder)
                except Exception as error:
                    print(json.dumps(f"sample: {error!r}"), file=answers, flush=True)
                    raise
                ALL[name].read(folder)  # libraries are loaded, and threads have their stacks
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                most = pages * resource.getpagesize() + MEMORY
                resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
            folder, files = folders[name]
            for number in range(first, end):
                file, content = made(files, name, number, seed)
                file.write_bytes(content)
                try:
                    ALL[name].read(folder)
                    said = "read"
                except UserError as error:
                    said = "MemoryError" if isinstance(error.__cause__, MemoryError) else "told"
                    if "\n" in str(error) and "Traceback" in str(error):
                        said = "a traceback in the sentence"
                except BaseException as error:
                    where = traceback.extract_tb(error.__traceback__)
                    ours = [frame for frame in where if "rrs_jax" in frame.filename] or where
                    said = f"{type(error).__name__} in {Path(ours[-1].filename).name}:{ours[-1].name}"
                file.write_bytes(files[file])
                print(json.dumps(said), file=answers, flush=True)


def table(outcomes: dict[str, Outcome]) -> str:
    """The outcomes as Markdown, a reader a row."""
    lines = ["| reader | inputs | read | told | faults | inputs a second |", "|---|---:|---:|---:|---|---:|"]
    for name, one in outcomes.items():
        faults = ", ".join(f"{count} {what} (first {first})" for what, (count, first) in one.faults.items())
        number = one.read + one.told + sum(count for count, _ in one.faults.values())
        pace = number / one.seconds if one.seconds else 0
        lines.append(f"| {name} | {number} | {one.read} | {one.told} | {faults or 'none'} | {pace:.0f} |")
    total = sum(one.read + one.told for one in outcomes.values())
    bad = sum(count for one in outcomes.values() for count, _ in one.faults.values())
    return "\n".join([*lines, f"| all | {total + bad} | | | {bad} | |"])


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
