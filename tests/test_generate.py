"""Generation against transformers' own `generate` and its logits processors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from rrs_jax.generate import Generator, Prompt, SamplingConfig
from rrs_jax.generate.sampling import next_tokens
from rrs_jax.parallel import make_mesh
from rrs_jax.weights.load import load_weights

EOS = (2, 7, 11, 33, 54)  # many, so that random models end at different places


@pytest.fixture(scope="module")
def model(folder):
    return load_weights(folder, mesh=make_mesh(devices=jax.devices()[:1]))


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(5)
    return [rng.integers(60, 120, length).tolist() for length in (3, 9, 4, 17, 5, 12, 8, 21, 6, 10, 14)]


@pytest.mark.parametrize("devices, batch_size", [(1, 4), (1, 16), (8, 8)])
def test_greedy_answers_equal_transformers(reference, folder, prompts, devices, batch_size):
    """More prompts than places, so that rows leave and enter; unequal prompts and unequal answers."""
    new = 21
    model = load_weights(folder, mesh=make_mesh(devices=jax.devices()[:devices]))
    sampling = SamplingConfig(max_new_tokens=new, greedy=True)
    generator = Generator(model, sampling, eos_token_ids=EOS, batch_size=batch_size)
    answers = {}
    requests = [Prompt(key=i, row=(ids, [], [])) for i, ids in enumerate(prompts)]
    generator.generate(requests, jnp.zeros((1, 48)), answers.__setitem__)
    lengths = set()
    for i, ids in enumerate(prompts):
        with torch.no_grad():
            expected = reference.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
                max_new_tokens=new, eos_token_id=list(EOS), pad_token_id=0,
            )[0, len(ids) :].tolist()  # fmt: skip
        while expected and expected[-1] in EOS:
            expected.pop()
        assert answers[i] == expected
        lengths.add(len(expected))
    assert len(lengths) > 3 and max(lengths) == new


def test_a_sampled_answer_does_not_depend_on_its_neighbours(model, prompts):
    sampling = SamplingConfig(max_new_tokens=9, temperature=0.9, top_k=20, top_p=0.8, repetition_penalty=1.2)
    generator = Generator(model, sampling, eos_token_ids=EOS, batch_size=4)
    requests = [Prompt(key=i, row=(ids, [], []), seed=100 + i) for i, ids in enumerate(prompts)]
    together, alone = {}, {}
    generator.generate(requests, jnp.zeros((1, 48)), together.__setitem__)
    for request in requests[:3]:
        generator.generate([request], jnp.zeros((1, 48)), alone.__setitem__)
    assert {key: together[key] for key in alone} == alone
    other = {}
    reseeded = [Prompt(key=i, row=request.row, seed=999 + i) for i, request in enumerate(requests)]
    generator.generate(reseeded, jnp.zeros((1, 48)), other.__setitem__)
    assert other != together


def test_sampling_follows_transformers_filters():
    """20,000 draws against the probabilities that transformers' processors leave."""
    rng = np.random.default_rng(6)
    logits = rng.normal(size=(1, 50)).astype(np.float32) * 2
    prompt = np.array([[3, 17, 17, 41]])
    config = SamplingConfig(temperature=0.7, top_k=20, top_p=0.5, repetition_penalty=1.3)
    processors = [
        transformers.RepetitionPenaltyLogitsProcessor(1.3), transformers.TemperatureLogitsWarper(0.7),
        transformers.TopKLogitsWarper(20), transformers.TopPLogitsWarper(0.5),
    ]  # fmt: skip
    scores = torch.tensor(logits)
    for processor in processors:
        scores = processor(torch.tensor(prompt), scores)
    expected = torch.softmax(scores, -1)[0].numpy()
    draws = 20_000
    seen = np.zeros((1, 50), bool)
    seen[0, prompt[0]] = True
    tokens = next_tokens(
        jnp.broadcast_to(logits, (draws, 50)), jnp.broadcast_to(seen, (draws, 50)),
        jax.random.split(jax.random.key(0), draws), config,
    )  # fmt: skip
    frequency = np.bincount(np.asarray(tokens), minlength=50) / draws
    assert set(np.flatnonzero(frequency)) <= set(np.flatnonzero(expected))
    assert np.abs(frequency - expected).max() < 0.015


def test_overrides_of_the_released_generation_config():
    released = dict(do_sample=True, temperature=0.7, top_p=0.5, top_k=20, repetition_penalty=1.1)
    assert SamplingConfig.from_generation_config(released) == SamplingConfig(256, False, 0.7, 20, 0.5, 1.1)
    greedy = SamplingConfig.from_generation_config(released, greedy=True, max_new_tokens=8)
    assert greedy.greedy and greedy.repetition_penalty == 1.0 and greedy.max_new_tokens == 8
