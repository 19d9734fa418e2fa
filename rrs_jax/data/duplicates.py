"""Near-duplicates of questions: one measure for de-duplication, exclusion files and the checks.

Two questions are nearly equal where their sets of words have a Jaccard index of 0.8 or more, or where at
most one word differs, which 0.8 misses in short ones. MinHash (`datasketch`) and a table of the questions
with one word left out propose candidates, the measure itself decides. With 32 bands of 4 hashes a pair at 0.8
is missed once in 10^7.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from rrs_jax.data.questions import changed_words, words
from rrs_jax.progress import Progress

NEAR = 0.8
BANDS, ROWS = 32, 4


def _nearly_equal(one: str, first: frozenset[str], other: str, second: frozenset[str]) -> bool:
    common = len(first & second)
    union = len(first) + len(second) - common
    return common >= NEAR * union or (union - common <= 2 and changed_words(one, other) <= 1)


class QuestionIndex:
    """An index of texts, each under a name of the caller's choice, that finds nearly equal ones."""

    def __init__(self, texts: Iterable[tuple[object, str]] = ()):
        from datasketch import MinHash, MinHashLSH

        self._minhash = MinHash
        self._lsh = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
        self._texts: list[tuple[object, str, frozenset[str]]] = []
        self._shortened: dict[tuple, list[int]] = defaultdict(list)
        self._signatures: dict[frozenset[str], object] = {}
        for name, text in texts:
            self.add(name, text)

    def add(self, name: object, text: str) -> None:
        """Adds a text under `name`."""
        place = len(self._texts)
        self._texts.append((name, text, frozenset(words(text))))
        self._lsh.insert(place, self._signature(text))
        for key in _shortened(text):
            self._shortened[key].append(place)

    def near(self, text: str) -> list[object]:
        """Returns the names of the texts nearly equal to `text`, in the order in which they were added."""
        places = set(self._lsh.query(self._signature(text)))
        for key in _shortened(text):
            places.update(self._shortened.get(key, ()))
        bag, candidates = frozenset(words(text)), (self._texts[place] for place in sorted(places))
        return [name for name, other, others in candidates if _nearly_equal(text, bag, other, others)]

    def _signature(self, text: str):
        bag = frozenset(words(text))
        if bag not in self._signatures:
            signature = self._minhash(num_perm=BANDS * ROWS, seed=1)
            signature.update_batch([word.encode() for word in bag])
            self._signatures[bag] = signature
        return self._signatures[bag]


def _shortened(text: str) -> set[tuple]:
    """Returns the words of a text as a tuple, and the tuples with one word left out.

    Texts at most one word apart have one of these in common.
    """
    said = tuple(words(text))
    return {said} | {said[:i] + said[i + 1 :] for i in range(len(said))}


def near_groups(texts: Sequence[str]) -> list[list[int]]:
    """Groups texts that are nearly equal, directly or through others; returns the groups' positions.

    The groups do not depend on the order of the texts.
    """
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    index = QuestionIndex()
    with Progress(len(texts), "looking for duplicates", unit="questions") as progress:
        for i, text in enumerate(texts):
            for j in index.near(text):
                parent[root(i)] = root(j)
            index.add(i, text)
            progress.update()
    groups = defaultdict(list)
    for i in range(len(texts)):
        groups[root(i)].append(i)
    return list(groups.values())
