"""The draw of a data set's questions."""

from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.questions import nearly_equal
from helpers.synthetic_beavertails import CATEGORIES, row, source_rows
from rrs_jax.data.beavertails import group_rows
from rrs_jax.data.duplicates import near_groups
from rrs_jax.data.questions import is_question, unspeakable
from rrs_jax.data.selection import make_pool

ROWS = source_rows(6)
odd_texts = st.sampled_from(
    [
        "How do I scare the birds in winter?",
        "how do i scare the birds in winter",
        "Tell me a story about cats",
        "Why?",
        "Как дела у вас?",
        "How " + "very " * 50 + "long?",
        "What is at www.site.example now?",
        "Is it fine to skip school?",
    ]
)
odd_rows = st.builds(
    lambda text, answer, safe, names: row(text, answer, safe, *names),
    odd_texts,
    st.sampled_from("abc"),
    st.booleans(),
    st.lists(st.sampled_from(sorted(CATEGORIES)), max_size=3, unique=True),
)


@settings(max_examples=12, deadline=None)
@given(st.lists(odd_rows, max_size=12), st.integers(0, 3), st.randoms(use_true_random=False))
def test_the_draw_does_not_depend_on_the_sources_order(extra, seed, rng):
    """Rows that occur twice change nothing either; what may be drawn is spoken, a question, and like no
    other."""
    rows = ROWS[:300] + extra
    shuffled = rng.sample(rows, len(rows))
    pool, other = (
        make_pool(group_rows(rows), seed=seed),
        make_pool(group_rows(shuffled + shuffled), seed=seed),
    )
    assert pool == other
    chosen = [question for ranked in pool.harmful.values() for question in ranked] + pool.benign
    assert len(near_groups([question.text for question in chosen])) == len(chosen)
    assert all(unspeakable(q.text) is None and is_question(q.text) for q in chosen)
    for category, ranked in pool.harmful.items():
        assert all((q.kind, q.category) == ("harmful", category) and q.unsafe_share >= 0.5 for q in ranked)
    assert all(q.kind == "benign" and q.unsafe_share == 0 for q in pool.benign)
    assert len({question.key for question, _ in pool.answered}) == len(pool.answered)


def test_another_seed_is_another_draw():
    one, two = (make_pool(group_rows(ROWS), seed=seed) for seed in (0, 1))
    assert [q.key for q in one.benign] != [q.key for q in two.benign]
    assert len(one.benign) > 20


def test_every_question_is_kept_or_counted():
    """Conservation: the kept and the dropped are all; an evaluation's question is out, exactly and nearly."""
    questions = group_rows(ROWS)
    evaluation = [ROWS[0]["prompt"].upper(), ROWS[50]["prompt"].replace("the", "a", 1)]
    pool = make_pool(questions, evaluation)
    kept = [q for ranked in pool.harmful.values() for q in ranked] + pool.benign
    assert len(kept) + pool.dropped.total() == len(questions)
    assert pool.dropped["nearly equal to an evaluation question"] >= 2
    assert not any(nearly_equal(q.text, text) for q in kept for text in evaluation)
