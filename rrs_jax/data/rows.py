"""One row of any data set as a row of ours: the same rules for manifests, question files and answers.

A field that stands under the name that another program gives it is read from there, a number counts as text
where text is wanted, and what cannot be read is a fault of its row, never left out unsaid.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rrs_jax.data.clips import clip_path, find_clip, is_file
from rrs_jax.data.messages import LISTS, Conversation, conversation_of, split_marks
from rrs_jax.data.values import category_of, is_missing, seconds_of, text_of

LABELS = ("harmful", "benign", "borderline")
# Names under which other data sets have our fields, the first one there counting.
OTHER_NAMES = {
    "question": (
        "prompt", "query", "instruction", "text", "transcript", "transcription", "sentence", "goal",
        "behavior", "forbidden_prompt",
    ),
    "response": ("answer", "output", "completion"),
    "category": ("categories", "category_name", "semanticcategory", "semantic_category", "scenario"),
    "seconds": ("duration",),
}  # fmt: skip
TEXTS = ("id", "pair_id", "label", "question", "response", "voice")
READ: dict[str, Callable] = dict.fromkeys(TEXTS, text_of) | {"category": category_of, "seconds": seconds_of}
NO_CLIPS = (*READ, *(name for names in OTHER_NAMES.values() for name in names), "key", "uttid")


@dataclasses.dataclass(frozen=True)
class OwnRow:
    """Attributes:
    fields: those of ours that the row has, by our names, and all that nothing of ours was read from.
    taken: the names of others that fields of ours were read from, by ours.
    faults: what is wrong with it.
    """

    fields: dict
    taken: dict[str, str]
    faults: list[str]


def own_row(row: dict) -> OwnRow:
    """Reads a row of any data set. A field of ours that is null, NaN or empty is not among `fields`."""
    fields, taken, faults = dict(row), {}, []
    _read_conversation(row, fields, taken, faults)
    _read_clip(row, fields, taken, faults)
    lowered = {name.lower().strip(): name for name in fields}
    for ours, others in OTHER_NAMES.items():
        if is_missing(fields.get(ours)) and (name := next(filter(lowered.get, others), None)):
            if not is_missing(fields[lowered[name]]):
                taken[ours] = lowered[name]
                fields[ours] = fields.pop(lowered[name])
    if taken.get("question") == "instruction" and not is_missing(more := fields.get("input")):
        fields["question"] = f"{fields['question']}\n{more}"  # as Alpaca's rows mean it
    for name, read in READ.items():
        if name in fields and is_missing(fields[name]):
            del fields[name]
        elif name in fields:
            try:
                fields[name] = read(fields[name])
            except ValueError as reason:
                faults.append(f"{name} {reason}")
                del fields[name]
    _read_marks(fields, taken, faults)
    if "label" in fields:
        fields["label"] = fields["label"].strip().lower()
        if fields["label"] not in LABELS:
            faults.append(f"label {row['label']!r} is none of {', '.join(LABELS)}")
    return OwnRow(fields, taken, faults)


def clip_fault(audio: str, folder: Path) -> str | None:
    """Returns what is wrong with the place of a clip, relative to `folder`; None where a file is there."""
    if is_file(folder / audio):
        return None
    return f"audio file {str(folder / audio)[:300]} does not exist"


def taken_names(rows: Sequence[OwnRow]) -> str | None:
    """Says which fields were read under names of others, with counts; None where none was."""
    counted = Counter(pair for row in rows for pair in row.taken.items())
    said = [f"{ours} from {other} in {count}" for (ours, other), count in counted.items()]
    return f"takes {', '.join(said)} of {len(rows)} rows" if said else None


def plain(row: dict) -> tuple[dict, list[str]]:
    """Returns a row without values that JSON cannot hold, such as a table's dates, and their names."""
    kept, dropped = {}, []
    for name, value in row.items():
        if _is_plain(value):
            kept[name] = value
        else:
            dropped.append(name)
    return kept, dropped


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(name, str) for name in value) and all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)


def _read_conversation(row: dict, fields: dict, taken: dict, faults: list[str]) -> None:
    """Takes question, answer and clip from a conversation, where the row has no such field of its own."""
    try:
        conversation: Conversation | None = conversation_of(row)
    except ValueError as reason:
        faults.append(str(reason))
        return
    if conversation is None:
        return
    name = next(name for name in LISTS if isinstance(row.get(name), list))
    del fields[name]
    found = {
        "question": conversation.questions,
        "response": conversation.answers,
        "audio": conversation.clips,
    }
    for ours, values in found.items():
        if not values or not is_missing(fields.get(ours)):
            continue
        if len(values) > 1:
            faults.append(
                f"{name} has {len(values)} of the field {ours}; a row is one question with one clip"
            )
            continue
        taken[ours], fields[ours] = name, values[0]


def _read_clip(row: dict, fields: dict, taken: dict, faults: list[str]) -> None:
    if "audio" in taken:
        name = "audio"
    else:
        try:
            name, _ = find_clip(fields, NO_CLIPS)
        except ValueError as reason:
            faults.append(str(reason))
            return
    if name is None:
        fields.pop("audio", None)
        return
    value = fields.pop(name)
    try:
        path = clip_path(value)
    except ValueError as reason:
        faults.append(f"audio {reason}" if name == "audio" else f"audio, under {name}, {reason}")
        return
    if path is not None:
        fields["audio"] = path
        if name != "audio":
            taken["audio"] = name


def _read_marks(fields: dict, taken: dict, faults: list[str]) -> None:
    """Takes marks of clips out of the question, and the clip from a mark that names one."""
    for name in ("question", "response"):
        if "<" in fields.get(name, "") and ("audio" in fields[name].lower()):
            fields[name], clips = split_marks(fields[name])
            if name == "question" and clips and "audio" not in fields:
                fields["audio"], taken["audio"] = clips[0], "the question's mark"
            if not fields[name]:
                del fields[name]
