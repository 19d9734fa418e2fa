"""Prints every field of a run with its default and meaning: python -m rrs_jax.config."""

import sys

from rrs_jax.config.fields import FIELDS
from rrs_jax.errors import exit_status


def main() -> int:
    """Prints each field's flag with its default, and its sentence; returns the exit status."""
    with exit_status() as status:
        for field in FIELDS.values():
            print(f"--config.{field.name}={field.default!r}\n    {field.sentence} Takes {field.kind.wants}.")
    return status.code


if __name__ == "__main__":
    sys.exit(main())
