"""Packs a data set as a folder for the hub: the audio-folder layout of the library `datasets`, with a card.

    python -m rrs_jax.data.pack DATASET OUT
    hf upload OWNER/NAME OUT --repo-type=dataset

DATASET holds manifests (DATASET/NAME/manifest.jsonl, as `rrs_jax.data.build` makes them, or one
manifest.jsonl). In OUT each is a configuration: OUT/NAME/train/metadata.jsonl with `file_name`, the clips
beside it. `datasets.load_dataset(OUT, NAME)` loads it.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rrs_jax.config.kinds import with_home
from rrs_jax.data.manifest import audio_paths, load_manifest
from rrs_jax.data.speech_cache import place_clip
from rrs_jax.errors import UserError, exit_status
from rrs_jax.files import safe_name, write_atomic, write_jsonl
from rrs_jax.inputs.audio_files import AudioFault, read_samples
from rrs_jax.web.text import markdown_cell

WHAT = {
    "basic": "question and answer pairs of BeaverTails' safe split (`response` is the answer)",
    "mirror": "harmful questions of BeaverTails and, under the same `pair_id`, each one's benign rewrite",
    "parallel": "the harmful questions of mirror with benign questions drawn at random",
}

CARD = """\
---
license: cc-by-nc-4.0
language: [en]
task_categories: [audio-text-to-text]
size_categories: ["{size}"]
tags: [safety, over-refusal, speech]
configs:
{configs}
---

# Spoken alignment data after BeaverTails

Questions and their speech for making audio language models decline harmful questions and answer harmless
ones, built by RRS-JAX in the way of section 5.1 of "Reshaping Representation Space to Balance the Safety and
Over-rejection in Large Audio Language Models". Some questions are offensive or ask for harm; none of them has
an unsafe answer here.

| configuration | samples | hours | |
|---|---|---|---|
{table}

Speech: {engines}; 16 kHz, mono, FLAC. Rewrites: {writers}. A row has `id`, `pair_id`, `label` (harmful or
benign), `category` (BeaverTails' key), `question`, `response`, `voice` and `seconds`.

The questions and answers come from [BeaverTails](https://huggingface.co/datasets/PKU-Alignment/BeaverTails),
CC-BY-NC-4.0, whose terms hold for this data as well: no commercial use, and no use that makes a model more
harmful.
"""


def find_manifests(dataset: str | Path) -> dict[str, Path]:
    """Returns name and path of each manifest of a data set.

    A data set is a folder of sets, a set's folder, or a manifest itself. Raises UserError where there is
    none.
    """
    dataset = Path(dataset)
    if dataset.is_file():
        return {dataset.parent.name: dataset}
    if (dataset / "manifest.jsonl").is_file():
        return {dataset.resolve().name: dataset / "manifest.jsonl"}
    found = {path.parent.name: path for path in sorted(dataset.glob("*/manifest.jsonl"))}
    if not found:
        raise UserError(
            f"{dataset}: holds no manifest.jsonl, nor does a folder in it; give what rrs_jax.data.build made."
        )
    return found


def pack(dataset: str | Path, out: str | Path) -> Path:
    """Writes the folder and returns its dataset card.

    Raises UserError where `out` is not empty, or a clip is missing or no sound.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: is not empty; name a new folder, so that nothing else is uploaded.")
    sets = {}
    for name, manifest in find_manifests(dataset).items():
        rows = load_manifest(manifest)
        folder = out / name / "train"
        packed = []
        for row, path in zip(rows, audio_paths(manifest, rows), strict=True):
            try:  # a row may name any file of this machine, and what is packed is published
                read_samples(path)
            except AudioFault as fault:
                raise UserError(f"{manifest}, row {row['id']}: {path} {fault}.") from fault
            file_name = f"audio/{safe_name(row['id'])}.{safe_name(path.suffix[1:])}"
            place_clip(path, folder / file_name)
            packed.append(
                {"file_name": file_name} | {field: value for field, value in row.items() if field != "audio"}
            )
        write_jsonl(folder / "metadata.jsonl", packed)
        sets[name] = rows
    write_atomic(out / "README.md", _card(sets))
    return out / "README.md"


def _card(sets: dict[str, list[dict]]) -> str:
    """Fills in the dataset card of these sets."""
    rows = [row for members in sets.values() for row in members]
    sizes = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"))
    return CARD.format(
        size=next(label for bound, label in sizes if len(rows) < bound),
        configs="\n".join(f"- config_name: {_yaml(name)}\n  data_dir: {_yaml(name)}" for name in sets),
        table="\n".join(_card_row(name, members) for name, members in sets.items()),
        engines=markdown_cell(", ".join(sorted({(row["voice"] or "unknown").split(":")[0] for row in rows}))),
        writers=markdown_cell(
            ", ".join(sorted({str(row.get("rewritten_by") or "") for row in rows} - {""})) or "none"
        ),
    )


def _yaml(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z][\w.-]*", text) else json.dumps(text)


def _card_row(name: str, rows: list[dict]) -> str:
    counts = Counter(row["label"] for row in rows)
    hours = sum(row["seconds"] or 0 for row in rows) / 3600
    labels = ", ".join(f"{count} {label}" for label, count in sorted(counts.items()))
    return f"| {markdown_cell(name)} | {labels} | {hours:.2f} | {WHAT.get(name, 'questions with speech')} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after one sentence on standard error for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m rrs_jax.data.pack", description="A data set as a folder for the hub."
    )
    parser.add_argument("dataset", metavar="DATASET", help="folder of sets, a set's folder or a manifest")
    parser.add_argument("out", metavar="OUT", help="new folder, which the hub takes")
    options = parser.parse_args(with_home(arguments))
    with exit_status() as status:
        card = pack(options.dataset, options.out)
        print(
            f"{card}: edit it, then upload {card.parent} by: hf upload OWNER/NAME {card.parent}"
            " --repo-type=dataset"
        )
    return status.code


if __name__ == "__main__":
    sys.exit(main())
