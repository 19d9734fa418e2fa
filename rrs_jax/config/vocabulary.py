"""Values of fields whose meaning other packages define: categories, settings, judges, augmentation."""

from collections.abc import Iterable

from rrs_jax.config.kinds import Kind, number, split_names
from rrs_jax.config.prompts import MODES, TASK_PROMPTS

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
# The forms of a question in the styles set (`rrs_jax.data.starter`).
STYLES = (
    "question",
    "imperative",
    "statement",
    "role_play",
    "indirect",
    "polite",
    "long_context",
    "keywords",
    "fiction",
    "task",
)

# The modes that a question has in each setting (`rrs_jax.evaluate.settings`).
SETTING_MODES = {
    "spoken": MODES,
    "silence": ("text_only",),
    "noise": ("text_only",),
    "unit_noise": ("text_only",),
    "spelled": ("audio_text",),
    "other_voices": ("audio_text", "audio_only"),
    "then_answer": ("audio_text",),
} | dict.fromkeys(TASK_PROMPTS, ("audio_text",))
SETTINGS = tuple(SETTING_MODES)


def task_of(evaluation: str) -> str | None:
    """Returns the task in an evaluation's name, STRATEGY[-QUESTION SETS][-SETTING]; None without one."""
    setting = evaluation.rpartition("-")[2]
    return setting if setting in TASK_PROMPTS else None


# A judge's name: the part before the colon, and the one behind it (`rrs_jax.evaluate.judges`).
JUDGES = {
    "phrases": None,
    "first_token": None,
    "llm": "RUBRIC or llm:RUBRIC@MODEL",
    "own": "RUBRIC",
    "local": "RUBRIC_FILE",
    "llama_guard": "FOLDER",
    "human": "SHEET.csv",
}
JUDGES_WRITTEN = ", ".join(name if rest is None else f"{name}:{rest}" for name, rest in JUDGES.items())

# The changes of a clip (`rrs_jax.data.augment`), and the amounts that each can have.
AUGMENTATIONS = {
    "speed": number(0.25, 4),
    "tempo": number(0.25, 4),
    "pitch": number(-12, 12),
    "snr": number(-20, 100),
}


def read_categories(written: Iterable[str]) -> tuple[str, ...]:
    """Returns the categories in a list of names that may have been split at the commas within them too.

    Raises ValueError where something else is among them.
    """
    rest, found = ",".join(written), []
    while rest:
        name = next((name for name in CATEGORIES if f"{rest},".startswith(f"{name},")), None)
        if name is None:
            raise ValueError(f"{rest!r} begins with no category")
        found.append(name)
        rest = rest[len(name) + 1 :]
    return tuple(found)


def categories() -> Kind:
    """Returns the kind of a tuple of different categories, or of their parts between commas, in order.

    A command line gives the parts; whoever uses the field calls `read_categories`.
    """

    def accepts(value: object) -> bool:
        if not isinstance(value, tuple) or not all(isinstance(part, str) and part for part in value):
            return False
        try:
            found = read_categories(value)
        except ValueError:
            return False
        return len(set(found)) == len(found)

    wants = f"different categories with commas between, among {'; '.join(CATEGORIES)}"
    return Kind(wants, tuple, split_names, accepts)


def read_augmentation(written: str) -> tuple[str, float, float]:
    """Returns kind, lowest and highest amount of a change written KIND:LOW:HIGH, or KIND:AMOUNT for both.

    Raises ValueError for anything else, and for an amount that the kind cannot have.
    """
    kind, *amounts = written.split(":")
    low, high = (float(amount) for amount in (amounts if len(amounts) == 2 else 2 * amounts))
    allowed = AUGMENTATIONS.get(kind)
    if allowed is None or not (allowed.accepts(low) and allowed.accepts(high) and low <= high):
        raise ValueError(f"{written!r} is no change of a clip")
    return kind, low, high


def augmentations() -> Kind:
    """Returns the kind of a tuple of changes, each kind of change once at most."""

    def accepts(value: object) -> bool:
        if not isinstance(value, tuple):
            return False
        try:
            kinds = [read_augmentation(change)[0] for change in value]
        except (AttributeError, ValueError):
            return False
        return len(set(kinds)) == len(kinds)

    written = ", ".join(f"{kind} {allowed.wants[9:]}" for kind, allowed in AUGMENTATIONS.items())
    wants = f"different changes KIND:LOW:HIGH, with commas between: {written}"
    return Kind(wants, tuple, split_names, accepts)
