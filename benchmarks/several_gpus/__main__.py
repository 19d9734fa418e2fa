"""Measures runs on several devices of one host; JSON lines, appended to `--out` as they come.

    python benchmarks/several_gpus train --model=qwen2-audio --out=lines.jsonl
    python benchmarks/several_gpus links,train,extract,generate --model=qwen2-audio --out=lines.jsonl
    python benchmarks/several_gpus processes --out=lines.jsonl
    python benchmarks/several_gpus omni,default --model=qwen2-audio --out=lines.jsonl
    python benchmarks/several_gpus table lines.jsonl
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python benchmarks/several_gpus train --model=tiny

| part | tells |
|---|---|
| links | seconds of collectives by themselves |
| train | losses, seconds, memory, collectives of the step on every mesh; checkpoints go from mesh to mesh |
| extract, generate | representations and responses a second on all devices against one |
| omni | a training step of Omni-7B, its weights cut over all devices, in the memory of cards of 24 GB |
| processes | one process for each device against one with all; one of them killed; the run resumed |
| default | the stages of configs/qwen2_rrs.py on all devices against one |
| table | the tables of docs/hosts.md, from files of lines |

A part that fails is told in a line, and the next one begins.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path[0] = str(Path(__file__).parent.parent)
sys.path.insert(1, str(Path(__file__).parent.parent.parent))

PARTS = ("links", "train", "extract", "generate", "omni", "processes", "default")
STARTING = ("omni", "processes", "default")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", help=f"out of {', '.join(PARTS)}, with commas between; or table")
    parser.add_argument("files", nargs="*", type=Path, help="of table")
    parser.add_argument("--model", default="qwen2-audio")
    parser.add_argument("--dtype")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--length", type=int)
    parser.add_argument("--meshes", help="of train: names such as `data 2`, with / between")
    parser.add_argument("--queries", type=int, help="of generate on each device")
    parser.add_argument("--new_tokens", type=int)
    parser.add_argument("--questions", type=int, help="of default: harmful ones, and as many benign ones")
    parser.add_argument("--epochs", type=int, default=10, help="of default")
    parser.add_argument("--network", type=float, default=50.0, help="GB a second of a card to other hosts")
    parser.add_argument("--out", type=Path, help="file to which the lines are appended")
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.parts == "table":
        from several_gpus.table import tables

        print(tables(options.files, options.network))
        return
    chosen = options.parts.split(",")
    if unknown := [name for name in chosen if name not in PARTS]:
        parser.error(f"{', '.join(unknown)} is none of {', '.join(PARTS)}")
    os.environ.setdefault(
        "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "several_gpus_compiled")
    )
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    # Those that start processes come first: the others keep the devices' memory until this program ends.
    for name in sorted(chosen, key=lambda name: name not in STARTING):
        run(name, options)


def run(name: str, options: argparse.Namespace) -> None:
    """Runs one part. Those that start processes of their own leave the devices alone."""
    if name == "processes":
        from several_gpus.processes import processes

        processes(options)
        return
    if name in ("omni", "default"):
        from several_gpus.apart import measure

        measure(name, options)
        return
    from parts import failure_told

    from several_gpus import measure
    from several_gpus.workload import Lines, Work, is_small

    work = Work.of(options)
    lines = Lines(work, options.out)
    small = is_small(options.model)
    with failure_told(part=name):
        if name == "links":
            measure.links(lines)
        elif name == "train":
            measure.train(work, lines, options.meshes)
        elif name == "extract":
            measure.extract(work, lines)
        else:
            queries = options.queries or (2 if small else 64)
            measure.generate(work, lines, queries, options.new_tokens or (8 if small else 64))


if __name__ == "__main__":
    main()
