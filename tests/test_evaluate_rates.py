"""Rates and their intervals against SciPy and resampling, NSI as the paper prints it."""

import numpy as np
import pytest
import scipy.stats

from rrs_jax.evaluate import nsi, rate_over_queries
from rrs_jax.evaluate.rates import interval, wilson


def test_rate_counts():
    rate = rate_over_queries([5, 0, 2, 0], [5, 5, 5, 0])
    assert (rate.queries, rate.responses, rate.events) == (3, 15, 7)
    assert rate.rate == pytest.approx(100 * 7 / 15, abs=1e-4)
    assert rate.any_rate == pytest.approx(100 * 2 / 3, abs=1e-4)


def test_rate_without_responses_is_none_not_zero():
    rate = rate_over_queries([], [])
    assert (rate.rate, rate.ci95, rate.any_rate, rate.queries) == (None, None, None, 0)


def test_rate_refuses_impossible_counts():
    with pytest.raises(ValueError, match="more events than responses"):
        rate_over_queries([6], [5])
    with pytest.raises(ValueError, match="equally long"):
        rate_over_queries([1, 1], [5])


@pytest.mark.parametrize("samples", [1, 5])
def test_bootstrap_against_plain_resampling_of_queries(samples):
    generator = np.random.default_rng(3)
    events = generator.binomial(samples, generator.beta(0.6, 1.0, 100))
    low, high = interval(events, np.full(100, samples))
    drawn = events[np.random.default_rng(4).integers(0, 100, (20_000, 100))].mean(axis=1) / samples
    # With one response each the rates are whole percents.
    assert low == pytest.approx(np.quantile(drawn, 0.025), abs=0.011)
    assert high == pytest.approx(np.quantile(drawn, 0.975), abs=0.011)


