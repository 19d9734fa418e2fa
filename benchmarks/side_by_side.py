"""Ours and transformers + PEFT side by side, on random weights; prints JSON lines, and at the end Markdown.

    python benchmarks/side_by_side.py --model=small                           # two CPU cores
    python benchmarks/side_by_side.py --model=qwen2-audio --parts=step,extract,encoder
    python benchmarks/side_by_side.py --model=qwen2-audio --parts=generate
    python benchmarks/side_by_side.py --model=qwen2-audio --parts=load
    python benchmarks/side_by_side.py --model=qwen2-audio --parts=whole
    python benchmarks/side_by_side.py --model=qwen2-audio --parts=step --scaling=batch,length,rank

Each side runs in a process of its own, one behind the other, so that neither holds memory that the other wants. With
`--rounds=N` they take turns N times and the medians count, for a machine that others use too. Where it is much used,
`taskset -c 0 python benchmarks/side_by_side.py --clock=cpu ...` counts one core's seconds of work in place of the wall's:
several threads that wait for one another are slowed by others' work far more than one. What fails, on either
side, is told in a line of its own, and everything else goes on.

The floor of a piece of work is its arithmetic (matrix products with weights) over the rate of a large matrix product,
plus, where weights or a cache must be read in every step, those bytes over the rate of a large copy. Both rates are the
highest that either framework reached in the same call.

`--out=FILE` appends the lines to a file; `benchmarks/performance_page.py` makes tables and plots of such files.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

PARTS = ("step", "extract", "encoder", "generate", "load", "whole")
IN_TURNS = ("step", "extract", "encoder", "generate")
SCALES = {"batch": (1, 4, 16, 32), "length": (96, 144, 256, 512), "rank": (8, 32, 128)}
SCALES_CPU = {"batch": (1, 4, 16), "length": (112, 144, 256), "rank": (8, 32)}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    from common import CPU_SIZES, SIZES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2-audio", help=f"out of {', '.join(SIZES)}, with commas between")
    parser.add_argument("--parts", default="step,extract,encoder,generate", help=f"out of {', '.join(PARTS)}")
    parser.add_argument("--sides", default="ours,peer")
    parser.add_argument("--scaling", default="", help=f"of step and extract, over some of {', '.join(SCALES)}")
    parser.add_argument("--rounds", type=int, help="turns that the sides take; 3 on a CPU, else 1")
    parser.add_argument("--batch", type=int, help="prompts or clips at once")
    parser.add_argument("--length", type=int, default=144, help="tokens of a prompt")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, help="calls that one timing takes together")
    parser.add_argument("--dtype")
    parser.add_argument("--quantize", default="none", choices=("none", "int8", "float8"), help="our model.quantize")
    parser.add_argument("--remat", help="what our step keeps, see train.remat; several with commas between, the best counts")
    parser.add_argument("--compile", action="store_true", help="the peer through torch.compile as well")
    parser.add_argument("--clips", type=int, help="of the encoder")
    parser.add_argument("--queries", type=int, help="of generate")
    parser.add_argument("--samples", type=int, default=5, help="answers to a query")
    parser.add_argument("--new_tokens", type=int, help="of an answer")
    parser.add_argument("--answers", help="ours in flight, several with commas between")
    parser.add_argument("--adapters", action="store_true", help="ours in generate with adapters beside the base")
    parser.add_argument("--peer_queries", help="of the peer at once, several with commas between")
    parser.add_argument("--cache_dtype", default="auto", help="of our keys and values in generate")
    parser.add_argument("--attention", default="auto", help="of ours in generate: auto, fused, xla; several with commas between")
    parser.add_argument("--profile", action="store_true", help="the kernels of our decoding steps in generate as well")
    parser.add_argument("--questions", type=int, help="harmful ones of the whole run, and as many benign ones")
    parser.add_argument("--epochs", type=int, default=10, help="of the whole run")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: with `taskset -c 0`, on a busy machine")
    parser.add_argument("--out", help="file to which the lines are appended")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name, known in (("model", SIZES), ("parts", PARTS), ("sides", ("ours", "peer")), ("scaling", SCALES)):
        chosen = [word for word in getattr(options, name).split(",") if word]
        unknown = [word for word in chosen if word not in known]
        if unknown:
            parser.error(f"--{name}: {', '.join(unknown)} is none of {', '.join(known)}")
        setattr(options, name, chosen)
    if options.clock == "cpu" and len(os.sched_getaffinity(0)) > 1:
        parser.error("--clock=cpu: counts what threads spend on waiting for one another as well; start it with `taskset -c 0`")
    cpu = all(model in CPU_SIZES for model in options.model)
    mini = "mini" in options.model
    defaults = {
        "rounds": 3 if cpu else 1, "batch": 4 if cpu else 16, "steps": (1 if mini else 3) if cpu else 10,
        "dtype": "float32" if cpu else "bfloat16", "clips": 16 if cpu else 128,
        "remat": "dots" if cpu else "dots,none", "queries": (2 if mini else 8) if cpu else 350,
        "new_tokens": 16 if cpu else 64, "answers": "40" if cpu else "320",
        "peer_queries": ("2" if mini else "8") if cpu else "16,64", "questions": 8 if cpu else 700,
    }  # fmt: skip
    for name, value in defaults.items():
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


def main() -> None:
    options = parse()
    if options.side:
        one_side(options)
        return
    lines: list[dict] = []
    for model in options.model:
        lines += compare(measure_model(model, options), model, options.out)
    from performance_page import comparison_table

    print("\n" + comparison_table(lines))


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


def measure_model(model: str, options: argparse.Namespace) -> list[dict]:
    """All lines of one model, each with the model's name and the number of its turn."""
    lines = []
    in_turns = [name for name in options.parts if name in IN_TURNS]
    for turn in range(options.rounds if in_turns else 0):
        for side in options.sides:
            lines += side_lines(model, side, turn, options.out, f"--parts={','.join(in_turns)}")
    if "load" in options.parts:
        with tempfile.TemporaryDirectory(prefix="rrs_jax_load_") as folder:
            from load import SIDES

            for side in ("write-folder", *(name for which in options.sides for name in SIDES[which])):
                lines += side_lines(model, side, 0, options.out, "--parts=load", f"--folder={folder}")
    if "whole" in options.parts:
        lines += side_lines(model, "whole", 0, options.out, "--parts=whole")
    return lines


