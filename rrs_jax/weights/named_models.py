"""Models with a name of their own, which are made on first use: `model.path=mini`."""

import importlib
from pathlib import Path

# The function that gives the model's folder, by module and name, so that nothing is imported for other
# models.
NAMED_MODELS = {"mini": ("rrs_jax.mini.model", "ensure_mini")}


def is_named(path: str) -> bool:
    """True for the name of a model that is made on first use."""
    return path in NAMED_MODELS


def named_folder(path: str) -> Path:
    """The model's folder, made or fetched where it is not there yet. Raises UserError where that fails."""
    module, function = NAMED_MODELS[path]
    return getattr(importlib.import_module(module), function)()
