"""The definition of nearly equal questions, written down once more."""

from rrs_jax.data.questions import changed_words, words


def nearly_equal(one: str, other: str) -> bool:
    """The definition: a Jaccard index of 0.8 or more, or at most one word that differs."""
    a, b = set(words(one)), set(words(other))
    return 5 * len(a & b) >= 4 * len(a | b) or changed_words(one, other) <= 1
