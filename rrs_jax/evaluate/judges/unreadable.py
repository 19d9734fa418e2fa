"""Judges whose replies cannot be read: how many are too many, and what to do about them."""

from collections.abc import Sequence

from rrs_jax.data.reasoning import answer_of
from rrs_jax.errors import UserError

MOST_UNREADABLE = 0.1  # share of a judge's replies
LETTERS = 160  # of a reply that a message shows
NOT_ASKED = ("empty", "unfinished", "unlabelled")  # kinds of responses that no judge was asked about


def check_readable(judgements: Sequence[dict]) -> None:
    """Raises UserError, with an example, for judges more than one in ten of whose replies cannot be read.

    `judgements` are rows as `judge_responses` returns them.
    """
    faults = []
    for judge in dict.fromkeys(row["judge"] for row in judgements):
        own = [row for row in judgements if row["judge"] == judge]
        if too_many_unreadable(own):
            replies = [row for row in own if row["kind"] not in NOT_ASKED]
            unreadable = [row for row in own if row["kind"] == "unreadable"]
            said = unreadable_sentence(len(unreadable), len(replies), unreadable[0].get("reply"))
            faults.append(f"judge {judge}: {said}")
    if faults:
        raise UserError(
            " ".join(faults) + " The other verdicts are kept, and the same command asks for these alone."
        )


def too_many_unreadable(judgements: Sequence[dict]) -> bool:
    """Returns whether more than one in ten replies of the one judge of these rows cannot be read."""
    kinds = [row["kind"] for row in judgements if row["kind"] not in NOT_ASKED]
    return kinds.count("unreadable") > MOST_UNREADABLE * len(kinds)


def unreadable_sentence(unreadable: int, replies: int, example: str | None) -> str:
    """Returns how many replies cannot be read, one of them, and what to do."""
    share = f"{unreadable} of {replies} verdicts cannot be read"
    return f"{share}, such as {shown_reply(example)}. {advice(example)}"


def shown_reply(reply: str | None) -> str:
    """Returns a reply as a message shows it: on one line, and cut."""
    said = " ".join((reply or "").split())
    return repr(said if len(said) <= LETTERS else said[:LETTERS] + " ...")


def ended_early(reply: str | None) -> bool:
    """Returns whether a reply ended before it said anything but thoughts."""
    return not (answer_of(reply or "") or "").strip()


def advice(reply: str | None) -> str:
    """Returns what to do about replies of this kind."""
    if ended_early(reply):
        return (
            "It ended before the verdict: give the judge more tokens for a reply (max tokens, or the limit of"
            " its thoughts, at its server), or take one that thinks less."
        )
    return "Take a judge, or a rubric, whose replies can be read."
