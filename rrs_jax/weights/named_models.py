"""Models with a name of their own, which are made on first use: `model.path=mini`, `model.path=small`."""

import importlib
from pathlib import Path

NAMED_MODELS = ("mini", "small")  # those of rrs_jax.mini.model_table


def is_named(path: str) -> bool:
    """True for the name of a model that is made on first use."""
    return path in NAMED_MODELS


def named_folder(path: str) -> Path:
    """The model's folder, made or fetched where it is not there yet. Raises UserError where that fails."""
    # Imported here, so that nothing of it is for other models.
    return importlib.import_module("rrs_jax.mini.model").ensure_model(path)
