"""Agreement of judges: Cohen's kappa of every pair, for each label."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from rrs_jax.evaluate.judges.judge import Judge
from rrs_jax.evaluate.rates import RESAMPLES


def agreement(judgements: Sequence[dict], judges: Sequence[Judge], seed: int = 0) -> list[dict]:
    """Compares each pair of judges on each label that both see, over the responses that both labelled.

    Returns a list of {"judges": [a, b], "label", "kappa", "ci95", "agree" (percent), "yes" (percent by each),
    "responses"}. kappa is null where it is not defined: no response in common, or both judges say the same of
    all. ci95: bootstrap over queries, as for rates.
    """
    labels = {judge.name: {} for judge in judges}
    for row in judgements:
        if row["judge"] in labels:
            labels[row["judge"]][(row["set"], row["id"], row["mode"], row["sample"])] = row
    found = []
    for first, second in combinations(judges, 2):
        for label in ("refusal", "harmful"):
            if label in first.sees and label in second.sees:
                pairs = [
                    (key, row[label], labels[second.name][key][label])
                    for key, row in labels[first.name].items()
                    if key in labels[second.name]
                ]
                pairs = [pair for pair in pairs if pair[1] is not None and pair[2] is not None]
                found.append({"judges": [first.name, second.name], "label": label} | _block(pairs, seed))
    return found


def cohens_kappa(table: np.ndarray) -> float | None:
    """Returns kappa of a (2, 2) table of counts; None where chance alone would agree on everything."""
    table = np.asarray(table, np.float64)
    total = table.sum()
    if not total:
        return None
    observed = np.trace(table) / total
    chance = (table.sum(axis=0) @ table.sum(axis=1)) / total**2
    return None if chance == 1 else float((observed - chance) / (1 - chance))


def _block(pairs: Sequence[tuple], seed: int) -> dict:
    queries = {query: place for place, query in enumerate(dict.fromkeys(key[:2] for key, _, _ in pairs))}
    tables = np.zeros((len(queries), 4))
    for key, a, b in pairs:
        tables[queries[key[:2]], 2 * bool(a) + bool(b)] += 1
    table = tables.sum(axis=0).reshape(2, 2)
    kappa = cohens_kappa(table)
    block = {"kappa": kappa if kappa is None else round(kappa, 4), "ci95": None, "agree": None, "yes": None}
    if pairs:
        block["agree"] = round(100 * float(np.trace(table)) / len(pairs), 4)
        block["yes"] = [
            round(100 * float(table[1].sum()) / len(pairs), 4),
            round(100 * float(table[:, 1].sum()) / len(pairs), 4),
        ]
    if kappa is not None:
        kinds, count = np.unique(tables, axis=0, return_counts=True)
        drawn = np.random.default_rng(seed).multinomial(len(queries), count / count.sum(), size=RESAMPLES)
        values = [cohens_kappa(t.reshape(2, 2)) for t in drawn @ kinds]
        known = [value for value in values if value is not None]
        block["ci95"] = [round(float(bound), 4) for bound in np.quantile(known, [0.025, 0.975])]
    return block | {"responses": len(pairs)}
