"""Shows what is in a data set: counts, lengths, voices and examples on the terminal, and a page to listen to
it.

    python -m rrs_jax.data.show DATASET

Writes DATASET/index.html, which opens from disk (clips are played from their files beside it, and have
pictures of what an audio encoder sees of them), DATASET/table1.md (the paper's table 1) and
DATASET/figure3.svg (its figure 3), both from the manifests alone.
"""

import argparse
import base64
import html
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from urllib.parse import quote

from rrs_jax.config.kinds import integer, with_home
from rrs_jax.data.manifest import audio_paths, load_manifest
from rrs_jax.data.pack import find_manifests
from rrs_jax.data.questions import changed_words
from rrs_jax.data.spectrogram import log_mel, picture
from rrs_jax.data.waveforms import read_waveform
from rrs_jax.errors import UserError, exit_status
from rrs_jax.files import json_for_html, write_atomic
from rrs_jax.progress import Progress
from rrs_jax.web.page import fill, how_to_open
from rrs_jax.web.text import markdown_cell

Sets = dict[str, list[dict]]
RESPONSE_LETTERS = 60  # of an answer in table 1
COLOURS = {"harmful": "#c0504d", "benign": "#4f81bd", "borderline": "#9bbb59", "everyday": "#8064a2"}
WIDTH, BAR = 480, 22  # of figure 3 and of a bar in it
PAGE = Path(__file__).parent / "page.html"
PICTURES = 100  # clips of each set that get one, of about 4 kB


def show(dataset: str | Path, pictures: int = PICTURES) -> str:
    """Writes page, table and figure beside the manifests and returns the text for the terminal.

    pictures: how many clips of each set, the first ones, get a picture of their log-mel features.
    Raises UserError where the data set holds no manifest.
    """
    manifests = find_manifests(dataset)
    sets = {name: load_manifest(manifest) for name, manifest in manifests.items()}
    folder = Path(dataset) if Path(dataset).is_dir() else Path(dataset).parent
    table, figure = table_1(sets), figure_3(sets)
    write_atomic(folder / "table1.md", table)
    write_atomic(folder / "figure3.svg", figure)
    write_atomic(folder / "index.html", page(folder, manifests, sets, figure, pictures))
    parts = [summary(name, rows) for name, rows in sets.items()]
    return "\n\n".join([*parts, table.strip(), how_to_open(folder / "index.html")])


def summary(name: str, rows: list[dict]) -> str:
    """Returns counts by label and category, lengths, voices and edit distances as lines of text."""
    labels = Counter(row["label"] for row in rows)
    lines = [f"{name}: " + ", ".join(f"{count} {label}" for label, count in sorted(labels.items()))]
    categories = defaultdict(Counter)
    for row in rows:
        categories[row["category"]][row["label"]] += 1
    width = max(map(len, categories))
    lines += [
        f"  {category:{width}}  " + ", ".join(f"{n} {label}" for label, n in sorted(counts.items()))
        for category, counts in sorted(categories.items())
    ]
    if seconds := sorted(row["seconds"] for row in rows if row["seconds"]):
        lines.append(
            f"  seconds: {seconds[0]:.1f} to {seconds[-1]:.1f}, median {median(seconds):.1f}, "
            f"{sum(seconds) / 3600:.2f} h in all"
        )
    voices = Counter(row["voice"] or "unknown" for row in rows)
    lines.append("  voices: " + ", ".join(f"{voice} {count}" for voice, count in sorted(voices.items())))
    if distances := Counter(edit_distances(rows).values()):
        lines.append(
            "  words changed in a pair: "
            + ", ".join(f"{words}: {n} pairs" for words, n in sorted(distances.items()))
        )
    return "\n".join(lines)


def edit_distances(rows: list[dict]) -> dict[str, int]:
    """Returns the number of changed words of every pair with a harmful and a benign question."""
    pairs = defaultdict(dict)
    for row in rows:
        pairs[row["pair_id"]][row["label"]] = row["question"]
    return {
        name: changed_words(pair["harmful"], pair["benign"])
        for name, pair in pairs.items()
        if {"harmful", "benign"} <= set(pair)
    }


def table_1(sets: Sets) -> str:
    """Returns the paper's table 1 as Markdown: the first harmful and benign example of every set."""
    lines = ["| Dataset | Type | Question | Response |", "|---|---|---|---|"]
    for name, rows in sets.items():
        for label in sorted({row["label"] for row in rows}, key=list(COLOURS).index):
            row = next(row for row in rows if row["label"] == label)
            answer = row["response"] or "None"
            answer = (
                answer
                if len(answer) <= RESPONSE_LETTERS
                else answer[:RESPONSE_LETTERS].rsplit(" ", 1)[0] + " ..."
            )
            cells = (name.capitalize(), label.capitalize(), row["question"], answer)
            lines.append("| " + " | ".join(map(markdown_cell, cells)) + " |")
    return "\n".join(lines) + "\n"


