"""Ours and transformers + PEFT side by side, on random weights; prints JSON lines, and at the end Markdown.

    python benchmarks/side_by_side.py --model=small                           # two CPU cores
    python benchmarks/side_by_side.py --model=qwen2-audio --parts=step,extract,encoder
    python benchmarks/side_by_side.py --model=qwen2-audio --parts=generate
    python benchmarks/side_by_side.py --model=qwen2-audio --parts=load
    python benchmarks/side_by_side.py --model=qwen2-audio --parts=whole
    python benchmarks/side_by_side.py --model=qwen2-audio --parts=step --scaling=batch,length,rank
    python benchmarks/side_by_side.py --model=qwen2-audio --parts=step --sides=ours --profile

Each side runs in a process of its own, one behind the other, so that neither holds memory that the other
wants. With `--rounds=N` they take turns N times and the medians count, for a machine that others use too.
Where it is much used, `taskset -c 0 python benchmarks/side_by_side.py --clock=cpu ...` counts one core's
seconds of work in place of the wall's: several threads that wait for one another are slowed by others' work
far more than one. What fails, on either side, is told in a line of its own, and everything else goes on. A
program that is interrupted, by `timeout 150` for instance, has told and written what it measured before.

The floor of a piece of work is its arithmetic (matrix products with weights) over the rate of a large matrix
product, plus, where weights or a cache must be read in every step, those bytes over the rate of a large copy.
Both rates are the highest that either framework reached in the same call.

`--out=FILE` appends the lines to a file; `benchmarks/performance_page.py` makes tables and plots of such
files, also of several of which each holds a part or a side.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable

PARTS = ("step", "extract", "encoder", "generate", "load", "whole")
IN_TURNS = ("step", "extract", "encoder", "generate")
SCALES = {"batch": (1, 4, 16, 32), "length": (144, 256, 384), "rank": (8, 32, 128)}
SCALES_CPU = {"batch": (1, 4, 16), "length": (112, 144, 256), "rank": (8, 32, 64)}
ENDING_SECONDS = 8.0  # that an interrupted side has for its last words


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, with the defaults of the machine and the models for those that are not given."""
    from common import CPU_SIZES, SIZES

    parser = make_parser(SIZES)
    options = parser.parse_args(arguments)
    for name, known in (("model", SIZES), ("parts", PARTS), ("sides", ("ours", "peer")), ("scaling", SCALES)):
        chosen = [word for word in getattr(options, name).split(",") if word]
        unknown = [word for word in chosen if word not in known]
        if unknown:
            parser.error(f"--{name}: {', '.join(unknown)} is none of {', '.join(known)}")
        setattr(options, name, chosen)
    if options.clock == "cpu" and len(os.sched_getaffinity(0)) > 1:
        parser.error(
            "--clock=cpu: counts what threads spend on waiting for one another as well; start it with"
            " `taskset -c 0`"
        )
    cpu = all(model in (CPU_SIZES if has_gpu() else (*CPU_SIZES, "mini")) for model in options.model)
    for name, value in defaults(cpu, "mini" in options.model).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.rate_steps = 3 if cpu else 50
    options.settings = [(options.batch, options.length, options.rank)]
    for scale in options.scaling:
        for value in (SCALES_CPU if cpu else SCALES)[scale]:
            place = ("batch", "length", "rank").index(scale)
            setting = (*options.settings[0][:place], value, *options.settings[0][place + 1 :])
            options.settings += [setting] if setting not in options.settings else []
    return options


def defaults(cpu: bool, mini: bool) -> dict[str, object]:
    return {
        "rounds": 3 if cpu else 1,
        "batch": 4 if cpu else 16,
        "steps": (1 if mini else 3) if cpu else 10,
        "dtype": "float32" if cpu else "bfloat16",
        "clips": 16 if cpu else 128,
        "remat": "dots" if cpu else "dots,none",
        "queries": (2 if mini else 8) if cpu else 350,
        "new_tokens": 16 if cpu else 64,
        "answers": "40" if cpu else "320",
        "peer_queries": ("2" if mini else "8") if cpu else "16,64",
        "questions": 8 if cpu else 700,
    }


