"""The share of the device's matrix-product rate that a finished run reached, stage by stage.

    python benchmarks/run_share.py runs/mini_rrs

Arithmetic is that of the dry run (`rrs_jax.run.estimates`), for the questions in the run's own manifests;
seconds are those that the run noted for its stages, reading, loading and compilation included. The rate is
measured now, so the machine should be the run's and otherwise idle. Of `evaluate` it is the most that the
answers can have cost, as if none ended early.
"""

import argparse
from pathlib import Path

from rrs_jax.files import read_json, read_jsonl
from rrs_jax.run.dry_run import make_plan
from rrs_jax.run.estimates import EFFICIENCY, DeviceRate, measure_device
from rrs_jax.run.recorded_config import recorded_config

COMPUTING = ("extract", "train", "evaluate")
ONE_A_SECOND = DeviceRate(
    flops=1 / EFFICIENCY, bandwidth=float("inf")
)  # so that the plan's seconds are operations


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    config = recorded_config(run)
    marks = {file.stem: read_json(file)["seconds"] for file in sorted((run / ".done").glob("*.json"))}
    operations = make_plan(config, [name for name in COMPUTING if name in marks], ONE_A_SECOND).seconds
    rate = measure_device(config.model.dtype).flops
    print(f"matrix product: {rate / 1e9:.1f} GFLOP/s in {config.model.dtype}\n")
    print("| stage | seconds | TFLOP | GFLOP/s | share of the matrix product |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, flops in operations.items():
        each = flops / marks[name]
        most = "at most " if name == "evaluate" else ""
        print(
            f"| {name} | {marks[name]:.0f} | {flops / 1e12:.1f} | {each / 1e9:.1f} |"
            f" {most}{each / rate:.0%} |"
        )
    steps = (
        [line["samples_per_second"] for line in read_jsonl(run / "metrics.jsonl")]
        if "train" in operations
        else []
    )
    if steps:
        samples = len(steps) * config.train.batch_size
        best = operations["train"] / samples * sorted(steps)[len(steps) // 2]
        print(
            f"\na training step at the median, compilation apart: {best / 1e9:.1f} GFLOP/s, {best / rate:.0%}"
        )
    print(
        f"all stages: {sum(marks.values()) / 60:.1f} minutes"
        f" ({', '.join(f'{name} {s:.0f} s' for name, s in marks.items())})"
    )


if __name__ == "__main__":
    main()
