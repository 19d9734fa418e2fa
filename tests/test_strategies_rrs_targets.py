"""RRS's extraction and targets against plain formulas; the model is a table of states."""

import numpy as np
import pytest
import safetensors.numpy
import torch

from rrs_jax import equations
from rrs_jax.config import default_config
from rrs_jax.config.prompts import KEPT_TASKS, PROMPT_POOL
from rrs_jax.errors import UserError
from rrs_jax.strategies import rrs
from rrs_jax.strategies.extracted import read_extracted, write_extracted
from rrs_jax.strategies.samples import Samples
from rrs_jax.strategies.variants.projection import project_out
from rrs_jax.strategies.variants.whitening import whiten

D, POOL = 6, len(PROMPT_POOL)
LABELS = ["harmful", "benign", "harmful", "benign", "benign", "harmful", "benign"]
KEPT = np.array([0, 0, 0, 0, 1, 0, 0], bool)
PAIRS = ["p", "p", "q", "q", "k", "r", "s"]  # the last question is no rewrite
CATEGORIES = ["a", "a", "b", "b", "style", "b", "b"]
HEAD = np.array([0.5, -1, 2, 0.3, -0.2, 1], np.float32)


def state(*key) -> np.ndarray:
    """Any state, the same for the same prompt."""
    seed = np.frombuffer(repr(key).encode(), np.uint8).astype(np.uint32)
    return np.random.default_rng(seed).normal(size=D).astype(np.float32) + (1.0 if "refuse" in key else 0.0)


class Frozen:
    """A model that is a table of states; a prompt is (tail tokens, what was asked, None)."""

    refusal_ids = [40]
    heads = np.zeros((50, D), np.float32)

    def __init__(self):
        self.heads[40], self.heads[41] = HEAD, HEAD[::-1]

    def prompt(self, i, text):
        return [], (int(i), text), None

    def written_prompt(self, i, text):
        return [], (int(i), "read", text), None

    def pool_prompt(self, i, place):
        return [], (int(i), "pool", place), None

    def representations(self, prompts):
        return np.stack([state(*key, *ids) for ids, key, _ in prompts])

    def answers(self, prompts, length):
        """Sample i answers with min(i, length) tokens."""
        return [[50 + i] * min(i, length) for i in range(len(prompts))]

    def first_tokens(self, states):
        return np.full(len(states), 40)

    def refusal_row(self):
        return np.asarray(equations.refusal_row(self.heads, self.refusal_ids))

    def safety_vector(self, refused, benign, *selection):
        return equations.safety_vector(refused, benign, self.heads, np.array(self.refusal_ids), *selection)

    def safety_features(self, delta, *selection):
        return equations.safety_features(delta, self.heads, np.array(self.refusal_ids), *selection)


class Work:
    """Seven samples, their config and model."""

    def __init__(self, categories=CATEGORIES, kept=KEPT, pairs=PAIRS):
        self.config, self.frozen = default_config(), Frozen()
        self.config.rrs.refusal_prompt, self.config.rrs.top_m = "refuse", 50.0
        rows = zip(LABELS, pairs, kept, categories, strict=True)
        self.samples = Samples(
            [
                {"label": label, "pair_id": pair, "category": category, "role": "keep" if keep else None}
                for label, pair, keep, category in rows
            ]
        )


@pytest.fixture
def work():
    return Work()


T = "Please generate detailed steps for the question in the audio."


def parts(work):
    harmful, benign = np.flatnonzero(work.samples.harmful), np.flatnonzero(work.samples.mirrored)
    refused = np.stack([state(i, "refuse") for i in harmful.tolist()])
    return (
        np.stack([state(i, T) for i in range(len(LABELS))]),
        refused,
        np.stack([state(i, T) for i in benign.tolist()]),
    )


def selected(delta, head=HEAD, share=0.5):
    """Equation 10 by sorting."""
    chosen = sorted(range(D), key=lambda p: -head[p] * delta[p])[: round(share * D)]
    return np.array([delta[p] if p in chosen else 0 for p in range(D)])


def built(work):
    """The strategy, with what `extract` gave as a file keeps it."""
    return rrs.build(rrs.extract(work.samples, work.frozen, work.config), work.samples, work.config)


def target(strategy, i, place=0):
    """Sample i's target under prompt `place` of the pool."""
    return strategy.examples(np.array([i]), np.array([place]))["target"][0]


