"""How often the 95 % intervals of rates hold a planted truth: `python benchmarks/interval_coverage.py
[DRAWS]`.

Questions' chances are beta-distributed around the true rate; `icc` is how alike the answers to one question
are (0:
independent, 1: all the same). Each cell is DRAWS evaluations (default 2000; its standard error is then 0.5
  points).
Prints Markdown: coverage and mean width of ours, beside the plain percentile bootstrap and Wilson over all
responses, which takes answers to one question for independent.
"""

import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from rrs_jax.evaluate.rates import bootstrap, interval, wilson

QUERIES, SAMPLES, RATES, ICC = (50, 140, 350), (1, 5), (0.01, 0.03, 0.1, 0.3, 0.6, 0.97), (0.2, 0.5, 0.8)


def cell(task: tuple) -> tuple:
    """(queries, samples, rate, icc, and for each method the coverage and the mean width in percent)."""
    queries, samples, rate, icc, draws, seed = task
    rng = np.random.default_rng(seed)
    strength = (1 - icc) / icc
    responses = np.full(queries, samples)
    methods = {
        "ours": interval,
        "bootstrap": lambda k, n: bootstrap(k, n, 0),
        "naive": lambda k, n: wilson(k.sum() / n.sum(), int(n.sum())),
    }
    found = np.zeros((len(methods), 2))
    for _ in range(draws):
        events = rng.binomial(samples, rng.beta(rate * strength, (1 - rate) * strength, queries))
        for row, method in enumerate(methods.values()):
            low, high = method(events, responses)
            found[row] += low <= rate <= high, high - low
    return (queries, samples, rate, icc, *(100 * found / draws))


def main(draws: int) -> None:
    tasks = [
        (queries, samples, rate, icc, draws, seed)
        for seed, (queries, samples, rate, icc) in enumerate(
            (q, s, r, i) for q in QUERIES for s in SAMPLES for r in RATES for i in (ICC if s > 1 else (0.5,))
        )
    ]
    print(
        "| questions | answers each | rate % | icc | ours | width | bootstrap | width | naive Wilson |"
        " width |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    coverage = []
    with ProcessPoolExecutor() as pool:
        for queries, samples, rate, icc, *results in pool.map(cell, tasks):
            shown = " | ".join(f"{covered:.1f} | {width:.1f}" for covered, width in results)
            print(
                f"| {queries} | {samples} | {100 * rate:g} | {icc if samples > 1 else '-'} | {shown} |",
                flush=True,
            )
            coverage.append(results[0][0])
    coverage = np.array(coverage)
    inside = np.mean(np.abs(coverage - 95) <= 2)
    print(
        f"\nOurs: mean {coverage.mean():.1f} %, lowest {coverage.min():.1f} %, highest {coverage.max():.1f}"
        f" %; {100 * inside:.0f} % of {len(coverage)} cells within 95 ± 2."
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2_000)
