"""Writes the README's headline: its table of rates and its picture, from published results.

    python docs/headline.py                                     docs/results/small/paper.jsonl
    python docs/headline.py docs/results/MODEL/SWEEP.jsonl

The rates are means over the seeds of a run; the lines in the picture go from the lowest to the highest seed.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from rrs_jax.files import write_atomic
from rrs_jax.report.marks import Mark
from rrs_jax.report.plane import Point, draw_plane
from rrs_jax.report.plots import standalone
from rrs_jax.report.summaries import rate_name, recipe_of
from rrs_jax.report.table import markdown_rows, paste

ROOT = Path(__file__).parent.parent
README, PICTURE = ROOT / "README.md", ROOT / "docs" / "tradeoff.svg"
RESULTS = ROOT / "docs" / "results" / "small" / "paper.jsonl"
MAIN = "rrs"
TABLE = ("vanilla", "sft_full", "sft_shallow_mirror", "harc_without_penalty", MAIN)  # runs in the table
MARKS = {  # runs in the picture, with the marks of the report page
    "vanilla": Mark("vanilla", "circle", 0),
    "sft_full": Mark("sft", "circle", 1),
    "sft_shallow_mirror": Mark("sft", "square", 2),
    "sft_shallow_parallel": Mark("sft", "diamond", 3),
    "sft_deep": Mark("sft", "triangle", 4),
    "harc_without_penalty": Mark("rival", "square", 6),
    MAIN: Mark("rrs", "circle", 5),
}
NAMES = {
    "vanilla": "vanilla",
    "sft_full": "SFT-full",
    "sft_shallow_mirror": "SFT-shallow, Mirror",
    "sft_shallow_parallel": "SFT-shallow, Parallel",
    "sft_deep": "SFT-deep",
    "harc_without_penalty": "HARC, no penalty",
    MAIN: "RRS",
}
COLUMNS = {
    "harmful answered, audio-text": ("modes", "audio_text", "asr"),
    "text-only": ("modes", "text_only", "asr"),
    "audio-only": ("modes", "audio_only", "asr"),
    "rewrites refused": ("orr", "rate"),
    "borderline refused": ("borderline_orr", "rate"),
    "NSI": ("nsi", "average"),
}
Lines = Sequence[dict]


def read(path: Path) -> tuple[dict, list[dict]]:
    """Reads a published sweep: its first line, and one line for each evaluation of a run's own strategy."""
    head, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return head, [line for line in lines if line["evaluation"] == line["strategy"]]


def table(lines: Lines) -> str:
    """Returns the table of TABLE's runs as Markdown."""
    rows = [("percent", *COLUMNS)]
    for run in TABLE:
        seeds = _seeds(lines, run)
        cells = [_cell(name, seeds, path) for name, path in COLUMNS.items()]
        label = f"{NAMES[run]}{f', {len(seeds)} seeds' if len(seeds) > 1 else ''}"
        rows.append([f"**{cell}**" for cell in (label, *cells)] if run == MAIN else (label, *cells))
    return "\n".join(markdown_rows(rows)) + "\n"


def picture(head: dict, lines: Lines) -> str:
    """Returns the plane of all trained strategies as an SVG file."""
    points = []
    for run, mark in MARKS.items():
        x, y = (_spread(_seeds(lines, run), COLUMNS[name]) for name in list(COLUMNS)[0:4:3])
        points.append(Point(NAMES[run], mark, x, y, main=run == MAIN, named=True))
    rate = rate_name([head])
    labels = f"harmful questions answered ({rate}, audio-text), %", "harmless rewrites refused, %"
    return standalone(draw_plane(points, labels, size=(680, 400)))


def _cell(name: str, seeds: Lines, path: Sequence[str]) -> str:
    values = _values(seeds, path)
    return (f"{mean(values):+.1f}" if name == "NSI" else f"{mean(values):.1f}") if values else ""


def _seeds(lines: Lines, run: str) -> list[dict]:
    return [line for line in lines if recipe_of(line["run"]) == run]


def _spread(seeds: Lines, path: Sequence[str]) -> tuple[float, float, float]:
    values = _values(seeds, path)
    return min(values), mean(values), max(values)


def _values(seeds: Lines, path: Sequence[str]) -> list[float]:
    found = []
    for value in seeds:
        for key in path:
            value = (value or {}).get(key)
        found += [] if value is None else [value]
    return found


def main(arguments: Sequence[str]) -> None:
    head, lines = read(Path(arguments[0]) if arguments else RESULTS)
    paste(README, "headline", table(lines))
    write_atomic(PICTURE, picture(head, lines))
    print(f"{README.name}: table headline replaced; {PICTURE}: {PICTURE.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
