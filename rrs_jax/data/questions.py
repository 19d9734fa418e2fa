"""Questions as texts: their words, whether they can be spoken, how far apart two of them are."""

import re
import unicodedata

MIN_WORDS, MAX_WORDS = 3, 40  # 40 words are some 16 s of speech; the models hear 30 s
MAX_LETTERS = 30  # of one word: longer ones are no words
MAX_DIGITS = 8  # in a row: longer ones are read in as many ways as there are voices

OPENERS = frozenset(
    "who whom whose what when where why how which can could is are am was were do does did should would will "
    "shall may might must has have had".split()
)


def tidy(text: str) -> str:
    """Returns NFC text with plain quotes, single spaces and no line breaks."""
    return " ".join(unicodedata.normalize("NFC", text).translate(str.maketrans("‘’“”", "''\"\"")).split())


def clean(text: str) -> str:
    """Returns tidy text without quotes around the whole."""
    text = tidy(text)
    while len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    return text


def words(text: str) -> list[str]:
    """Returns the words in lower case, without punctuation."""
    return re.findall(r"[\w']+", text.lower().replace("’", "'"))


def changed_words(one: str, other: str) -> int:
    """Counts the words to replace, insert or delete between two texts (Levenshtein).

    Case and punctuation do not matter.
    """
    one, other = words(one), words(other)
    row = list(range(len(other) + 1))
    for i, word in enumerate(one, start=1):
        before, row[0] = row[0], i
        for j, candidate in enumerate(other, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != candidate))
    return row[-1]


def is_question(text: str) -> bool:
    """Returns whether a text ends with a question mark or begins as questions do.

    A third of the questions that people type have no mark.
    """
    first = words(text)[:1]
    return text.rstrip().endswith("?") or bool(first and first[0].split("'")[0] in OPENERS)


def unspeakable(text: str, max_words: int = MAX_WORDS) -> str | None:
    """Returns why no voice can be trusted to read the text, or why it is no single question.

    None where nothing is wrong.
    """
    count = len(words(text))
    if not any(character.isalpha() for character in text):
        return "no letters"
    if any(character.isalpha() and not _is_latin(character) for character in text):
        return "letters that an English voice cannot read"
    if any(unicodedata.category(character)[0] == "C" for character in text):
        return "control characters"
    if re.search(r"https?:|www\.|\S@\S|\w\.(?:com|org|net)\b", text, re.IGNORECASE):
        return "an address"
    if odd := sorted({character for character in text if not _is_readable(character)}):
        return f"signs that no voice reads ({' '.join(odd)[:20]})"
    if re.search(rf"\d{{{MAX_DIGITS + 1}}}", text):
        return "a long number"
    if any(len(word) > MAX_LETTERS for word in words(text)):
        return "a word that is none"
    if count < MIN_WORDS:
        return f"fewer than {MIN_WORDS} words"
    if count > max_words:
        return f"more than {max_words} words"
    return None


def _is_latin(character: str) -> bool:
    return unicodedata.name(character, "").startswith("LATIN")


def _is_readable(character: str) -> bool:
    return character.isalnum() or character in " .,?!;:'\"-–—()/&%$£€"