def make_parser(sizes: Iterable[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="qwen2-audio", help=f"out of {', '.join(sizes)}, with commas between"
    )
    parser.add_argument("--parts", default="step,extract,encoder,generate", help=f"out of {', '.join(PARTS)}")
    parser.add_argument("--sides", default="ours,peer")
    parser.add_argument(
        "--scaling", default="", help=f"of step (and extract), over some of {', '.join(SCALES)}"
    )
    parser.add_argument("--rounds", type=int, help="turns that the sides take; 3 on a CPU, else 1")
    parser.add_argument("--batch", type=int, help="prompts or clips at once")
    parser.add_argument("--length", type=int, default=144, help="tokens of a prompt")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, help="calls that one timing takes together")
    parser.add_argument("--dtype")
    parser.add_argument(
        "--quantize", default="none", choices=("none", "int8", "float8"), help="our model.quantize"
    )
    parser.add_argument(
        "--remat",
        help=(
            "what our step keeps, see train.remat, each with +unroll; several with commas between, the best"
            " counts"
        ),
    )
    parser.add_argument("--unroll", action="store_true", help="the whole run with train.unroll")
    parser.add_argument("--compile", action="store_true", help="the peer through torch.compile as well")
    parser.add_argument("--clips", type=int, help="of the encoder")
    parser.add_argument("--queries", type=int, help="of generate")
    parser.add_argument("--samples", type=int, default=5, help="answers to a query")
    parser.add_argument("--new_tokens", type=int, help="of an answer")
    parser.add_argument("--answers", help="ours in flight, several with commas between")
    parser.add_argument(
        "--adapters", action="store_true", help="ours in generate with adapters beside the base"
    )
    parser.add_argument("--peer_queries", help="of the peer at once, several with commas between")
    parser.add_argument("--cache_dtype", default="auto", help="of our keys and values in generate")
    parser.add_argument(
        "--attention",
        default="auto",
        help="of ours in generate: auto, fused, xla; several with commas between",
    )
    parser.add_argument(
        "--profile", action="store_true", help="the kernels of our step, encoder and decoding steps as well"
    )
    parser.add_argument(
        "--questions", type=int, help="harmful ones of the whole run, and as many benign ones"
    )
    parser.add_argument("--epochs", type=int, default=10, help="of the whole run")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: with `taskset -c 0`, on a busy machine"
    )
    parser.add_argument("--out", help="file to which the lines are appended")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser


def has_gpu() -> bool:
    """Told without JAX, which would take the card's memory."""
    there = shutil.which("nvidia-smi") is not None or os.path.exists("/dev/nvidiactl")
    return there and os.environ.get("JAX_PLATFORMS") != "cpu"


def main() -> None:
    from parts import interruptible

    options = parse()
    if options.side:
        one_side(options)
        return
    interruptible()
    lines: list[dict] = []
    interrupted = False
    try:
        for model in options.model:
            measure_model(lines, model, options)
    except KeyboardInterrupt:
        interrupted = True
    from performance_page import comparison_table

    print("\n" + comparison_table(lines), flush=True)
    if interrupted:
        also = f" and in {options.out}" if options.out else ""
        print(f"interrupted: what was measured before is above{also}", file=sys.stderr)
        sys.exit(1)


def one_side(options: argparse.Namespace) -> None:
    from common import SIZES, Clock

    Clock.choose(options.clock)
    values = SIZES[options.model[0]]
    if options.side == "ours":
        from ours import measure
    elif options.side == "peer":
        from peer import measure
    elif options.side == "ours-load":
        from load import ours_load as measure
    elif options.side == "peer-load":
        from load import peer_load as measure
    elif options.side == "write-folder":
        from load import write_folder as measure
    else:
        from whole_run import measure
    measure(values, options)


def measure_model(lines: list[dict], model: str, options: argparse.Namespace) -> None:
    """Appends all lines of one model, each with the model's name and the number of its turn."""
    in_turns = [name for name in options.parts if name in IN_TURNS]
    for turn in range(options.rounds if in_turns else 0):
        for side in options.sides:
            run_side(lines, model, side, turn, options.out, f"--parts={','.join(in_turns)}")
    if "load" in options.parts:
        with tempfile.TemporaryDirectory(prefix="rrs_jax_load_") as folder:
            from load import SIDES

            for side in ("write-folder", *(name for which in options.sides for name in SIDES[which])):
                run_side(lines, model, side, 0, options.out, "--parts=load", f"--folder={folder}")
    if "whole" in options.parts and "ours" in options.sides:
        run_side(lines, model, "whole", 0, options.out, "--parts=whole")


def run_side(lines: list[dict], model: str, side: str, turn: int, out: str | None, *more: str) -> None:
    """Runs one side in a process of its own and appends its lines as they come, to `lines` and to the file
    `out`. Where this program is interrupted, the side is told to end, and what it says on its way is taken as
    well."""
    from rrs_jax.distributed.machine import memory_share

    command = [
        sys.executable,
        __file__,
        *sys.argv[1:],
        f"--model={model}",
        f"--side={side}",
        *more,
    ]  # the last ones count
    path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    environment = os.environ | memory_share() | {"PYTHONPATH": path, "BENCHMARK_STARTED": str(time.time())}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    def tell(line: dict) -> None:
        lines.append({"model": model, **line})
        write_line(lines[-1], out)

    def tell_all() -> None:
        for written in process.stdout:
            if written.startswith("{"):
                tell({**json.loads(written), "turn": turn})
        process.wait()

    try:
        tell_all()
    except KeyboardInterrupt:
        process.terminate()
        patience = threading.Timer(ENDING_SECONDS, process.kill)
        patience.start()
        tell_all()
        patience.cancel()
        tell({"part": "process", "side": side, "failed": "interrupted"})
        raise
    if process.returncode:
        tell({"part": "process", "side": side, "failed": f"ended with status {process.returncode}"})


def write_line(line: dict, out: str | None) -> None:
    """Prints a line and appends it to the file at once, so that a measurement outlives whatever ends the
    program."""
    print(json.dumps(line), flush=True)
    if out:
        with open(out, "a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
