"""launch.py, which notes what it does: what it changes in its run folder, and where it looks for a signal.

    python marked.py MARKS FOLDER WHEN ARGUMENTS...

A line of the file MARKS is a time, the processor time that the program has taken, and a mark. The marks
begin with the record of the run and end with the stage's own mark. WHEN is `-`, or SIGNAL:NUMBER:SECONDS for
a signal when the program has taken so many seconds of processor time since the mark of that number, from 0.
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
ASKS, SENT = "asks", "sent"


class Marks:
    """Writes marks as they come, and sends this process the signal."""

    def __init__(self, file: str, folder: str, when: str):
        self.file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        self.folder, self.numbers, self.begun = folder + os.sep, itertools.count(), False
        kind, number, seconds = when.split(":") if when != "-" else ("SIGTERM", "-1", "0")
        self.kind, self.number, self.seconds = signal.Signals[kind], int(number), float(seconds)

    def note(self, name: str) -> None:
        os.write(self.file, f"{time.monotonic()} {time.process_time()} {name}\n".encode())

    def mark(self, name: str) -> None:
        """Notes a mark, and sends the signal where it is due."""
        if not self.begun:
            return
        number = next(self.numbers)  # also threads have marks
        self.note(name)
        if number == self.number and self.seconds:
            moment = time.process_time() + self.seconds
            threading.Thread(target=self.send_at, args=(moment,), daemon=True).start()
        elif number == self.number:
            self.send()

    def send_at(self, moment: float) -> None:
        while time.process_time() < moment:
            time.sleep(0.002)
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
        if path.startswith(self.folder):
            name = path.removeprefix(self.folder)
            self.begun |= name == "config.json"
            self.mark(f"{event} {name}")
            self.begun &= not (event == "os.rename" and name.startswith(".done/"))


def main() -> None:
    file, folder, when, *arguments = sys.argv[1:]
    sys.argv = [str(ROOT / "launch.py"), *arguments]
    sys.path[0] = str(ROOT)
    from rrs_jax import errors

    marks, ask = Marks(file, folder, when), errors.stop_if_asked

    def stop_if_asked() -> None:
        marks.mark(f"{ASKS} in {sys._getframe(1).f_code.co_qualname}")
        ask()

    errors.stop_if_asked = stop_if_asked  # before the other modules take it from there
    sys.addaudithook(marks.heard)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
