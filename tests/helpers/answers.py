"""Answers of our generator and of transformers' own `generate`."""

import jax.numpy as jnp
import numpy as np
import torch

from rrs_jax.generate import Generator, SamplingConfig

EOS = (2, 7, 11, 33, 54)  # many, so that random models end at different places


def answer(model, requests, bank=None, *, eos=EOS, batch_size=8, cache_dtype="auto", **sampling) -> dict:
    generator = Generator(
        model, SamplingConfig(**sampling), eos_token_ids=eos, batch_size=batch_size, cache_dtype=cache_dtype
    )
    answers = {}
    generator.generate(requests, jnp.zeros((1, 48)) if bank is None else bank, answers.__setitem__)
    return answers


def expected_answer(reference, ids, features=(), frames=(), eos=EOS, **settings) -> list[int]:
    """Returns transformers' answer to one prompt; in a padded batch its repetition penalty counts the
    padding's token too."""
    inputs = dict(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
    if len(features):
        mask = (np.arange(3000)[None] < np.asarray(frames)[:, None]).astype(np.int64)
        inputs |= dict(input_features=torch.tensor(features), feature_attention_mask=torch.tensor(mask))
    with torch.no_grad():
        output = reference.generate(
            **inputs, do_sample=False, eos_token_id=list(eos), pad_token_id=0, **settings
        )
    tokens = output[0, len(ids) :].tolist()
    return tokens[:-1] if tokens and tokens[-1] in eos else tokens
