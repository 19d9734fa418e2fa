"""Tables and plots of the pages about speed from the lines of `side_by_side.py` and `train_step.py`.

    python benchmarks/performance_page.py docs/performance/h100.jsonl --name=h100

replaces what stands between `<!-- table:NAME -->` and `<!-- /table -->` in the page that has the marker, and
likewise for NAME-variants (each variant of each part), NAME-scaling (curves, drawn into
docs/performance/NAME-MODEL-batch.svg and likewise for length and rank) and NAME-profile (kernels). Of lines
that measure the same thing, those of the last call count. Several files are read as one.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from common import MATRIX_UNITS
from comparison import SETTING, compare, latest, medians, setting
from curves import LABELS, curve

from rrs_jax.files import read_jsonl, write_atomic
from rrs_jax.report.table import paste

PAGES = (Path("docs/performance.md"), Path("docs/research/performance.md"))
PLOTS = Path("docs/performance")
COLUMNS = (
    "model",
    "part",
    "setting",
    "floor",
    "ours",
    "peer",
    "ours / peer",
    "share of the floor",
    "peer's variant",
)
KERNELS = 10  # named in a profile


def comparison_table(lines: Sequence[dict]) -> str:
    """Markdown: rates in units a second, with the devices and versions below, and what failed. Curves are
    left out."""
    compared = [line for line in compare(lines) if not is_of_curve(line, lines)]
    rows = [
        (
            line["model"],
            line["part"],
            setting_of(line),
            *(rate(line, side) for side in ("floor", "ours", "peer")),
            f"{line['ratio']:.2f}" if "ratio" in line else "–",
            f"{line['share_of_floor']:.0%}" if "share_of_floor" in line else "–",
            line.get("peer_variant", "–"),
        )
        for line in compared
    ]
    notes = []
    for line in compared:
        if "device" in line:
            versions = "; ".join(line["versions"].values())
            note = (
                f"{line['model']}: {line['device']}, {versions}; matrix product"
                f" {line['flops_a_second'] / 1e12:.3g} TFLOP/s, copy {line['bytes_a_second'] / 1e9:.3g} GB/s."
            )
            notes += [note] if note not in notes else []
    notes += list(dict.fromkeys(map(failure, failures(lines))))
    return markdown(COLUMNS, rows, "lllrrrrrl") + "\n" + "  \n".join(notes) + "\n"


def failures(lines: Sequence[dict]) -> list[dict]:
    """Lines of what failed and was not measured by a later call; a process that ended, where no later one of
    its side began."""
    found = []
    for place, line in enumerate(lines):
        if "failed" not in line:
            continue
        names = (
            ("model", "side") if line["part"] == "process" else ("model", "part", "side", "variant", *SETTING)
        )
        same = {name: line[name] for name in names if line.get(name) is not None}
        later = [
            other for other in lines[place:] if all(other.get(name) == value for name, value in same.items())
        ]
        if not any("seconds" in other for other in later):
            found.append(line)
    return found


def failure(line: dict) -> str:
    where = [line["model"], line["part"], line["side"], line.get("variant"), setting_of(line)]
    return f"Failed: {', '.join(filter(None, where))}: {line['failed'].rstrip('.')}."


def is_of_curve(line: dict, lines: Sequence[dict]) -> bool:
    """True where a step was measured for a curve alone: the first setting of its model is the one of the
    table."""
    first = next(
        (other for other in lines if other["model"] == line["model"] and other["part"] == "step"), None
    )
    return line["part"] == "step" and any(line.get(name) != first.get(name) for name in SETTING)


def variants_table(lines: Sequence[dict]) -> str:
    """Every variant of every part, and the memory of those that took more than what the process had done
    before."""
    timed = [line for line in latest(lines) if not is_of_curve(line, lines)]
    rows, peaks = [], set()
    for key in dict.fromkeys((line["model"], *setting(line)) for line in timed):
        same = [line for line in timed if (line["model"], *setting(line)) == key]
        for side in ("ours", "peer"):
            for line in medians(line for line in same if line["side"] == side):
                named = line | {
                    f"{side}_seconds": line["seconds"],
                    f"{side}_a_second": line["units"] / line["seconds"],
                }
                peak = (line["model"], side, line.get("peak_gib"))
                told = f"{peak[-1]:.1f}" if peak[-1] and peak not in peaks else "–"
                peaks.add(peak)
                rows.append(
                    (line["model"], line["part"], side, line["variant"], rate(named, side), told, spent(line))
                )
    return markdown(("model", "part", "side", "variant", "rate", "peak GiB", "of which"), rows, "llllrrl")


def spent(line: dict) -> str:
    """Parts that the seconds of a line consist of, where it tells."""
    if "stage_seconds" in line:
        stages = [f"{name} {seconds:.1f} s" for name, seconds in line["stage_seconds"].items()]
        compiling = sum(
            line["compile_seconds"][name] for name in line["stage_seconds"] if name in line["compile_seconds"]
        )
        encoding = f"in them encoding {line['encoding_seconds']:.1f} s and compilation {compiling:.1f} s"
        return f"{', '.join(stages)}; {encoding}; {line['samples_a_second']:.0f} samples/s"
    if "first_step_seconds" in line:
        names = {"start_seconds": "start", "load_seconds": "weights", "first_step_seconds": "first step"}
        return ", ".join(f"{word} {line[name]:.1f} s" for name, word in names.items())
    if "decode_steps" in line:
        step = 1000 * line["decode_seconds"] / line["decode_steps"]
        return f"prefill {line['prefill_seconds']:.2f} s, {line['decode_steps']} steps of {step:.1f} ms"
    return ""


def scaling(lines: Sequence[dict], folder: Path, name: str) -> tuple[str, list[Path]]:
    """A table and a plot for each scale along which a model's step was measured at three settings or more,
    and the files."""
    steps = [
        line
        for line in compare(lines)
        if line["part"] == "step" and {"ours_seconds", "peer_seconds"} & line.keys()
    ]
    text, written = [], []
    for scale in SETTING:
        for model in dict.fromkeys(line["model"] for line in steps):
            of_model = [line for line in steps if line["model"] == model]
            others = [other for other in SETTING if other != scale]
            points = [line for line in of_model if all(line[other] == of_model[0][other] for other in others)]
            points.sort(key=lambda line: line[scale])
            if len(points) < 3:
                continue
            fixed = setting_of({other: points[0][other] for other in others})
            file = folder / f"{name}-{model}-{scale}.svg"
            write_atomic(file, curve(points, scale, f"{model}, {fixed}"))
            written.append(file)
            rows = [
                (
                    str(line[scale]),
                    *(rate(line, side) for side in ("floor", "ours", "peer")),
                    f"{line['ratio']:.2f}" if "ratio" in line else "–",
                    f"{line['share_of_floor']:.0%}" if "share_of_floor" in line else "–",
                )
                for line in points
            ]
            table = markdown(
                (LABELS[scale], "floor", "ours", "peer", "ours / peer", "share of the floor"), rows, "rrrrrr"
            )
            picture = f"![{LABELS[scale]}: samples a second of {model}](performance/{file.name})"
            text.append(f"{model}, {fixed}:\n\n{table}\n{picture}\n")
    return "\n".join(text), written


def profiles(lines: Sequence[dict]) -> str:
    """The kernels of the last profile of each piece of work: a step's variant, or a chunk of decoding
    steps."""
    found = {}
    for line in lines:
        if line.get("top"):
            found[line["model"], line["part"], line.get("variant"), line.get("answer_slots")] = line
    return "\n".join(map(profile, found.values()))


def profile(line: dict) -> str:
    """Kernels with their share of the whole, and the share of the matrix units' peak that the whole
    reached."""
    rest, launches = line["kernel_milliseconds"], line["launches"]
    whole = line.get("milliseconds") or rest
    rows = []
    for milliseconds, count, kernel in top_kernels(line):
        rows.append((f"`{kernel}`", f"{milliseconds:.2f}", f"{count:,}", f"{milliseconds / whole:.1%}"))
        rest, launches = rest - milliseconds, launches - count
    rows.append(("all others", f"{rest:.2f}", f"{launches:,}", f"{rest / whole:.1%}"))
    between = whole - line["kernel_milliseconds"]
    if "milliseconds" in line:
        # Kernels run beside one another where this is negative.
        rows.append(("between kernels", f"{between:.2f}", "", f"{between / whole:.1%}"))
    what = {"step": "step", "encoder": "pass over all clips", "generate": "chunk of decoding steps"}[
        line["part"]
    ]
    where = [line["model"], line.get("variant"), setting_of(line)]
    where += [f"{line['answer_slots']} slots an answer"] if "answer_slots" in line else []
    where += [f"{line['steps']} steps of {line['rows']} rows"] if "steps" in line else []
    said = f"A {what} ({', '.join(filter(None, where))})"
    said += f": {whole:.1f} ms" if "milliseconds" in line else f": {whole:.1f} ms of kernels"
    peak = next((peak for name, peak in MATRIX_UNITS.items() if name in line.get("device", "")), None)
    if "floor_flops" in line and "milliseconds" in line:
        reached = line["floor_flops"] / whole * 1000
        said += f", {reached / 1e12:,.3g} TFLOP/s in products with weights"
        said += f", **{reached / peak:.0%} of the matrix units' {peak / 1e12:g} TFLOP/s**" if peak else ""
    return f"{said}.\n\n" + markdown(("kernel", "ms", "launches", "share"), rows, "lrrr")


def top_kernels(line: dict) -> Iterator[tuple[float, int, str]]:
    for text in line["top"][:KERNELS]:
        milliseconds, count, kernel = re.fullmatch(r"([\d.]+) ms (\d+)x (.*)", text).groups()
        yield float(milliseconds), int(count), kernel


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> str:
    """sides: l or r of each column."""
    ruler = ["---" if side == "l" else "---:" for side in sides]
    return "".join("| " + " | ".join(row) + " |\n" for row in (columns, ruler, *rows))


def setting_of(line: dict) -> str:
    words = {"batch": "{} at once", "length": "{} tokens", "rank": "rank {}"}
    return ", ".join(text.format(line[name]) for name, text in words.items() if line.get(name) is not None)


def rate(line: dict, side: str) -> str:
    """A second, and how long one call takes."""
    if f"{side}_seconds" not in line:
        return "–"
    seconds = line[f"{side}_seconds"]
    time = f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
    if line["unit"] == "runs":
        return time
    each = line[f"{side}_a_second"]
    return (
        f"{each:,.0f} {line['unit']}/s ({time})" if each >= 100 else f"{each:.3g} {line['unit']}/s ({time})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help="JSON lines of side_by_side.py and train_step.py")
    parser.add_argument("--name", required=True, help="of the tables in the page and of the plots")
    arguments = parser.parse_args()
    lines = [line for file in arguments.files for line in read_jsonl(file)]
    curves, drawn = scaling(lines, PLOTS, arguments.name)
    tables = {
        "": comparison_table(lines),
        "-variants": variants_table(lines),
        "-scaling": curves,
        "-profile": profiles(lines),
    }
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for ending, table in tables.items():
            if f"<!-- table:{arguments.name}{ending} -->" in text:
                paste(page, arguments.name + ending, table or "Not measured yet.\n")
                print(f"{page}: {arguments.name}{ending} replaced")
    for file in drawn:
        print(f"{file}: written")


if __name__ == "__main__":
    main()
