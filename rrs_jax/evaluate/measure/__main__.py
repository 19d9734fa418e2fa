"""Judges the answers of a file: python -m rrs_jax.evaluate.measure ANSWERS.jsonl."""

import sys

from rrs_jax.evaluate.measure import main

if __name__ == "__main__":
    sys.exit(main())
