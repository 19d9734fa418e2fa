"""RRS-JAX: reshaping the representation space of audio language models (Yang et al. 2025) in JAX and Flax.

import rrs_jax
model = rrs_jax.load_model(path, dtype="float32", adapter=adapter)
batch = rrs_jax.make_batch(model, questions, prompt)
reps = rrs_jax.extract_reps(model, batch)                 # (B, D) float32
vector = rrs_jax.safety_vector(harmful_refusal, benign, model.head_row("I"), top_m=51)
answers = rrs_jax.generate(model, questions, prompt)      # a text for each question

config = rrs_jax.load_config("mini_rrs:smoke", {"run_dir": "runs/mine"})
adapter = rrs_jax.train(config)                           # the folder of a PEFT adapter
summaries = rrs_jax.evaluate(config)                      # rates before and after, by name
"""

import importlib
import sys
import types

__version__ = "0.1.0"
_CALLED = ("evaluate", "generate", "train")  # functions whose names are also packages'
_EXPORTS = (
    "LoadedModel",
    "PreparedBatch",
    "extract_reps",
    "load_config",
    "load_model",
    "make_batch",
    "safety_vector",
)
__all__ = [*sorted((*_EXPORTS, *_CALLED)), "__version__"]


class _Called(types.ModuleType):
    """A package that can be called: `rrs_jax.generate(...)` is `rrs_jax.api.generate(...)`."""

    def __call__(self, *arguments, **options):
        from rrs_jax import api

        return getattr(api, self.__name__.rpartition(".")[2])(*arguments, **options)


class _Package(types.ModuleType):
    """This module, which lets those packages be called as they are imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _CALLED and isinstance(value, types.ModuleType):
            value.__class__ = _Called
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str):
    if name in _CALLED:
        return importlib.import_module(f"rrs_jax.{name}")
    if name in _EXPORTS:  # JAX takes seconds to import, a config error should not
        from rrs_jax import api

        return getattr(api, name)
    raise AttributeError(f"module 'rrs_jax' has no attribute {name!r}")
