"""Tables and plots of docs/performance.md from the lines of `side_by_side.py`.

    python benchmarks/performance_page.py docs/performance/h100.jsonl --name=h100

replaces the table between `<!-- table:NAME -->` and `<!-- /table -->` and, where the lines have scaling curves, writes
docs/performance/NAME-batch.svg, NAME-length.svg and NAME-rank.svg (for which matplotlib must be installed). Of lines that
measure the same thing the last ones count.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rrs_jax.files import read_jsonl
from rrs_jax.report.table import paste

PAGE = Path("docs/performance.md")
COLUMNS = ("model", "part", "setting", "floor", "ours", "peer", "ours / peer", "share of the floor", "peer's variant")
SETTING = ("batch", "length", "rank")
LABELS = {"batch": "samples a step", "length": "tokens a sample", "rank": "rank of the adapters"}


def comparison_table(lines: Sequence[dict]) -> str:
    """Markdown: rates in units a second, with the devices and versions below, and what failed."""
    rows = [COLUMNS, ("---",) * 3 + ("---:",) * 5 + ("---",)]
    compared = [with_peer_of_whole_run(line, lines) for line in latest(lines)]
    for line in compared:
        rows.append((
            line["model"], line["part"], setting_of(line), *(rate(line, side) for side in ("floor", "ours", "peer")),
            f"{line['ratio']:.2f}" if "ratio" in line else "–",
            f"{line['share_of_floor']:.0%}" if "share_of_floor" in line else "–", line.get("peer_variant", "–"),
        ))  # fmt: skip
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    notes = []
    for line in compared:
        if "device" in line:
            versions = "; ".join(line["versions"].values())
            note = (
                f"{line['model']}: {line['device']}, {versions}; matrix product {line['flops_a_second'] / 1e12:.3g} TFLOP/s, "
                f"copy {line['bytes_a_second'] / 1e9:.3g} GB/s."
            )
            notes += [note] if note not in notes else []
    notes += list(dict.fromkeys(
        f"Failed: {line['model']}, {line['part']}, {line['side']}{', ' + line['variant'] if 'variant' in line else ''}: "
        f"{line['failed']}."
        for line in lines if "failed" in line
    ))  # fmt: skip
    return table + "\n\n" + "  \n".join(notes) + "\n"


def latest(lines: Sequence[dict]) -> list[dict]:
    """The last comparison of each model, part and setting, in the order of the first."""
    found: dict[tuple, dict] = {}
    for line in lines:
        if line.get("side") == "comparison":
            found[line["model"], line["part"], *(line.get(name) for name in SETTING)] = line
    return list(found.values())


def with_peer_of_whole_run(line: dict, lines: Sequence[dict]) -> dict:
    """The whole run's line with what the peer would take by its rates of encoder, extraction and step, where they were
    measured too; a shorter prompt takes less time in proportion. Saving and compilation, which only we have, are free."""
    if line["part"] != "whole" or "peer_seconds" in line:
        return line
    of_model = [other for other in lines if other["model"] == line["model"]]
    run = next(other for other in reversed(of_model) if "sample_passes" in other)
    parts = {other["part"]: other for other in reversed(latest(of_model)) if "peer_seconds" in other}
    if not {"encoder", "extract", "step"} <= parts.keys():
        return line
    clips = 2 * run["extractions"] / 3
    shorter = {name: run["mean_tokens"] / parts[name]["length"] for name in ("extract", "step")}
    seconds = clips / parts["encoder"]["peer_a_second"]
    seconds += run["extractions"] * shorter["extract"] / parts["extract"]["peer_a_second"]
    seconds += run["sample_passes"] * shorter["step"] / parts["step"]["peer_a_second"]
    variant = "by its rates of encoder, extraction and step"
    return line | {"peer_seconds": seconds, "peer_variant": variant, "ratio": seconds / line["ours_seconds"]}


def setting_of(line: dict) -> str:
    words = {"batch": "{} at once", "length": "{} tokens", "rank": "rank {}"}
    return ", ".join(text.format(line[name]) for name, text in words.items() if line.get(name) is not None)


def rate(line: dict, side: str) -> str:
    """A second, and how long one call takes."""
    if f"{side}_seconds" not in line:
        return "–"
    seconds = line[f"{side}_seconds"]
    time = f"{seconds:.2f} s" if seconds >= 2 else f"{1000 * seconds:.3g} ms"
    if line["unit"] == "runs":
        return time
    each = line[f"{side}_a_second"]
    return f"{each:,.0f} {line['unit']}/s ({time})" if each >= 100 else f"{each:.3g} {line['unit']}/s ({time})"


def draw(lines: Sequence[dict], folder: Path, name: str) -> list[Path]:
    """A curve of floor, ours and peer over each scale along which a step was measured at three settings or more."""
    steps = [line for line in latest(lines) if line["part"] == "step" and "ours_seconds" in line]
    written = []
    for scale in SETTING:
        others = [other for other in SETTING if other != scale]
        groups: dict[tuple, list[dict]] = {}
        for line in steps:
            groups.setdefault((line["model"], *(line[other] for other in others)), []).append(line)
        curves = {key: sorted(group, key=lambda line: line[scale]) for key, group in groups.items() if len(group) > 2}
        if curves:
            written.append(plot(curves, scale, folder / f"{name}-{scale}.svg"))
    return written


def plot(curves: dict[tuple, list[dict]], scale: str, file: Path) -> Path:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = file.name  # the same file from the same lines
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(5 * len(curves), 3.6), squeeze=False)
    for axis, (key, lines) in zip(axes[0], curves.items(), strict=True):
        for side, style in (("floor", "k--"), ("ours", "o-"), ("peer", "s-")):
            there = [line for line in lines if f"{side}_a_second" in line]
            axis.plot([line[scale] for line in there], [line[f"{side}_a_second"] for line in there], style, label=side)
        axis.set(title=key[0], xlabel=LABELS[scale], ylabel="samples a second", xscale="log", yscale="log")
        axis.set_xticks([line[scale] for line in lines], [str(line[scale]) for line in lines])
        axis.minorticks_off()
        axis.legend()
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="JSON lines of side_by_side.py")
    parser.add_argument("--name", required=True, help="of the table in the page and of the plots")
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    lines = [line for file in arguments.files for line in read_jsonl(file)]
    paste(arguments.page, arguments.name, comparison_table(lines))
    print(f"{arguments.page}: table {arguments.name} replaced")
    for file in draw(lines, arguments.page.parent / "performance", arguments.name):
        print(f"{file}: written")


if __name__ == "__main__":
    main()
