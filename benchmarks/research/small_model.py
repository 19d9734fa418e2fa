"""`small` at once: the paper's phenomenon on it, and what four ways of tuning make of it.

    python launch.py --config=configs/small_rrs.py:full --sweep=benchmarks/research/small_model.py \\
        --sweep_jobs=4 --config.run_dir=runs/small_model

All are trained on the starter set's 280 pairs and asked its 140 other pairs and 120 borderline questions
(`data.eval_set=check`), in all three modes, harmless ones too. `vanilla_plain` reads the bare question in
place of one that is announced as an audio's content. One seed: the paper's whole sweep is
`configs/sweeps/paper.py`.

Predictions, written down before any of these runs; shares of questions refused in audio-text / text-only /
audio-only. They start from a prototype of this model that heard worse (9 % of the words wrong, twins told at
69 %). It refused 1 / 54 / 6 % of the harmful questions and, tuned by `as_written`, 78 / 49 / 83 %, with
31 / 1 / 34 % of the rewrites and 68 / 3 / 75 % of the borderline questions.

1. `vanilla` loses safety in speech: at most half of what it refuses in writing is refused in audio-text.
2. `as_written` refuses at least 70 % of the harmful questions in both audio modes, and fewer rewrites than
   the prototype: at most 20 % in audio-text.
3. `authors` moves harmful questions by at most 15 points in audio-text, as on the mini.
4. `sft_shallow_mirror` refuses fewer harmful questions than `as_written`, and in writing fewer than vanilla.
5. `rrs_plus` refuses at most half as many borderline questions as `as_written` in audio-text.
6. Between 45 and 57 % of the safety vector's features raise the refusal token's logit (the paper: about 51).
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from rrs_jax.config.prompts import MODES
from rrs_jax.config.variants import authors, changed_fields

ASKED = {"data.eval_set": "check", "evaluate.over_refusal_modes": MODES}
RUNS = {
    "vanilla": {"strategy": "vanilla"},
    "vanilla_plain": {"strategy": "vanilla", "evaluate.text_only_variant": "plain"},
    "as_written": {},
    "authors": changed_fields(authors),
    "sft_shallow_mirror": {"strategy": "sft_shallow_mirror"},
    "rrs_plus": {"strategy": "rrs_plus"},
}


def runs(_: ConfigDict) -> Iterator[tuple[str, dict]]:
    """Yields the name and the changed fields of every run."""
    for name, fields in RUNS.items():
        yield name, ASKED | fields
