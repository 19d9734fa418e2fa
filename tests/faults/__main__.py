"""All faults, with tables of what came of them; on two cores at most half an hour.

cd tests && python -m faults [--inputs=100000] [--signals=40] [--only=readers|signals|disks]
"""

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from faults.fuzz import fuzz
from faults.fuzz import table as fuzz_table
from faults.interruptions import FREE, full_disk, interrupt, moments, table
from faults.runs import SmallRun


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m faults", description="Faults made on purpose.")
    parser.add_argument("--inputs", type=int, default=100_000, help="mutated inputs over all readers")
    parser.add_argument("--signals", type=int, default=40, help="of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--only", choices=("readers", "signals", "disks"), help="one part")
    options = parser.parse_args()
    bad = 0
    if options.only in (None, "readers"):
        outcomes = fuzz(options.inputs, seed=options.seed)
        bad += sum(len(one.faults) for one in outcomes.values())
        print(fuzz_table(outcomes), flush=True)
    if options.only == "readers":
        return bool(bad)
    with tempfile.TemporaryDirectory() as folder:
        small = SmallRun(Path(folder))
        small.prepare()
        rows = []
        if options.only != "disks":
            for kind in (signal.SIGKILL, signal.SIGTERM):
                for stage, share in moments(options.signals):
                    rows.append(interrupt(small, kind, stage, share))
                    print(rows[-1], file=sys.stderr, flush=True)
            print(table(rows), flush=True)
        if options.only != "signals":
            full = [full_disk(small, free) for free in FREE]
            print(table(full), flush=True)
            rows += full
    return bool(bad) or any(row["resumed"] or row["differs"] or not row["sound"] for row in rows)


if __name__ == "__main__":
    sys.exit(main())