def test_the_papers_targets_beside_a_kept_sample(work):
    strategy = built(work)
    original, refused, benign = parts(work)
    vector = selected(refused.mean(0) - benign.mean(0))
    for i in np.flatnonzero(~KEPT):
        np.testing.assert_allclose(
            target(strategy, i), original[i] + (1 if work.samples.harmful[i] else -1) * vector, atol=1e-6
        )
    found = strategy.examples(np.array([4, 0]), np.array([2, 1]))["target"]
    np.testing.assert_array_equal(found[0], state(4, "pool", 2))
    np.testing.assert_array_equal(found[1], target(strategy, 0))


def test_the_authors_selection_and_rounding(work):
    """Features are selected by sign, and every number of the targets is one of bfloat16."""
    work.config.rrs.top_m, work.config.rrs.top_m_rule = 51, "authors"
    work.config.rrs.target_dtype, work.config.model.dtype = "model", "bfloat16"
    original, refused, benign = (torch.tensor(part) for part in parts(work))
    delta = (refused.mean(0) - benign.mean(0)).bfloat16()
    vector = torch.where(delta * torch.tensor(HEAD).bfloat16() < 0, 0, delta)
    assert 0 < (vector == 0).sum() < D
    strategy = built(work)
    for i in (0, 1, 2, 3):
        start = original[i].bfloat16()
        expected = start + vector if LABELS[i] == "harmful" else start - vector
        np.testing.assert_array_equal(target(strategy, i), expected.float().numpy())
    work.config.model.dtype = "float32"  # nothing is rounded then
    assert (target(built(work), 0) != target(strategy, 0)).any()


