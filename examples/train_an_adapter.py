"""Trains an adapter from a config in Python and exports it for PEFT: examples/train_an_adapter.py RUN

A few steps on a few questions of the starter set; give more pairs and epochs for an adapter that refuses. The
same call goes on where a killed one stopped.
"""

import sys

import rrs_jax

FIELDS = {  # any of `rrs-jax config`
    "strategy": "rrs",
    "data.categories": 4,
    "data.pairs_per_category": 1,
    # "data.manifest": "my_questions.jsonl",  # in place of the starter set
    "train.epochs": 2,
    "train.batch_size": 4,
    "train.learning_rate": 3e-3,
    "lora.rank": 8,
}


def main(run: str) -> None:
    config = rrs_jax.load_config("mini_rrs", FIELDS | {"run_dir": run})
    adapter = rrs_jax.train(config)
    print(f"adapter: {adapter}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
