"""Every file of a finished run, and of what it reads, damaged in every way; ten simultaneous starts.

    python tests/faults/run_files.py [--out TABLE.md]

Exit status 1 where a fault was silent, ended in a traceback or left
another result.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])  # of the processes that start together
os.environ.setdefault("JAX_PLATFORMS", "cpu")


def main() -> int:
    from helpers.xla_flags import UNOPTIMISED

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="Markdown file for the table")
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XLA_FLAGS"] = UNOPTIMISED
        os.environ["RRS_JAX_CACHE"] = f"{folder}/cache"
        return _run(Path(folder), options.out, start)


def _run(folder: Path, out: Path | None, start: float) -> int:
    from faults.damage import KINDS, copy_home, damage_all, files_of, table
    from faults.starts import start_together
    from helpers.tiny_run import make_tiny_run

    home, backup, outcomes = folder / "home", folder / "backup", []
    home.mkdir()
    shared = make_tiny_run(home)
    copy_home(home, backup)
    for below in ("run", "model", "data"):
        cases = [(file, kind) for file in files_of(home / below) for kind in KINDS]
        outcomes += damage_all(home, backup, shared, cases, below)
    bad = [outcome for outcome in outcomes if outcome.verdict in ("silent", "wrong", "traceback")]
    faults = start_together(home, 10)
    counts = ", ".join(
        f"{count} {verdict}" for verdict, count in Counter(o.verdict for o in outcomes).items()
    )
    text = (
        f"{table(outcomes)}\n\n{len(outcomes)} faults: {counts}.\n"
        f"Two commands at one instant, 10 times: {len(faults)} faults.\n"
    )
    print(text)
    for outcome in bad:
        print(f"{outcome.verdict}: {outcome.file} {outcome.kind} {outcome.wrong}\n{outcome.words}")
    print("\n".join([*faults, f"{time.monotonic() - start:.0f} s"]))
    if out is not None:
        out.write_text(text, encoding="utf-8")
    return 1 if bad or faults else 0


if __name__ == "__main__":
    sys.exit(main())
