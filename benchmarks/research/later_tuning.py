"""What is left of a safety training after later tuning: 200 steps on everyday questions, nothing harmful.

    python launch.py --config=configs/small_rrs.py:full --sweep=benchmarks/research/later_tuning.py \\
        --config.lora.start=RUNS --config.run_dir=runs/later_tuning

`RUNS` is a finished run, or the folder of a sweep, all of whose exported adapters are then tuned; its config
is that of the command. Each goes on from its adapter by cross-entropy on the vanilla model's own answers to
the starter set's 140 everyday questions (`sft_full`, of at most `sft.tokens`), 20 passes in batches of 14,
and is evaluated as any run. `tuned_vanilla` is the same tuning of the model before any safety training.

The rate is the config's: 5e-5, the paper's, where it is not given. There is no penalty: it would pull the
adapters to the base, and a deployer's tuning does not know that base. `RUNS` itself is the row before.
"""

from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from rrs_jax.config import flatten
from rrs_jax.run.recorded_config import recorded_config

ADAPTER = Path("export") / "adapter"
TUNING = {
    "strategy": "sft_full",
    "data.manifest": None,
    "data.basic_manifest": None,
    "data.train_set": "starter",
    "data.left_out_styles": (),
    "data.left_out_categories": (),
    "data.pairs_per_category": 0,
    "data.everyday": None,
    "data.contrast": 0,
    "data.rewrites_per_pair": 1,
    "data.voices_per_question": 1,
    "penalty.weight": 0.0,
    "train.epochs": 20,
    "train.batch_size": 14,
    "train.gradient_accumulation": 1,
    "train.twins_together": False,
    "train.prompt_draw": "each",
    "evaluate.epochs": (),
    "report.representation_epochs": (),
}


def runs(config: ConfigDict) -> Iterator[tuple[str, dict]]:
    """Yields the name and the fields of each run."""
    yield "tuned_vanilla", TUNING | {"lora.start": None}
    if config.lora.start is None:
        return
    given = Path(config.lora.start)
    folders = [given] if (given / ADAPTER).is_dir() else sorted(given.glob(f"*/{ADAPTER}/../.."))
    if not folders:
        raise ValueError(f"lora.start: {given} is no finished run, nor a sweep with one")
    for folder in map(Path.resolve, folders):
        recorded = flatten(recorded_config(folder))
        own = {name: value for name, value in recorded.items() if name.startswith("lora.") or name == "seed"}
        yield f"tuned_{folder.name}", TUNING | own | {"lora.start": str(folder / ADAPTER)}
