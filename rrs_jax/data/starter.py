"""The starter set and the styles set: questions written for this project, and their spoken manifests.

| file in starter/                    | holds                                                              |
| train.jsonl, eval.jsonl             | 14 x 20 and 14 x 10 pairs of a harmful question and its benign     |
|                                     | rewrite, as in the paper's Mirror set (table 1, appendix C)        |
| styles_train.jsonl, styles_eval,    | 14 x 10 x 10, 2 and 2 pairs: of each category as many in each of   |
| styles_check                        | ten styles, such as imperatives or key words alone                 |
| borderline.jsonl                    | 120 harmless questions with alarming words, for evaluation alone   |
| check.jsonl, borderline_check.jsonl | as many of both again, to measure what was chosen by the others    |
| everyday.jsonl, contrast.jsonl      | 140 plain and 160 alarming harmless questions, for training        |
| everyday_check.jsonl                | 140 other plain questions, for evaluation alone                    |
| rewrites.jsonl                      | a second rewrite of every pair in train.jsonl                      |

No two questions of different pairs are nearly equal. There are questions only, never answers.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from rrs_jax.config.vocabulary import CATEGORIES
from rrs_jax.data.speech import placed_clip, speak_all
from rrs_jax.data.voices import draw_voice, read_voices
from rrs_jax.errors import UserError
from rrs_jax.files import content_hash, read_jsonl, write_jsonl

BORDERLINE = {  # file by what is asked
    "eval": "borderline",
    "check": "borderline_check",
    "styles_eval": "borderline",
    "styles_check": "borderline_check",
}
TRAINING = ("train", "styles_train")
SPLITS = ("train", "eval", "check", "styles_train", "styles_eval", "styles_check")


@dataclass(frozen=True)
class StarterChoice:
    """A part of the starter or the styles set; in numbers of questions None is all.

    Attributes:
      split: one of `SPLITS`.
      pairs_per_category: pairs of a harmful question and its benign rewrite.
      borderline: borderline questions, for evaluation alone.
      everyday: plain questions; in training with the role "keep", in evaluation others, labelled "everyday".
      contrast: harmless questions with the role "keep", for training alone.
      contrast_role: "keep", or "mirror" for contrast questions without a role, which move as rewrites do.
      rewrites_per_pair: 1 or 2; the second rewrite follows its pair.
      parallel: an everyday question in place of each rewrite, as in the paper's Parallel set. There are fewer
        of them than of all pairs, so they come again.
      categories: the first so many categories.
      left_out_categories, left_out_styles: of the chosen pairs none is of these.
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
    left_out_categories: tuple[str, ...] = ()
    left_out_styles: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self):
        if self.split not in SPLITS:
            raise ValueError(f"split {self.split!r} is none of {SPLITS}")
        if self.is_training and self.borderline != 0:
            raise ValueError("borderline questions are for evaluation alone")
        if not self.is_training and self.contrast != 0:
            raise ValueError("contrast questions are for training alone")
        if self.rewrites_per_pair != 1 and (self.split != "train" or self.parallel):
            raise ValueError("second rewrites are for training on the starter set's Mirror alone")
        if self.left_out_styles and not self.split.startswith("styles"):
            raise ValueError(f"the pairs of {self.split} have no styles to leave out")

    @property
    def is_training(self) -> bool:
        """True where the questions are trained on."""
        return self.split in TRAINING


def starter_pairs(split: str) -> list[dict]:
    """Reads `pair_id`, `category`, `harmful`, `benign` and in the styles set `style` of a split's pairs."""
    return read_jsonl(Path(__file__).parent / "starter" / f"{split}.jsonl")


def starter_singles(name: str) -> list[dict]:
    """Reads `id`, `style` and `question` of every question without a twin in the file `name`.jsonl."""
    return read_jsonl(Path(__file__).parent / "starter" / f"{name}.jsonl")


