"""The starter set: questions written for this project, and their spoken manifests.

`starter/train.jsonl` (14 categories x 20) and `starter/eval.jsonl` (14 x 10) hold pairs of a harmful question
and its benign rewrite, as the paper's Mirror set does (table 1, appendix C: 1 to 3 words changed).
`starter/borderline.jsonl` holds 120 harmless questions with alarming words, for evaluation alone.
`starter/check.jsonl` and `starter/borderline_check.jsonl` are as many of both again, to measure what was
chosen by the others. `starter/everyday.jsonl` and `starter/contrast.jsonl` hold 140 and 160 harmless
questions for training, plain ones and ones with alarming words; no question of any file nearly is another
one's. `starter/rewrites.jsonl` has a second rewrite of every training pair. Questions only, never answers.
"""

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path

from rrs_jax.data.speech import speak_all
from rrs_jax.data.voices import draw_voice, read_voices
from rrs_jax.errors import UserError
from rrs_jax.files import atomic_path, content_hash, read_jsonl, write_jsonl

CATEGORIES = (  # BeaverTails' keys; commas belong to the names
    "animal_abuse",
    "child_abuse",
    "controversial_topics,politics",
    "discrimination,stereotype,injustice",
    "drug_abuse,weapons,banned_substance",
    "financial_crime,property_crime,theft",
    "hate_speech,offensive_language",
    "misinformation_regarding_ethics,laws_and_safety",
    "non_violent_unethical_behavior",
    "privacy_violation",
    "self_harm",
    "sexually_explicit,adult_content",
    "terrorism,organized_crime",
    "violence,aiding_and_abetting,incitement",
)
BORDERLINE = {"eval": "borderline", "check": "borderline_check"}  # file by what is asked
SPLITS = ("train", *BORDERLINE)


def starter_pairs(split: str) -> list[dict]:
    """`pair_id`, `category`, `harmful`, `benign` of every pair. split: of `SPLITS`."""
    return read_jsonl(Path(__file__).parent / "starter" / f"{split}.jsonl")


def starter_singles(name: str) -> list[dict]:
    """`id`, `style`, `question` of every question without a twin. name: of the file."""
    return read_jsonl(Path(__file__).parent / "starter" / f"{name}.jsonl")


