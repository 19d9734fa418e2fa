"""Choice of the pairs to train on: none that is evaluated on, less a part that is held out by text."""

from collections import defaultdict
from collections.abc import Sequence

from rrs_jax.data.authors_questions import AuthorsPair
from rrs_jax.data.duplicates import QuestionIndex, near_groups
from rrs_jax.data.questions import unspeakable, words
from rrs_jax.errors import UserError
from rrs_jax.files import content_hash


def leave_out(
    pairs: Sequence[AuthorsPair], evaluation: Sequence[tuple[str, str]]
) -> tuple[list[AuthorsPair], list[tuple[int, str]]]:
    """Leaves out pairs of which a question nearly is an evaluation question, or has no recording and cannot
    be spoken.

    evaluation: (where it stands, question) of every evaluation question. Returns the pairs that stay, and the
    row and the reason of each of the others. Raises UserError where none stays.
    """
    index = QuestionIndex((entry, entry[1]) for entry in evaluation)
    kept, left = [], []
    for pair in pairs:
        if reason := _reason(pair, index):
            left.append((pair.row, reason))
        else:
            kept.append(pair)
    if not kept:
        raise UserError(
            "The authors' questions: all pairs are left out, since they stand in the evaluation sets or"
            " cannot be spoken; give other evaluation questions (data.exclude, --exclude)."
        )
    return kept, left


def text_groups(pairs: Sequence[AuthorsPair]) -> list[int]:
    """A group's number for every pair: pairs are in one group where a question of one is, or nearly is, a
    question of the other, or where their recordings have one path, directly or through others."""
    members = [(place, text) for place, pair in enumerate(pairs) for text in pair.questions.values()]
    linked = [[members[i][0] for i in near] for near in near_groups([text for _, text in members])]
    by_path = defaultdict(list)
    for place, pair in enumerate(pairs):
        by_path[pair.path].append(place)
    groups = list(range(len(pairs)))

    def root(place: int) -> int:
        while groups[place] != place:
            place = groups[place]
        return place

    for together in (*linked, *by_path.values()):
        for place in together:
            groups[root(place)] = root(together[0])
    return [root(place) for place in range(len(pairs))]


def split_by_text(
    pairs: Sequence[AuthorsPair], share: float, seed: int
) -> tuple[list[AuthorsPair], list[AuthorsPair]]:
    """Draws about `share` (0 to 1) of the pairs as held-out ones, in whole groups of `text_groups`.

    Returns training and held-out pairs, each in the file's order: no question of one side is nearly one of
    the other. Raises UserError where a side that was asked for would be empty.
    """
    groups = text_groups(pairs)
    sizes = {group: groups.count(group) for group in groups}
    wanted, held = round(share * len(pairs)), set()
    # By the words of a group's first question, so that rows left out elsewhere move no other group.
    drawn = sorted(sizes, key=lambda group: content_hash(seed, words(pairs[group].questions["harmful"])))
    for group in drawn:
        if sizes[group] <= wanted:
            held.add(group)
            wanted -= sizes[group]
    sides = [], []
    for pair, group in zip(pairs, groups, strict=True):
        sides[group in held].append(pair)
    if not sides[0] or (share and not sides[1]):
        raise UserError(
            f"--held_out: {share:g} of {len(pairs)} pairs leaves a side without questions; give another."
        )
    return sides


def _reason(pair: AuthorsPair, evaluation: QuestionIndex) -> str | None:
    for label, question in pair.questions.items():
        for place, near in evaluation.near(question)[:1]:
            return f"{question!r} " + (
                f"stands in {place}" if near == question else f"nearly is {near!r} of {place}"
            )
        if pair.clips[label] is None and (fault := unspeakable(question)):
            return f"{question!r} has no recording and cannot be spoken: {fault}"
    return None
