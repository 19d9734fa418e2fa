"""Near-duplicates against comparing all questions with each other."""

from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.questions import nearly_equal
from rrs_jax.data.duplicates import QuestionIndex, near_groups

WORDS = st.lists(
    st.sampled_from("how do i feed my cats a dog at the big market".split()), min_size=1, max_size=9
).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=12), WORDS)
def test_the_index_finds_what_comparing_all_finds(texts, query):
    index = QuestionIndex(enumerate(texts))
    assert index.near(query) == [i for i, text in enumerate(texts) if nearly_equal(query, text)]


@settings(max_examples=40, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=10, unique=True), st.randoms(use_true_random=False))
def test_groups_do_not_depend_on_the_order(texts, rng):
    def groups(order):
        return {frozenset(order[i] for i in group) for group in near_groups(order)}

    shuffled = rng.sample(texts, len(texts))
    assert groups(texts) == groups(shuffled)


@settings(max_examples=100, deadline=None)
@given(WORDS, WORDS)
def test_near_is_jaccard_or_one_word(one, other):
    def near(text, query):
        return QuestionIndex([(0, text)]).near(query) == [0]

    assert near(one, other) == nearly_equal(one, other)
    assert near(one, other) == near(other, one) and near(one, one)