def choose_rows(
    split: str,
    *,
    pairs_per_category: int | None,
    borderline: int | None = 0,
    everyday: int | None = 0,
    contrast: int | None = 0,
    contrast_role: str = "keep",
    rewrites_per_pair: int = 1,
    parallel: bool = False,
    categories: int | None = None,
    seed: int = 0,
) -> list[dict]:
    """Manifest rows without speech: harmful and benign by turns, all categories by turns, then the
    borderline, everyday and contrast ones, each by turns of their styles. The last two are benign rows with
    the role "keep", the contrast ones without it where `contrast_role` is "mirror". With `rewrites_per_pair`
    2 the second rewrite follows each pair.

    parallel: in place of each benign twin an everyday question, as the paper's Parallel set has; there are
    fewer of them than of all pairs, so they come again.
    With the same seed a smaller choice is a part of a larger one. None is all; `categories` takes the first
    so many.
    Raises UserError for more than there are.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {SPLITS}")
    if split == "train" and borderline != 0:
        raise ValueError("borderline questions are for evaluation alone")
    if split != "train" and (everyday, contrast) != (0, 0):
        raise ValueError("everyday and contrast questions are for training alone")
    if rewrites_per_pair != 1 and (split != "train" or parallel):
        raise ValueError("second rewrites are for training on Mirror alone")
    chosen = CATEGORIES[: _count("categories", categories, len(CATEGORIES))]
    pairs = [pair for pair in starter_pairs(split) if pair["category"] in chosen]
    each = _count("pairs_per_category", pairs_per_category, len(pairs) // len(chosen))
    second = {row["pair_id"]: row for row in starter_singles("rewrites")} if rewrites_per_pair == 2 else {}
    rows = []
    for pair in _by_turns(pairs, "category", "pair_id", seed)[: each * len(chosen)]:
        for label in ("harmful", "benign"):
            rows.append(
                _row(f"{pair['pair_id']}-{label}", pair["pair_id"], label, pair["category"], pair[label])
            )
        if second:
            other = second[pair["pair_id"]]
            rows.append(_row(other["id"], pair["pair_id"], "benign", pair["category"], other["question"]))
    if parallel:
        _replace_twins(rows, _by_turns(starter_singles("everyday"), "style", "id", seed))
    for name, wanted in (("borderline", borderline), ("everyday", everyday), ("contrast", contrast)):
        kept = name == "everyday" or (name == "contrast" and contrast_role == "keep")
        label, role = name if name == "borderline" else "benign", {"role": "keep"} if kept else {}
        questions = starter_singles(BORDERLINE.get(split, name) if name == "borderline" else name)
        for question in _by_turns(questions, "style", "id", seed)[: _count(name, wanted, len(questions))]:
            rows.append(
                _row(question["id"], question["id"], label, question["style"], question["question"]) | role
            )
    return rows


def build_starter(
    folder: str | Path,
    *,
    pairs_per_category: int | None,
    seed: int,
    split: str,
    voices: str | Iterable[str] = "",
    cache: str | Path | None = None,
    workers: int | None = None,
    max_cost_usd: float = 0.0,
    voices_per_question: int = 1,
    **others: int | str | None,
) -> Path:
    """Speaks a part of the starter set (`choose_rows` takes `others`); writes `folder`/audio and returns
    `folder`/manifest.jsonl.

    Every question has a voice of its own, drawn at random from `voices` (`read_voices`) as appendix B does,
    so twins may have different ones; with `voices_per_question` it comes again for each further voice, its id
    with -voice2 and so on. The manifest is written last. Clips are links into the cache where the disk allows
    it. Raises UserError.
    """
    rows = choose_rows(split, pairs_per_category=pairs_per_category, seed=seed, **others)
    folder = Path(folder)
    drawn = read_voices(voices)
    if voices_per_question > len(drawn):
        raise UserError(
            f"data.voices_per_question: is {voices_per_question} with {len(drawn)} voices; give fewer, or"
            " more data.voices."
        )
    apart = [turn * len(drawn) // voices_per_question for turn in range(voices_per_question)]
    chosen = [draw_voice(row["question"], seed, drawn, further) for further in apart for row in rows]
    rows = [
        row | {"id": row["id"] + (f"-voice{turn + 1}" if turn else "")}
        for turn in range(len(apart))
        for row in rows
    ]
    spoken = [(row["question"], voice) for row, voice in zip(rows, chosen, strict=True)]
    clips = speak_all(spoken, cache, workers, max_cost_usd)
    for row, voice, (clip, seconds) in zip(rows, chosen, clips, strict=True):
        row |= {"audio": f"audio/{row['id']}.flac", "voice": voice.name, "seconds": round(seconds, 3)}
        place_clip(clip, folder / row["audio"])
    write_jsonl(folder / "manifest.jsonl", rows)
    return folder / "manifest.jsonl"


def _replace_twins(rows: list[dict], unrelated: list[dict]) -> None:
    """Benign rows become unrelated questions, in their order and again from the start where they do not
    suffice."""
    for place, row in enumerate(row for row in rows if row["label"] == "benign"):
        again, question = divmod(place, len(unrelated))
        question = unrelated[question]
        name = f"parallel-{question['id']}" + (f"-{again + 1}" if again else "")
        row |= _row(name, name, "benign", question["style"], question["question"])


def _by_turns(items: list[dict], group: str, name: str, seed: int) -> list[dict]:
    """One of every group, then a second one, and so on; within a group in an order that the seed draws."""
    groups = defaultdict(list)
    for item in items:
        groups[item[group]].append(item)
    for members in groups.values():
        members.sort(key=lambda item: content_hash(seed, item[name]))
    return [item for turn in zip_longest(*groups.values()) for item in turn if item is not None]


def _count(field: str, wanted: int | None, there: int) -> int:
    if wanted is None:
        return there
    if not 0 <= wanted <= there:
        raise UserError(
            f"{field}: {wanted} is not between 0 and {there}, all that the starter set has; choose fewer."
        )
    return wanted


def _row(name: str, pair: str, label: str, category: str, question: str) -> dict:
    return {
        "id": name,
        "pair_id": pair,
        "label": label,
        "category": category,
        "question": question,
        "response": None,
    }


def place_clip(clip: Path, target: Path) -> None:
    """A hard link, or a copy where the cache lies on another disk."""
    with atomic_path(target) as temporary:
        temporary.unlink()
        try:
            os.link(clip, temporary)
        except OSError:
            shutil.copyfile(clip, temporary)
