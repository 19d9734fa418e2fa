"""The choice of a token against transformers' logits processors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch
import transformers

from rrs_jax.generate import SamplingConfig, sampling
from rrs_jax.generate.sampling import candidates, next_tokens, penalised

SMALL, LARGE = 61, 1501


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """So that LARGE is searched by chunks as a real vocabulary is, and SMALL sorted."""
    for name, size in (("CHUNK", 8), ("PART", 4), ("TOP_P_CANDIDATES", 20)):
        monkeypatch.setattr(sampling, name, size)


def transformers_scores(logits: np.ndarray, prompt: np.ndarray, config: SamplingConfig) -> np.ndarray:
    """(B, V) after the processors that `generate` would build, in its order."""
    scores, prompt = torch.tensor(logits), torch.tensor(prompt)
    processors = []
    if config.repetition_penalty != 1.0:
        processors.append(transformers.RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    processors.append(transformers.TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        processors.append(transformers.TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        processors.append(transformers.TopPLogitsWarper(config.top_p))
    for processor in processors:
        scores = processor(prompt, scores)
    return scores.numpy()


def seen_of(prompt: np.ndarray, vocabulary: int) -> np.ndarray:
    seen = np.zeros((len(prompt), vocabulary), bool)
    np.put_along_axis(seen, prompt, True, axis=1)
    return seen


SETTINGS = [
    dict(top_k=7),
    dict(top_k=1),
    dict(top_k=70),
    dict(top_p=0.5),
    dict(top_p=0.95),
    dict(top_p=1e-6),
    dict(top_k=20, top_p=0.5, temperature=0.7, repetition_penalty=1.1),
    dict(top_k=50, top_p=0.9, temperature=1.7),
    dict(top_k=30, top_p=0.999, repetition_penalty=0.8),
]


@pytest.mark.parametrize("vocabulary", [SMALL, LARGE])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_is_kept_equals_transformers(settings, ties, vocabulary):
    """Logits of both signs; with ties, in steps of a half, so that equal ones stand on both sides of every
    threshold."""
    rng = np.random.default_rng(vocabulary + ties)
    logits = rng.normal(size=(6, vocabulary)).astype(np.float32) * 3
    if ties:
        logits = np.round(logits * 2) / 2
    prompt = rng.integers(0, vocabulary, (6, 40))
    prompt[:, 20:] = np.argsort(logits, axis=1)[:, -20:]  # some of the largest are seen
    config = SamplingConfig(**settings)
    expected = transformers_scores(logits, prompt, config)
    scaled = (
        penalised(jnp.asarray(logits), jnp.asarray(seen_of(prompt, vocabulary)), config) / config.temperature
    )
    kept, tokens, complete = (None if x is None else np.asarray(x) for x in candidates(scaled, config))
    found = np.full(logits.shape, -np.inf, np.float32)
    np.put_along_axis(found, tokens, kept, axis=1)
    if complete is None:
        complete = np.ones(len(logits), bool)
    if ties:  # which of the equal logits at top-p's border stay depends on torch's sorting
        found, expected = np.sort(found, axis=1), np.sort(expected, axis=1)
    np.testing.assert_allclose(found[complete], expected[complete], rtol=1e-6)
    if not ties and config.top_k:
        assert complete.all()

    # Rows with more to keep than candidates take the long way: no draw falls outside, what is likely is
    # drawn.
    draws = 48
    repeated = [
        jnp.repeat(x, draws, axis=0) for x in (jnp.asarray(logits), jnp.asarray(seen_of(prompt, vocabulary)))
    ]
    drawn = np.asarray(
        next_tokens(*repeated, jax.random.split(jax.random.key(1), 6 * draws), config)
    ).reshape(6, draws)
    scaled = np.asarray(scaled)
    least = np.where(np.isfinite(expected), expected, np.inf).min(axis=1, keepdims=True)
    assert (np.take_along_axis(scaled, drawn, axis=1) >= least - 1e-4).all()
    for row, own in enumerate(np.where(scaled >= least - 1e-4, scaled, -np.inf)):
        likely = np.flatnonzero((np.exp(own - np.logaddexp.reduce(own)) > 0.25) & (own > least[row] + 1e-4))
        assert set(likely) <= set(drawn[row])


@pytest.mark.parametrize("vocabulary", [SMALL, LARGE])
@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=0.7, top_k=20, top_p=0.5, repetition_penalty=1.3),
        dict(temperature=1.3, top_p=0.8),
        dict(top_k=12),
        dict(temperature=0.5),
    ],
    ids=str,
)
def test_a_hundred_thousand_draws_follow_transformers_probabilities(settings, vocabulary):
    """Chi-square; tokens expected fewer than five times count as one."""
    rng = np.random.default_rng(6)
    logits = rng.normal(size=(1, vocabulary)).astype(np.float32) * 2
    logits[0, :12] += 12 - 0.3 * np.arange(12)
    prompt = np.array([[3, 17, 17, 41]])
    config = SamplingConfig(**settings)
    probabilities = (
        torch.softmax(torch.tensor(transformers_scores(logits, prompt, config)), -1)[0].double().numpy()
    )
    draws, parts = 100_000, 50
    counts = np.zeros(vocabulary)
    choose = jax.jit(
        lambda keys: next_tokens(
            jnp.broadcast_to(logits, (len(keys), vocabulary)),
            jnp.broadcast_to(seen_of(prompt, vocabulary), (len(keys), vocabulary)),
            keys,
            config,
        )
    )
    for keys in jax.random.split(jax.random.key(0), draws).reshape(parts, -1):
        counts += np.bincount(np.asarray(choose(keys)), minlength=vocabulary)
    assert counts[probabilities == 0].sum() == 0
    often = probabilities * draws >= 5
    expected, found = probabilities[often] * draws, counts[often]
    if not often.all() and probabilities[~often].sum() * draws >= 5:
        expected, found = (
            np.append(expected, probabilities[~often].sum() * draws),
            np.append(found, counts[~often].sum()),
        )
    if len(found) == 1:
        assert found[0] == draws
        return
    assert scipy.stats.chisquare(found, expected * found.sum() / expected.sum()).pvalue > 1e-3


def test_a_row_draws_the_same_whatever_its_neighbours_need():
    """A neighbour with many equal logits sends the batch the long way round; this row's draw stays."""
    rng = np.random.default_rng(3)
    row = rng.normal(size=LARGE).astype(np.float32) * 3
    neighbour = np.zeros(LARGE, np.float32)
    config = SamplingConfig(top_k=20, top_p=0.9)
    keys = jax.random.split(jax.random.key(2), 2)
    seen = jnp.zeros((2, 1), bool)
    alone = [int(next_tokens(jnp.asarray([row, row]), seen, keys, config)[i]) for i in range(2)]
    beside = next_tokens(jnp.asarray([row, neighbour]), seen, keys, config)
    assert (
        int(beside[0]) == alone[0]
        and int(next_tokens(jnp.asarray([neighbour, row]), seen, keys, config)[1]) == alone[1]
    )


def test_greedy_takes_the_largest_penalised_logit_and_the_first_of_equal_ones():
    logits = np.array([[1.0, 3.0, 2.9, 3.0], [-1.0, -2.0, -1.0, -1.05]], np.float32)
    prompt = np.array([[1, 1], [0, 2]])
    config = SamplingConfig(greedy=True, repetition_penalty=1.1)
    keys = jax.random.split(jax.random.key(0), 2)
    chosen = next_tokens(jnp.asarray(logits), jnp.asarray(seen_of(prompt, 4)), keys, config)
    expected = transformers_scores(logits, prompt, config).argmax(-1)
    assert chosen.tolist() == expected.tolist() == [3, 3]


def test_overrides_of_the_released_generation_config():
    released = dict(do_sample=True, temperature=0.7, top_p=0.5, top_k=20, repetition_penalty=1.1)
    assert SamplingConfig.from_generation_config(released) == SamplingConfig(256, False, 0.7, 20, 0.5, 1.1)
    greedy = SamplingConfig.from_generation_config(released, greedy=True, max_new_tokens=8)
    assert greedy.greedy and greedy.repetition_penalty == 1.0 and greedy.max_new_tokens == 8
