"""launch.py with marks: what it writes below its run folder, and the items that its loops count.

    python marked.py MARKS FOLDER WHEN ARGUMENTS...

A line of MARKS is a time and a mark. WHEN is `-`, or SIGNAL:NUMBER:SECONDS for a signal that the program gets
so many seconds after the mark of that number. Marks begin with the record of the run and end with the mark of
a stage.
"""

import itertools
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHANGES = {"os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0}  # the argument that is told
SENT = "sent"


class Marks:
    """Marks of this process, written down as they come; also sends the signal."""

    def __init__(self, file: str, folder: str, when: str):
        self.file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        self.folder, self.numbers, self.begun = folder + os.sep, itertools.count(), False
        kind, number, seconds = when.split(":") if when != "-" else ("SIGTERM", "-1", "0")
        self.kind, self.number, self.seconds = signal.Signals[kind], int(number), float(seconds)

    def note(self, name: str) -> None:
        os.write(self.file, f"{time.monotonic()} {name}\n".encode())

    def mark(self, name: str) -> None:
        if not self.begun:
            return
        number = next(self.numbers)
        self.note(name)
        if number == self.number and self.seconds:
            timer = threading.Timer(self.seconds, self.send)
            timer.daemon = True
            timer.start()
        elif number == self.number:
            self.send()

    def send(self) -> None:
        self.note(SENT)
        os.kill(os.getpid(), self.kind)

    def heard(self, event: str, arguments: tuple) -> None:
        """Python's audit hook."""
        if event == "open":
            path, _, flags = arguments
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in CHANGES:
            path = arguments[CHANGES[event]]
        else:
            return
        path = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        if not path.startswith(self.folder):
            return
        name = path.removeprefix(self.folder)
        self.begun |= name == "config.json"
        self.mark(f"{event} {name}")
        self.begun &= not (event == "os.rename" and name.startswith(".done/"))


def main() -> None:
    file, folder, when, *arguments = sys.argv[1:]
    sys.argv = [str(ROOT / "launch.py"), *arguments]
    sys.path[0] = str(ROOT)
    from rrs_jax.progress import Progress

    marks, update = Marks(file, folder, when), Progress.update

    def counted(self: Progress, n: int = 1, **fields: object) -> None:
        marks.mark(f"counts {self.what} {self.done + n}")
        update(self, n, **fields)

    Progress.update = counted
    sys.addaudithook(marks.heard)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