def test_responses_of_one_query_do_not_count_as_independent():
    # 60 queries whose five responses agree: as wide as 60 responses, not as 300.
    all_or_none = np.repeat([5, 0], 30)
    low, high = interval(all_or_none, np.full(60, 5))
    one_each = interval(all_or_none // 5, np.ones(60, dtype=int))
    assert high - low == pytest.approx(one_each[1] - one_each[0], abs=0.01)
    naive = scipy.stats.binomtest(150, 300).proportion_ci(method="wilson")
    assert high - low > 2 * (naive.high - naive.low)


def test_unequal_numbers_of_responses():
    events, responses = np.tile([1, 0, 3], 20), np.tile([1, 2, 4], 20)
    low, high = interval(events, responses)
    picks = np.random.default_rng(5).integers(0, 60, (20_000, 60))
    drawn = events[picks].sum(axis=1) / responses[picks].sum(axis=1)
    np.testing.assert_allclose([low, high], np.quantile(drawn, [0.025, 0.975]), atol=0.008)


@pytest.mark.parametrize(("hits", "trials"), [(0, 140), (140, 140), (3, 140), (1, 7), (50, 60)])
def test_wilson_against_scipy(hits, trials):
    expected = scipy.stats.binomtest(hits, trials).proportion_ci(method="wilson")
    np.testing.assert_allclose(wilson(hits / trials, trials), (expected.low, expected.high), atol=1e-12)


@pytest.mark.parametrize("events", [[0] * 30, [5] * 30, [2] * 30, [0] * 29 + [1], [3]])
def test_interval_is_never_empty(events):
    rate = rate_over_queries(events, [5] * len(events))
    low, high = rate.ci95
    assert 0 <= low <= rate.rate <= high <= 100
    assert high - low > 3
    trials = len(events)
    expected = scipy.stats.binomtest(0, trials).proportion_ci(method="wilson").high
    if not any(events):
        assert high == pytest.approx(100 * expected, abs=1e-3)


def test_interval_covers_a_planted_truth():
    # 95 % of 200 draws is 190; three standard deviations are 9. Queries differ (beta), five responses each.
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        events = generator.binomial(5, generator.beta(0.5, 1.5, 100))
        low, high = interval(events, np.full(100, 5))
        covered += low <= 0.25 <= high
    assert 181 <= covered <= 199


def test_interval_is_reproducible():
    events = np.random.default_rng(1).integers(0, 6, 50)
    assert interval(events, np.full(50, 5)) == interval(events, np.full(50, 5))


# Tables 2 and 3: ASR audio-text, text-only, audio-only (None: N/A), ORR; NSI per mode (table 3 only) and
# average.
VANILLA = {
    "Qwen-Audio": (56.65, 19.49, None, 1.14),
    "Qwen2-Audio": (28.11, 10.93, 6.17, 1.31),
    "Qwen2.5-Omni": (10.0, 13.09, 8.63, 1.66),
}


PRINTED = [
    ("Qwen-Audio", (24.86, 36.29, None, 0.40), None, 8.24),
    ("Qwen-Audio", (7.60, 3.77, None, 7.83), (42.36, 9.03, None), 25.70),
    ("Qwen-Audio", (2.11, 1.77, None, 18.06), None, 19.21),
    ("Qwen-Audio", (0.34, 1.26, None, 85.49), None, -47.08),
    ("Qwen-Audio", (7.54, 0.46, None, 2.51), (47.74, 17.66, None), 32.70),
    ("Qwen-Audio", (6.86, 0.74, None, 4.46), (46.47, 15.43, None), 30.95),
    ("Qwen2-Audio", (19.66, 36.11, 19.83, 0.74), None, -9.56),
    ("Qwen2-Audio", (2.63, 1.43, 1.31, 10.11), (16.68, 0.70, -3.94), 4.48),
    ("Qwen2-Audio", (1.94, 1.03, 0.86, 16.63), None, -1.53),
    ("Qwen2-Audio", (2.51, 1.31, 1.43, 16.69), None, -2.06),
    ("Qwen2-Audio", (5.94, 2.80, 2.40, 2.06), (21.42, 7.38, 3.02), 10.61),
    ("Qwen2-Audio", (5.43, 2.63, 2.57, 9.14), (14.85, 0.47, -4.23), 3.70),
    ("Qwen2.5-Omni", (34.0, 24.0, 12.74, 0.29), None, -11.64),
    ("Qwen2.5-Omni", (2.23, 2.57, 1.54, 6.17), (3.26, 6.01, 2.58), 3.95),
    ("Qwen2.5-Omni", (0.80, 1.66, 1.09, 8.00), None, 3.05),
    ("Qwen2.5-Omni", (1.94, 2.97, 2.46, 34.23), None, -24.45),
    ("Qwen2.5-Omni", (2.06, 2.69, 1.66, 2.17), (7.43, 9.89, 6.46), 7.93),
    ("Qwen2.5-Omni", (1.77, 3.37, 2.40, 2.91), (6.98, 8.47, 4.98), 6.81),
]


MODES = ("audio_text", "text_only", "audio_only")


def printed_summary(values):
    *rates, orr = values
    modes = {mode: None if rate is None else {"asr": rate} for mode, rate in zip(MODES, rates, strict=True)}
    return {"modes": modes, "orr": {"rate": orr}}


@pytest.mark.parametrize(("model", "rates", "per_mode", "average"), PRINTED)
def test_nsi_as_the_paper_prints_it(model, rates, per_mode, average):
    values = nsi(printed_summary(VANILLA[model]), printed_summary(rates))
    assert values["average"] == pytest.approx(average, abs=0.0101)
    for mode, expected in zip(MODES, per_mode or (), strict=False):
        assert values[mode] == (None if expected is None else pytest.approx(expected, abs=0.0101))


def test_nsi_needs_an_over_rejection_rate():
    tuned = printed_summary((7.5, 0.5, None, 2.5))
    assert nsi({**tuned, "orr": None}, tuned) is None
    assert nsi(printed_summary((None, None, 1.0, 1.0)), tuned) is None
