"""Responses: batched generation with a key-value cache."""

from rrs_jax.generate.engine import Generator, Prompt
from rrs_jax.generate.sampling import SamplingConfig

__all__ = ["Generator", "Prompt", "SamplingConfig"]
