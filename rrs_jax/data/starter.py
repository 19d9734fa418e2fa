"""The starter set: questions written for this project, and their spoken manifests.

| file in starter/                    | holds                                                              |
| train.jsonl, eval.jsonl             | 14 x 20 and 14 x 10 pairs of a harmful question and its benign     |
|                                     | rewrite, as in the paper's Mirror set (table 1, appendix C)        |
| borderline.jsonl                    | 120 harmless questions with alarming words, for evaluation alone   |
| check.jsonl, borderline_check.jsonl | as many of both again, to measure what was chosen by the others    |
| everyday.jsonl, contrast.jsonl      | 140 plain and 160 alarming harmless questions, for training        |
| rewrites.jsonl                      | a second rewrite of every training pair                            |

No two questions of different pairs are nearly equal. There are questions only, never answers.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from rrs_jax.data.speech import placed_clip, speak_all
from rrs_jax.data.voices import draw_voice, read_voices
from rrs_jax.errors import UserError
from rrs_jax.files import content_hash, read_jsonl, write_jsonl

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


@dataclass(frozen=True)
class StarterChoice:
    """A part of the starter set; in numbers of questions None is all.

    Attributes:
      split: one of `SPLITS`.
      pairs_per_category: pairs of a harmful question and its benign rewrite.
      borderline: borderline questions, for evaluation alone.
      everyday, contrast: harmless questions with the role "keep", for training alone.
      contrast_role: "keep", or "mirror" for contrast questions without a role, which move as rewrites do.
      rewrites_per_pair: 1 or 2; the second rewrite follows its pair.
      parallel: an everyday question in place of each rewrite, as in the paper's Parallel set. There are fewer
        of them than of all pairs, so they come again.
      categories: the first so many categories.
      seed: draws the order within a category or style. With the same seed a smaller choice is a part of a
        larger one.
    """

    split: str
    pairs_per_category: int | None = None
    borderline: int | None = 0
    everyday: int | None = 0
    contrast: int | None = 0
    contrast_role: str = "keep"
    rewrites_per_pair: int = 1
    parallel: bool = False
    categories: int | None = None
    seed: int = 0

    def __post_init__(self):
        if self.split not in SPLITS:
            raise ValueError(f"split {self.split!r} is none of {SPLITS}")
        if self.split == "train" and self.borderline != 0:
            raise ValueError("borderline questions are for evaluation alone")
        if self.split != "train" and (self.everyday, self.contrast) != (0, 0):
            raise ValueError("everyday and contrast questions are for training alone")
        if self.rewrites_per_pair != 1 and (self.split != "train" or self.parallel):
            raise ValueError("second rewrites are for training on Mirror alone")


def starter_pairs(split: str) -> list[dict]:
    """Reads `pair_id`, `category`, `harmful` and `benign` of every pair of a split."""
    return read_jsonl(Path(__file__).parent / "starter" / f"{split}.jsonl")


def starter_singles(name: str) -> list[dict]:
    """Reads `id`, `style` and `question` of every question without a twin in the file `name`.jsonl."""
    return read_jsonl(Path(__file__).parent / "starter" / f"{name}.jsonl")


def choose_rows(choice: StarterChoice) -> list[dict]:
    """Returns manifest rows without speech.

    First the pairs, harmful and benign by turns and all categories by turns; then borderline, everyday and
    contrast questions, each kind by turns of its styles. Raises UserError where more is asked for than there
    is.
    """
    rows = _pair_rows(choice)
    if choice.parallel:
        _replace_twins(rows, _by_turns(starter_singles("everyday"), "style", "id", choice.seed))
    rows += _single_rows(choice, "borderline", choice.borderline, "borderline", role=None)
    rows += _single_rows(choice, "everyday", choice.everyday, "benign", role="keep")
    contrast_role = "keep" if choice.contrast_role == "keep" else None
    return rows + _single_rows(choice, "contrast", choice.contrast, "benign", contrast_role)


def build_starter(
    folder: str | Path,
    choice: StarterChoice,
    *,
    voices: str | Iterable[str] = "",
    cache: str | Path | None = None,
    workers: int | None = None,
    max_cost_usd: float = 0.0,
    voices_per_question: int = 1,
) -> Path:
    """Speaks a part of the starter set and returns the manifest, `folder`/manifest.jsonl.

    Every question has a voice of its own, drawn at random from `voices` (names as for `read_voices`), as in
    appendix B, so that twins may have different ones. With `voices_per_question` it comes again for each
    further voice, its id with -voice2 and so on. Clips lie in `folder`/audio, as links into the cache where
    the disk allows it. Raises UserError.
    """
    rows, folder, drawn = choose_rows(choice), Path(folder), read_voices(voices)
    if voices_per_question > len(drawn):
        raise UserError(
            f"data.voices_per_question: is {voices_per_question} with {len(drawn)} voices; give fewer, or"
            " more data.voices."
        )
    apart = [turn * len(drawn) // voices_per_question for turn in range(voices_per_question)]
    chosen = [draw_voice(row["question"], choice.seed, drawn, further) for further in apart for row in rows]
    rows = [
        row | {"id": row["id"] + (f"-voice{turn + 1}" if turn else "")}
        for turn in range(len(apart))
        for row in rows
    ]
    spoken = [(row["question"], voice) for row, voice in zip(rows, chosen, strict=True)]
    clips = speak_all(spoken, cache, workers, max_cost_usd)
    for row, voice, clip in zip(rows, chosen, clips, strict=True):
        row |= placed_clip(clip, voice, folder, row["id"])
    write_jsonl(folder / "manifest.jsonl", rows)  # last: a manifest's clips are all there
    return folder / "manifest.jsonl"


def _pair_rows(choice: StarterChoice) -> list[dict]:
    chosen = CATEGORIES[: _count("categories", choice.categories, len(CATEGORIES))]
    pairs = [pair for pair in starter_pairs(choice.split) if pair["category"] in chosen]
    each = _count("pairs_per_category", choice.pairs_per_category, len(pairs) // len(chosen))
    second = {}
    if choice.rewrites_per_pair == 2:
        second = {row["pair_id"]: row for row in starter_singles("rewrites")}
    rows = []
    for pair in _by_turns(pairs, "category", "pair_id", choice.seed)[: each * len(chosen)]:
        name, category = pair["pair_id"], pair["category"]
        rows += [
            _row(f"{name}-{label}", name, label, category, pair[label]) for label in ("harmful", "benign")
        ]
        if second:
            rows.append(_row(second[name]["id"], name, "benign", category, second[name]["question"]))
    return rows


def _single_rows(
    choice: StarterChoice, name: str, wanted: int | None, label: str, role: str | None
) -> list[dict]:
    """Returns rows of questions without a twin."""
    questions = starter_singles(BORDERLINE.get(choice.split, name) if name == "borderline" else name)
    chosen = _by_turns(questions, "style", "id", choice.seed)[: _count(name, wanted, len(questions))]
    marked = {"role": role} if role else {}
    return [_row(row["id"], row["id"], label, row["style"], row["question"]) | marked for row in chosen]


def _replace_twins(rows: list[dict], unrelated: list[dict]) -> None:
    """Puts unrelated questions in place of the benign rows, from the start again where they run out."""
    for place, row in enumerate(row for row in rows if row["label"] == "benign"):
        again, question = divmod(place, len(unrelated))
        question = unrelated[question]
        name = f"parallel-{question['id']}" + (f"-{again + 1}" if again else "")
        row |= _row(name, name, "benign", question["style"], question["question"])


def _by_turns(items: list[dict], group: str, name: str, seed: int) -> list[dict]:
    """Orders items by turns: one of every group, then a second one; the seed draws the order in a group."""
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
