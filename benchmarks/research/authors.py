"""The mini by the authors' settings and by the equations as printed, on the starter set and on their pairs.

    python launch.py --config=configs/mini_rrs.py:full --sweep=benchmarks/research/authors.py \\
        --sweep_jobs=4 --config.run_dir=runs/authors --config.data.manifest=RRS

`RRS` is a clone of the authors' repository (docs/authors.md); without it, only the starter set's runs are
done. Three seeds each, on one card. All are asked the starter set's other questions (`data.eval_set=check`)
in all three modes, harmless ones too; `metrics.jsonl` of a run has the course of data term and penalty.

| runs | settings |
|---|---|
| `authors` | those of the authors' program (`rrs_jax.config.variants.authors`) |
| `as_written` | the fields' defaults: the equations as the paper prints them |
| `authors_2e-4` | the authors', at four times their rate |
| `as_written_mean` | the defaults with a mean over features, so that the penalty acts |
| `pairs_…` | the same four on the authors' 700 pairs, 880 updates in place of 350 |

Predictions, written down before any of these runs; shares of questions refused, mean of the seeds, in the
order audio-text / text-only / audio-only:

1. `authors`: harmful questions at most 3 / 3 / 5 %, as many as vanilla; the adapters' penalty ends below 1.
2. `as_written`: harmful 30 to 50 / 25 to 45 / 65 to 85 %, rewrites at most 10 / 5 / 40 %, borderline 40 to 65
   / 30 to 50 / 70 to 85 %; the penalty ends at 10 to 30 and is less than 1 % of the loss in the first epoch.
3. `authors_2e-4`: harmful at most 15 % in audio-text and text-only, 5 to 45 % in audio-only.
4. `as_written_mean`: between 1 and 2 in every mode; its penalty ends between theirs. If it is as
   `as_written`, it is not the penalty that keeps `authors` from moving.
5. `pairs_authors`: harmful at most 5 / 5 / 25 %: two and a half times as many updates do not make up for the
   rate. `pairs_authors_2e-4`: 5 to 20 % in audio-text, 45 to 75 % in audio-only.
6. `pairs_as_written`: at least `as_written` less 10 points in every mode on harmful questions, and more
   borderline questions refused than harmful ones in audio-text, since the authors' rewrites differ by a word.
7. Where two runs refuse equally many harmful questions in audio-text, the one with the mean refuses fewer
   borderline ones: the penalty pays for itself. If not, the sum with fewer updates does as well.
8. In writing alone no run with the mean refuses more than vanilla by over 10 points.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from rrs_jax.config.prompts import MODES
from rrs_jax.config.variants import authors, changed_fields

SEEDS = 3
ASKED = {"data.eval_set": "check", "evaluate.over_refusal_modes": MODES}


SETTINGS = {
    "authors": changed_fields(authors),
    "as_written": {},
    "authors_2e-4": changed_fields(authors) | {"train.learning_rate": 2e-4},
    "as_written_mean": {"loss.reduction": "mean"},
}


def runs(config: ConfigDict) -> Iterator[tuple[str, dict]]:
    """Yields the name and the changed fields of every run."""
    questions = {"": {"data.manifest": None}}
    if config.data.manifest is not None:
        questions["pairs_"] = {"data.manifest": config.data.manifest}
    yield "vanilla", ASKED | questions[""] | {"strategy": "vanilla"}
    for seed in range(config.seed, config.seed + SEEDS):
        for prefix, asked in questions.items():
            for name, fields in SETTINGS.items():
                run = f"{prefix}{name}" if seed == config.seed else f"{prefix}{name}-seed{seed}"
                yield run, ASKED | asked | fields | {"seed": seed}