def figure_3(sets: Sets) -> str:
    """Returns the paper's figure 3 as SVG: of each set a bar of harmful and one of benign questions, to
    scale.

    Answers and pairs are counted where the rows have them.
    """
    widest = max(Counter(row["label"] for row in rows).most_common(1)[0][1] for rows in sets.values())
    parts, y = [], 0
    for name, rows in sets.items():
        y += 26
        parts.append(f'<text x="0" y="{y}" font-weight="bold">{html.escape(name.capitalize())}</text>')
        for label in (label for label in COLOURS if any(row["label"] == label for row in rows)):
            parts.append(_bar(name, label, [row for row in rows if row["label"] == label], widest, y + 8))
            y += BAR + 5
        distances = list(edit_distances(rows).values())
        if distances:
            small = sum(1 <= distance <= 3 for distance in distances)
            said = f"{len(distances)} pairs, {small} of them one to three words apart"
            y += 20
            parts.append(f'<text class="soft" x="0" y="{y + 2}" fill-opacity="0.7">{said}</text>')
        y += 14
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}"'
        ' fill="currentColor" font-family="system-ui, sans-serif" font-size="14">\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _bar(name: str, label: str, members: list[dict], widest: int, top: float) -> str:
    """Returns one bar of figure 3 with what it counts; `widest` questions take half of the width."""
    wide = len(members) * WIDTH / 2 / widest
    answered = sum(bool(row["response"]) for row in members)
    said = f"{len(members)} {label}" + (f", {answered} with an answer" if answered else ", no answers")
    return (
        f'<rect class="{label}" x="0" y="{top}" width="{wide:.1f}" height="{BAR}" fill="{COLOURS[label]}"'
        f' data-set="{html.escape(name)}" data-label="{label}" data-count="{len(members)}"/>'
        f'<text x="{wide + 8:.1f}" y="{top + BAR - 6}">{said}</text>'
    )


def page(folder: Path, manifests: dict[str, Path], sets: Sets, figure: str, pictures: int = PICTURES) -> str:
    """Returns one HTML page that needs nothing from elsewhere; clips by paths relative to it."""
    rows = []
    for name, members in sets.items():
        distances = edit_distances(members)
        paths = audio_paths(manifests[name], members)
        pictured = _pictures(name, paths[:pictures]) + [{}] * len(paths[pictures:])
        for row, path, shown in zip(members, paths, pictured, strict=True):
            rows.append(
                {
                    "set": name,
                    "id": row["id"],
                    "pair": row["pair_id"],
                    "label": row["label"],
                    "category": row["category"],
                    "question": row["question"],
                    "response": row["response"],
                    "voice": row["voice"],
                    "seconds": row["seconds"],
                    "words": distances.get(row["pair_id"]),
                    "audio": _link(path, folder),
                }
                | shown
            )
    name = folder.resolve().name
    return fill(
        PAGE,
        TITLE=html.escape(f"{name} · data set · RRS-JAX"),
        HEAD=_head(name, sets),
        FACTS=html.escape("\n\n".join(summary(name, members) for name, members in sets.items())),
        FIGURE=figure,
        DATA=json_for_html(rows),
    )


def _head(name: str, sets: Sets) -> str:
    """Returns project, the data set's name, and its size in a line of facts."""
    rows = [row for members in sets.values() for row in members]
    minutes = sum(row["seconds"] or 0 for row in rows) / 60
    voices = {row["voice"] for row in rows} - {None}
    facts = [
        ", ".join(sets),
        f"{len(rows)} questions",
        f"{minutes:.0f} minutes of speech" if minutes >= 1 else f"{60 * minutes:.0f} seconds of speech",
        f"{len(voices)} voice{'s' if len(voices) != 1 else ''}",
    ]
    shown = "".join(f"<span>{html.escape(fact)}</span>" for fact in facts)
    return (
        "<p class='project'><b>RRS-JAX</b> · data set</p>"
        f"<h1>{html.escape(name)}</h1><p class='facts'>{shown}</p>"
    )


def _pictures(name: str, paths: Sequence[Path]) -> list[dict]:
    """Returns of each clip its `picture`, PNG in base64, or under `fault` why it cannot be read."""
    shown = []
    with Progress(len(paths), f"drawing the clips of {name}", unit="clips") as progress:
        for path in paths:
            try:
                drawn = picture(log_mel(read_waveform(path)))
                shown.append({"picture": base64.b64encode(drawn).decode()})
            except UserError as error:
                shown.append({"fault": str(error)})
            progress.update()
    return shown


def _link(path: Path, folder: Path) -> str:
    return quote(Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix())


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after one sentence on standard error for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m rrs_jax.data.show", description="What is in a data set, and a page to listen to it."
    )
    parser.add_argument("dataset", metavar="DATASET", help="folder of sets, a set's folder or a manifest")
    parser.add_argument(
        "--pictures",
        type=integer(0).argument,
        default=PICTURES,
        help=f"clips of each set that get a picture of their log-mel features, default {PICTURES}",
    )
    options = parser.parse_args(with_home(arguments))
    with exit_status() as status:
        print(show(options.dataset, options.pictures))
    return status.code


if __name__ == "__main__":
    sys.exit(main())