def own_amount(along, harmful, refused, harmless):
    """How far a question moves, one number at a time: up to the refused states' median if harmful, else down
    to the harmless states' 95th percentile, which lies between two of them."""
    refused, harmless = sorted(refused), sorted(harmless)
    middle = (refused[(len(refused) - 1) // 2] + refused[len(refused) // 2]) / 2
    rank = 0.95 * (len(harmless) - 1)
    below = harmless[int(rank)]
    high = below + (rank - int(rank)) * (harmless[min(int(rank) + 1, len(harmless) - 1)] - below)
    return max(middle - along, 0) if harmful else -max(along - high, 0)


STAYING = {  # for the rows that are kept and rrs.read_share, the others of which the target is what they have
    ((4,), 0.0): set(),
    ((3, 4), 0.5): set(),
    ((), 0.0): {3, 4, 6},
    ((4, 6), 0.0): {1, 3},
    ((1, 6), 0.5): {3, 4},
}


@pytest.mark.parametrize("keeping, read_share", STAYING)
def test_amounts_of_their_own(keeping, read_share):
    """A question that lies where it is to be stays; of the others each one ends there."""
    kept = np.isin(np.arange(len(LABELS)), keeping)
    work = Work(kept=kept)
    work.config.rrs.amount, work.config.rrs.read_share = "own", read_share
    strategy = built(work)
    original, refused, benign = (torch.tensor(part, dtype=torch.float64) for part in parts(work))
    vector = torch.tensor(selected(refused.mean(0) - benign.mean(0)))
    unit = vector / vector.norm()
    harmless = original[kept] if keeping else benign
    read = torch.tensor(np.stack([state(i, "read", T) for i in range(len(LABELS))]), dtype=torch.float64)
    start = original + read_share * (read - original)
    staying = set()
    for i in np.flatnonzero(~kept).tolist():
        amount = own_amount(
            float(start[i] @ unit),
            LABELS[i] == "harmful",
            (refused @ unit).tolist(),
            (harmless @ unit).tolist(),
        )
        np.testing.assert_allclose(target(strategy, i), start[i] + amount * unit, atol=1e-5)
        staying |= set() if amount else {i}
    assert staying == STAYING[keeping, read_share]


def test_a_harmful_question_that_is_refused_as_surely_as_the_median_stays(work):
    """The refused states are the questions' own without the refusal prompt: the lowest goes to the middle."""
    work.config.rrs.amount = "own"
    extracted = rrs.extract(work.samples, work.frozen, work.config)
    own = extracted.content["harmful_refusal"] = extracted.content["harmful"]
    strategy = rrs.build(extracted, work.samples, work.config)
    unit = extracted.content["safety_vector"] / np.linalg.norm(extracted.content["safety_vector"])
    low, middle, high = np.argsort(own @ unit)
    moved = np.stack([target(strategy, i) for i in np.flatnonzero(work.samples.harmful)])
    np.testing.assert_allclose(moved[[middle, high]], own[[middle, high]], atol=1e-6)
    np.testing.assert_allclose(moved[low] @ unit, own[middle] @ unit, atol=1e-5)
    assert (own[middle] - own[low]) @ unit > 0.1


def test_amounts_need_a_safety_vector(work):
    work.config.rrs.amount = "own"
    extracted = rrs.extract(work.samples, work.frozen, work.config)
    extracted.content["safety_vector"] = np.zeros(D, np.float32)
    with pytest.raises(UserError, match="rrs.amount: the safety vector is 0"):
        rrs.build(extracted, work.samples, work.config)


def test_own_targets_take_the_selected_features_of_the_own_refused_state(work):
    work.config.rrs.target = "own"
    strategy = built(work)
    original, refused, benign = parts(work)
    chosen = selected(refused.mean(0) - benign.mean(0)) != 0
    for place, i in enumerate(np.flatnonzero(work.samples.harmful)):
        np.testing.assert_allclose(
            target(strategy, i), np.where(chosen, refused[place], original[i]), atol=1e-6
        )


def test_every_category_has_its_vector(work):
    work.config.rrs.target = "category"
    strategy = built(work)
    original = parts(work)[0]
    for i, (harmful, benign) in {0: ([0], [1]), 3: ([2, 5], [3, 6])}.items():
        refused = np.mean([state(j, "refuse") for j in harmful], axis=0)
        vector = selected(refused - np.mean([state(j, T) for j in benign], axis=0))
        sign = 1 if work.samples.harmful[i] else -1
        np.testing.assert_allclose(target(strategy, i), original[i] + sign * vector, atol=1e-6)
    work = Work(["a", "a", "b", "b", "style", "c", "b"])
    work.config.rrs.target = "category"
    with pytest.raises(UserError, match="harmful and benign questions of each, which c lacks"):
        rrs.extract(work.samples, work.frozen, work.config)


def test_rewrites_may_keep_what_they_have(work):
    work.config.rrs.benign_target, work.config.rrs.keep_weight = "keep", 3.0
    strategy = built(work)
    for i in np.flatnonzero(~work.samples.harmful).tolist():
        np.testing.assert_array_equal(
            strategy.examples(np.array([i]), np.array([1]))["target"][0], state(i, "pool", 1)
        )
    assert strategy.examples(np.array([1, 4]), np.array([0, 0]))["weight"].tolist() == [1, 3]
    work.config.rrs.harmful_weight = 2.0
    assert built(work).examples(np.array([0, 1, 4]), np.zeros(3, int))["weight"].tolist() == [2, 1, 3]


@pytest.mark.parametrize("audio_share", [0.0, 0.25])
def test_every_question_keeps_in_writing_what_the_frozen_model_has_there(work, audio_share):
    """The two written prompts stand behind the spoken pool, and the clip alone behind them; heard, a question
    moves as ever."""
    plain = built(work)
    work.config.train.kept_text_share, work.config.train.audio_share = 0.25, audio_share
    strategy = built(work)
    for i in range(len(LABELS)):
        for place in (POOL, POOL + 1):
            np.testing.assert_array_equal(target(strategy, i, place), state(i, "pool", place))
        heard = [*range(POOL), *([POOL + 2] if audio_share else [])]
        for place in heard if not KEPT[i] else []:
            np.testing.assert_array_equal(target(strategy, i, place), target(plain, i))
    work.config.rrs.harmful_weight, work.config.rrs.keep_weight = 4.0, 0.5
    strategy, every = built(work), np.arange(len(LABELS))
    assert strategy.examples(every, np.full(len(LABELS), POOL))["weight"].tolist() == [0.5] * len(LABELS)
    assert strategy.examples(every, np.full(len(LABELS), 0))["weight"].tolist() == [4, 1, 4, 1, 0.5, 4, 1]


@pytest.mark.parametrize("text_share", [0.0, 0.25])
def test_every_question_keeps_what_the_frozen_model_has_where_a_task_is_asked_of_its_clip(work, text_share):
    """The tasks stand behind the written prompts that stay, and the clip alone behind them."""
    plain = built(work)
    work.config.train.kept_text_share, work.config.train.kept_task_share = text_share, 0.25
    work.config.train.audio_share = 0.25
    strategy, first = built(work), POOL + (2 if text_share else 0)
    stay = [*range(POOL, first + len(KEPT_TASKS))]
    for i in range(len(LABELS)):
        for place in stay:
            np.testing.assert_array_equal(target(strategy, i, place), state(i, "pool", place))
        for place in [*range(POOL), stay[-1] + 1] if not KEPT[i] else []:
            np.testing.assert_array_equal(target(strategy, i, place), target(plain, i))
    work.config.rrs.harmful_weight, work.config.rrs.keep_weight = 4.0, 0.5
    strategy, every = built(work), np.arange(len(LABELS))
    for place in stay:
        assert strategy.examples(every, np.full(len(LABELS), place))["weight"].tolist() == [0.5] * len(LABELS)


def test_written_questions_that_all_keep_are_extracted_once(work):
    work.config.train.kept_text_share, work.config.rrs.benign_target = 0.25, "keep"
    extracted = rrs.extract(work.samples, work.frozen, work.config)
    assert extracted.content["staying"].shape == (3, 2, D)  # the harmful ones; the others' are kept_prompts
    strategy = rrs.build(extracted, work.samples, work.config)
    for i in range(len(LABELS)):
        np.testing.assert_array_equal(target(strategy, i, POOL + 1), state(i, "pool", POOL + 1))


def test_targets_start_on_the_way_from_what_is_heard_to_what_is_read(work):
    """The safety vector stays that of heard questions."""
    work.config.rrs.read_share = 0.75
    strategy = built(work)
    original, refused, benign = parts(work)
    vector = selected(refused.mean(0) - benign.mean(0))
    for i in np.flatnonzero(~KEPT).tolist():
        start = 0.25 * original[i] + 0.75 * state(i, "read", T)
        np.testing.assert_allclose(
            target(strategy, i), start + (1 if work.samples.harmful[i] else -1) * vector, atol=1e-6
        )
    for place in range(POOL):
        found = strategy.examples(np.array([4]), np.array([place]))["target"][0]
        expected = 0.25 * state(4, "pool", place) + 0.75 * state(4, "read", PROMPT_POOL[place])
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_losses_count_by_the_kind_of_question_and_by_whether_it_is_only_heard(work):
    every, last = np.arange(len(LABELS)), np.full(len(LABELS), POOL - 1)
    assert "weight" not in built(work).examples(every, last)
    work.config.rrs.harmful_weight, work.config.rrs.rewrite_weight, work.config.rrs.keep_weight = (
        4.0,
        2.0,
        0.5,
    )
    work.config.rrs.harmful_audio_weight = 9.0
    assert built(work).examples(every, last)["weight"].tolist() == [4, 2, 4, 2, 0.5, 4, 1]
    work.config.train.audio_share = 0.25  # the last prompt is the clip alone
    strategy = built(work)
    assert strategy.examples(every, last + 1)["weight"].tolist() == [9, 2, 9, 2, 0.5, 9, 1]
    assert strategy.examples(every, last)["weight"].tolist() == [4, 2, 4, 2, 0.5, 4, 1]


def test_harmful_questions_count_less_the_more_they_look_like_harmless_ones_of_other_pairs(work):
    """Beside the other weights, and not in writing that is kept; the twin does not count."""
    work.config.rrs.overlap_weight, work.config.rrs.harmful_weight = 0.6, 4.0
    work.config.train.kept_text_share = 0.25
    centred = torch.tensor(parts(work)[0], dtype=torch.float64)
    centred = centred - centred.mean(0)
    expected = []
    for i, label in enumerate(LABELS):
        others = [j for j in range(len(LABELS)) if LABELS[j] == "benign" and PAIRS[j] != PAIRS[i]]
        likeness = max(float(torch.cosine_similarity(centred[i], centred[j], dim=0)) for j in others)
        expected.append(4 * (1 - 0.6 * max(likeness, 0)) if label == "harmful" else 1)
    assert min(expected) < 3 and len({*expected}) > 3
    strategy, every = built(work), np.arange(len(LABELS))
    found = strategy.examples(every, np.zeros(len(LABELS), int))["weight"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert strategy.examples(every, np.full(len(LABELS), POOL))["weight"].tolist() == [1] * len(LABELS)
    labels = ["harmful", "benign"]
    lone = Samples([{"label": label, "pair_id": "p", "category": "a"} for label in labels])
    with pytest.raises(UserError, match="rrs.overlap_weight: compares a harmful question with the harmless"):
        rrs.extract(lone, work.frozen, work.config)


def test_the_hinge_measures_logits_along_the_safety_vector(work):
    work.config.rrs.benign_target, work.config.rrs.margin = "hinge", 2.5
    strategy = built(work)
    _, refused, benign = parts(work)
    vector = selected(refused.mean(0) - benign.mean(0))
    assert strategy.inner.token_ids == (40,) and strategy.inner.margin == 2.5
    scale = np.linalg.norm(vector) / (HEAD @ vector)
    found = strategy.examples(np.arange(len(LABELS)), np.zeros(len(LABELS), int))["hinge_scale"]
    np.testing.assert_allclose(found, np.where(work.samples.mirrored, scale, 0), rtol=1e-5)
    extracted = rrs.extract(work.samples, work.frozen, work.config)
    extracted.content["head_row"] = -extracted.content["head_row"]
    with pytest.raises(UserError, match="does not raise the refusal token's logit"):
        rrs.build(extracted, work.samples, work.config)


def test_several_refusal_tokens_have_their_mean_row(work):
    work.frozen.refusal_ids, work.config.rrs.refusal_tokens = [40, 41], ("I", "Sorry")
    strategy = built(work)
    original, refused, benign = parts(work)
    vector = selected(refused.mean(0) - benign.mean(0), (HEAD + HEAD[::-1]) / 2)
    np.testing.assert_allclose(target(strategy, 0), original[0] + vector, atol=1e-6)


def test_following_positions_keep_the_frozen_models_own_way_on(work):
    """Tails as long as the answers: sample i has min(i, 2) tokens."""
    work.config.rrs.positions, work.config.rrs.benign_target = 3, "keep"
    strategy = built(work)
    assert strategy.tails == [[[50 + i] * min(i, 2)] for i in range(7)]
    every = strategy.examples(np.arange(7), np.zeros(7, int))
    assert every["positions"].sum(1).tolist() == [1, 2, 3, 3, 3, 3, 3]
    np.testing.assert_allclose(target(strategy, 2)[1], state(2, "refuse", 52))
    np.testing.assert_allclose(target(strategy, 2)[2], state(2, "refuse", 52, 52))
    found = strategy.examples(np.array([6, 2]), np.array([1, 0]))
    np.testing.assert_allclose(found["target"][0], [state(6, "pool", 1, *[56] * n) for n in range(3)])
    np.testing.assert_allclose(found["target"][1], target(strategy, 2))
    assert found["tail"].tolist() == [2, 2]


@pytest.mark.parametrize("pairs", ["ppqqkrs", "pppqkqs"])  # of the second p has two harmful questions
def test_the_direction_of_twins(pairs):
    """A pair counts once, whatever it has of each kind; the length and the selection are as ever."""
    work = Work(pairs=pairs)
    work.config.rrs.direction = "twins"
    original, refused, benign = (torch.tensor(part, dtype=torch.float64) for part in parts(work))
    twins = {pair: [i for i in range(len(LABELS)) if pairs[i] == pair] for pair in pairs}
    changes = []
    for members in twins.values():
        harmful = [i for i in members if LABELS[i] == "harmful"]
        rewrites = [i for i in members if LABELS[i] == "benign"]
        if harmful and rewrites:
            changes.append(original[harmful].mean(0) - original[rewrites].mean(0))
    change = torch.stack(changes).mean(0)
    length = (refused.mean(0) - benign.mean(0)).norm()
    vector, original = selected((change / change.norm() * length).numpy()), original.numpy()
    strategy = built(work)
    for i in np.flatnonzero(~KEPT).tolist():
        sign = 1 if LABELS[i] == "harmful" else -1
        np.testing.assert_allclose(target(strategy, i), original[i] + sign * vector, atol=1e-5)


def test_the_direction_of_twins_needs_some():
    work = Work(pairs="abcdefg")
    work.config.rrs.direction = "twins"
    with pytest.raises(UserError, match="rrs.direction: twins needs harmful questions with rewrites"):
        rrs.extract(work.samples, work.frozen, work.config)


@pytest.mark.parametrize("field, value", [("whiten", 0.3), ("project", 2)])
def test_the_vector_is_turned_before_features_are_chosen(work, field, value):
    work.config.rrs[field] = value
    strategy = built(work)
    original, refused, benign = parts(work)
    all_benign = np.concatenate([benign, original[KEPT]])
    delta = refused.mean(0) - benign.mean(0)
    turned = whiten(delta, all_benign, value) if field == "whiten" else project_out(delta, all_benign, value)
    np.testing.assert_allclose(target(strategy, 0), original[0] + selected(turned), atol=1e-5)


def test_whitening_and_projection():
    rng = np.random.default_rng(0)
    benign = rng.normal(size=(40, D)) * [9, 5, 1, 1, 0.5, 0.1] + 3
    delta = rng.normal(size=D).astype(np.float32)
    covariance = np.cov(benign, rowvar=False)
    shrunk = 0.7 * covariance + 0.3 * np.eye(D) * np.trace(covariance) / D
    direction = np.linalg.inv(shrunk) @ delta
    turned = whiten(delta, benign, 0.3)
    np.testing.assert_allclose(
        turned, direction / np.linalg.norm(direction) * np.linalg.norm(delta), rtol=1e-4
    )
    np.testing.assert_allclose(
        whiten(delta, benign, 1.0), delta, rtol=1e-5
    )  # nothing but the identity is left
    values, vectors = np.linalg.eigh(covariance)
    top = vectors[:, np.argsort(values)[-2:]]
    left = project_out(delta, benign, 2)
    np.testing.assert_allclose(left, delta - top @ (top.T @ delta), atol=1e-5)
    np.testing.assert_allclose(top.T @ left, 0, atol=1e-5)


def test_the_papers_rrs_has_nothing_around_it():
    """The defaults, without kept samples, give the class with the paper's attributes alone."""
    labels = ["harmful", "benign"]
    samples = Samples([{"label": label, "pair_id": "p", "category": "a"} for label in labels])
    config = default_config()
    extracted = rrs.extract(samples, Frozen(), config)
    assert type(rrs.build(extracted, samples, config)) is rrs.RRS
    assert set(extracted.content) == {
        "harmful", "harmful_refusal", "benign", "head_row", "delta_mean", "contribution", "safety_vector",
    }  # fmt: skip


def test_premise_counts_first_tokens(work):
    facts = rrs.extract(work.samples, work.frozen, work.config).facts
    assert facts["first_token_percent"] == {"harmful_refusal_prompt": 100, "harmful": 100, "benign": 100}
    work.frozen.first_tokens = lambda states: np.where(np.arange(len(states)) == 0, 40, 41)
    shares = rrs.extract(work.samples, work.frozen, work.config).facts["first_token_percent"]
    assert shares == {"harmful_refusal_prompt": 33.3, "harmful": 33.3, "benign": 33.3}


def test_a_file_gives_what_was_written_or_is_refused(work, tmp_path):
    extracted = rrs.extract(work.samples, work.frozen, work.config)
    path = tmp_path / "representations.safetensors"
    write_extracted(path, extracted)
    again = read_extracted(path)
    assert again.metadata == extracted.metadata and again.metadata["refusal_token_id"] == "40"
    assert {name: array.dtype for name, array in again.content.items()} == {
        name: array.dtype for name, array in safetensors.numpy.load_file(path).items()
    }
    for name, array in extracted.content.items():
        np.testing.assert_array_equal(again.content[name], array)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="is no safetensors file"):
        read_extracted(path)


@pytest.mark.parametrize("lost", ["benign", "staying", "kept_prompts", "read", "refusal_token_ids"])
def test_a_file_of_another_version_is_told_by_what_it_lacks(work, tmp_path, lost):
    """An earlier version wrote the states of prompts that stay as `kept_text`."""
    work.config.train.kept_text_share, work.config.rrs.read_share = 0.25, 0.5
    work.config.rrs.benign_target = "hinge"
    extracted = rrs.extract(work.samples, work.frozen, work.config)
    path = tmp_path / "representations.safetensors"
    write_extracted(path, extracted)
    rrs.build(read_extracted(path), work.samples, work.config)
    named = extracted.content if lost in extracted.content else extracted.metadata
    named["kept_text"] = named.pop(lost)
    write_extracted(path, extracted)
    with pytest.raises(UserError) as told:
        rrs.build(read_extracted(path), work.samples, work.config)
    assert str(told.value) == (
        f"{path}: holds no {lost}, which this version reads; delete it and run the stage extract again."
    )