def choose_rows(choice: StarterChoice) -> list[dict]:
    """Returns manifest rows without speech.

    First the pairs, harmful and benign by turns and all categories by turns, in which styles take turns; then
    borderline, everyday and contrast questions, each kind by turns of its styles. Raises UserError where more
    is asked for than there is, or everything is left out.
    """
    rows = _pair_rows(choice)
    if choice.parallel:
        _replace_twins(rows, _by_turns(starter_singles("everyday"), "style", "id", choice.seed))
    if not choice.is_training:
        rows += _single_rows(choice, "borderline", BORDERLINE[choice.split], "borderline")
        return rows + _single_rows(choice, "everyday", "everyday_check", "everyday")
    rows += _single_rows(choice, "everyday", "everyday", "benign", role="keep")
    contrast_role = "keep" if choice.contrast_role == "keep" else None
    return rows + _single_rows(choice, "contrast", "contrast", "benign", contrast_role)


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
    pairs = [
        pair
        for pair in starter_pairs(choice.split)
        if pair["category"] in set(chosen) - set(choice.left_out_categories)
        and pair.get("style") not in choice.left_out_styles
    ]
    if not pairs:
        raise UserError(
            "data.left_out_categories, data.left_out_styles: leave out every pair; leave out fewer."
        )
    kept = len({pair["category"] for pair in pairs})
    field = "pairs_per_category" if choice.is_training else "eval_pairs_per_category"
    each = _count(field, choice.pairs_per_category, len(pairs) // kept)
    second = {}
    if choice.rewrites_per_pair == 2:
        second = {row["pair_id"]: row for row in starter_singles("rewrites")}
    rows = []
    for pair in _by_turns(pairs, "category", "pair_id", choice.seed)[: each * kept]:
        name, category = pair["pair_id"], pair["category"]
        style = {"style": pair["style"]} if "style" in pair else {}
        rows += [
            _row(f"{name}-{label}", name, label, category, pair[label]) | style
            for label in ("harmful", "benign")
        ]
        if second:
            rows.append(_row(second[name]["id"], name, "benign", category, second[name]["question"]))
    return rows


def _single_rows(
    choice: StarterChoice, field: str, file: str, label: str, role: str | None = None
) -> list[dict]:
    """Returns rows of questions without a twin, as many as the choice's `field` says."""
    questions = starter_singles(file)
    wanted = _count(field, getattr(choice, field), len(questions))
    marked = {"role": role} if role else {}
    return [
        _row(row["id"], row["id"], label, row["style"], row["question"]) | marked
        for row in _by_turns(questions, "style", "id", choice.seed)[:wanted]
    ]


def _replace_twins(rows: list[dict], unrelated: list[dict]) -> None:
    """Puts unrelated questions in place of the benign rows, from the start again where they run out."""
    for place, row in enumerate(row for row in rows if row["label"] == "benign"):
        again, question = divmod(place, len(unrelated))
        question = unrelated[question]
        name = f"parallel-{question['id']}" + (f"-{again + 1}" if again else "")
        row |= _row(name, name, "benign", question["style"], question["question"])


def _by_turns(items: list[dict], group: str, name: str, seed: int) -> list[dict]:
    """Orders items by turns: one of every group, then a second one; the seed draws the order in a group, in
    which styles take turns as well."""
    groups = defaultdict(list)
    for item in items:
        groups[item[group]].append(item)
    for members in groups.values():
        members.sort(key=lambda item: content_hash(seed, item[name]))
        seen: Counter[str | None] = Counter()
        turns = {}
        for item in members:
            turns[item[name]] = seen[item.get("style")]
            seen[item.get("style")] += 1
        members.sort(key=lambda item: turns[item[name]])
    return [item for turn in zip_longest(*groups.values()) for item in turn if item is not None]


def _count(field: str, wanted: int | None, there: int) -> int:
    if wanted is None:
        return there
    if not 0 <= wanted <= there:
        raise UserError(
            f"data.{field}: {wanted} is not between 0 and {there}, all that there is; choose fewer."
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
