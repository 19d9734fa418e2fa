"""Prints every field of a run with its default and meaning: python -m rrs_jax.config."""

from rrs_jax.config.fields import FIELDS
from rrs_jax.errors import replace_unprintable


def main() -> None:
    """Prints each field's flag with its default, and its sentence."""
    replace_unprintable()
    for field in FIELDS.values():
        print(f"--config.{field.name}={field.default!r}\n    {field.sentence} Takes {field.kind.wants}.")


if __name__ == "__main__":
    main()