def tell(line: dict, out: str | None) -> None:
    """At once, so that a measurement outlives whatever ends the program."""
    print(json.dumps(line), flush=True)
    if out:
        with open(out, "a") as file:
            file.write(json.dumps(line) + "\n")


def side_lines(model: str, side: str, turn: int, out: str | None, *more: str) -> list[dict]:
    """Runs one side in a process of its own and passes its lines on as they come."""
    given = [word for word in sys.argv[1:] if not word.startswith(("--parts", "--model", "--out", "--side=", "--folder"))]
    command = [sys.executable, __file__, *given, f"--model={model}", f"--side={side}", *more]
    path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "BENCHMARK_STARTED": str(time.time())}
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for written in process.stdout:
            if written.startswith("{"):
                lines.append({"model": model, **json.loads(written), "turn": turn})
                tell(lines[-1], out)
    if process.returncode:
        lines.append({"model": model, "part": "process", "side": side, "failed": f"ended with status {process.returncode}"})
        tell(lines[-1], out)
    return lines


def compare(lines: list[dict], model: str, out: str | None = None) -> list[dict]:
    """The lines, and one for each part and setting: floor, both sides' medians over the turns, ratio, share."""
    devices = [line for line in lines if line["part"] == "device"]
    rates = {name: max((line[name] for line in devices), default=0) for name in ("flops_a_second", "bytes_a_second")}
    versions = {line["side"]: line["version"] for line in devices}
    found = []
    timed = [line for line in lines if "seconds" in line and "units" in line]
    for key in dict.fromkeys(setting(line) for line in timed):
        same = [line for line in timed if setting(line) == key]
        ours, peer = (best(line for line in same if line["side"] == side) for side in ("ours", "peer"))
        line = {"model": model, "side": "comparison", **dict(zip(("part", "batch", "length", "rank"), key, strict=True))}
        if ours:
            units = ours["units"]
            line |= {"unit": ours["unit"], "ours_seconds": ours["seconds"], "ours_variant": ours["variant"],
                     "ours_a_second": units / ours["seconds"], "ours_peak_gib": ours.get("peak_gib")}  # fmt: skip
            floor = floor_seconds(ours, rates, lines)
            if floor:
                line |= {"floor_seconds": floor, "floor_a_second": units / floor, "share_of_floor": floor / ours["seconds"]}
        if peer:
            line |= {"unit": peer["unit"], "peer_seconds": peer["seconds"], "peer_variant": peer["variant"],
                     "peer_a_second": peer["units"] / peer["seconds"], "peer_peak_gib": peer.get("peak_gib")}  # fmt: skip
        if ours and peer:
            line["ratio"] = line["ours_a_second"] / line["peer_a_second"]
        if devices:
            line |= {"device": devices[0]["device"], "versions": versions, **rates}
        found.append(line)
        tell(line, out)
    return lines + found


def floor_seconds(line: dict, rates: dict, lines: list[dict]) -> float:
    """0 where the rate was not measured."""
    disk = next((line["read_bytes_a_second"] for line in lines if line.get("detail") == "folder"), 0)
    seconds = 0.0
    for work, rate in (
        ("floor_flops", rates["flops_a_second"]), ("floor_bytes", rates["bytes_a_second"]), ("disk_bytes", disk),
    ):  # fmt: skip
        seconds += line[work] / rate if rate and work in line else 0.0
    return seconds


def setting(line: dict) -> tuple:
    return line["part"], line.get("batch") if line["part"] != "generate" else None, line.get("length"), line.get("rank")


def best(lines) -> dict | None:
    """The variant with the highest rate, by the median of its turns."""
    variants: dict[str, list[dict]] = {}
    for line in lines:
        variants.setdefault(line["variant"], []).append(line)
    medians = [group[0] | {"seconds": statistics.median(line["seconds"] for line in group)} for group in variants.values()]
    return max(medians, key=lambda line: line["units"] / line["seconds"], default=None)


if __name__ == "__main__":
    main()
