"""Settings in which the method fails: sounds beside written questions, words spelt letter by letter, other
voices.

    python launch.py --config=configs/mini_rrs.py:full --sweep=configs/sweeps/limits.py \\
        --config.run_dir=runs/paper --stages=evaluate,report

It only evaluates the adapters in the folder of configs/sweeps/paper.py, with the same config.
"""

from collections.abc import Iterator

SETTINGS = ("spoken", "silence", "noise", "unit_noise", "spelled", "other_voices")


def runs(_) -> Iterator[tuple[str, dict]]:
    """Yields the name and the fields of each run."""
    for strategy in ("vanilla", "rrs", "rrs_plus", "sft_shallow_mirror"):
        yield strategy, {"strategy": strategy, "evaluate.setting": SETTINGS}
