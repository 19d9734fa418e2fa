"""Generation against transformers' own `generate`."""

import copy
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from helpers.answers import EOS, answer, expected_answer
from helpers.clip_prompts import FRAMES, audio_bank, prompts
from helpers.qwen2_audio import make_reference
from rrs_jax.distributed.mesh import make_mesh
from rrs_jax.generate import Generator, Prompt, SamplingConfig, state
from rrs_jax.generate.engine import group_prompts
from rrs_jax.generate.memory import FlightPlan
from rrs_jax.inputs.batching import collate
from rrs_jax.inputs.mel import audio_token_count
from rrs_jax.models import decoder
from rrs_jax.models.cache import Cache, KeysValues
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.weights.load import load_weights


@pytest.fixture(scope="module")
def model(folder):
    return load_weights(folder, mesh=make_mesh(devices=jax.devices()[:1]))


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(5)
    return [rng.integers(60, 120, length).tolist() for length in (3, 9, 4, 17, 5, 12, 8, 21, 6, 10, 14)]


@pytest.mark.parametrize("key_value_heads", [2, 6])
def test_greedy_answers_to_sound_equal_transformers_over_64_tokens(tmp_path, clips, key_value_heads):
    """Two clips, one, none; unequal prompts, some asked twice or three times; every processor that greedy
    decoding has; grouped-query attention and an own key for every query."""
    reference = make_reference(num_key_value_heads=key_value_heads)
    reference.save_pretrained(tmp_path)
    model = load_weights(tmp_path, mesh=make_mesh(devices=jax.devices()[:1]))
    rows, row_clips = prompts(np.random.default_rng(7))
    # A clip of one token alone is what transformers takes for a prompt of its first version.
    rows[3], row_clips[3] = rows[3] + rows[1], [*row_clips[3], *row_clips[1]]
    bank, offsets = audio_bank(model, clips)
    requests = []
    for query, (ids, own) in enumerate(zip(rows, row_clips, strict=True)):
        places = [offsets[c] for c in own], [audio_token_count(int(FRAMES[c])) for c in own]
        requests += [Prompt(key=(query, i), row=(ids, *places)) for i in range((3, 1, 2, 3)[query])]
    eos = (2, 33)
    answers = answer(
        model,
        requests,
        jnp.asarray(bank),
        eos=eos,
        batch_size=6,
        greedy=True,
        max_new_tokens=64,
        repetition_penalty=1.3,
    )
    expected = [
        expected_answer(
            reference, ids, clips[own], FRAMES[own], eos, max_new_tokens=64, repetition_penalty=1.3
        )
        for ids, own in zip(rows, row_clips, strict=True)
    ]
    assert answers == {request.key: expected[request.key[0]] for request in requests}
    assert max(map(len, expected)) == 64


def test_each_device_answers_its_own_prompts(folder, texts):
    """A device holds the keys and values of its prompts alone, and sends nothing but whether it goes on."""
    model = load_weights(folder, mesh=make_mesh(devices=jax.devices()[:4]))
    generator = Generator(model, SamplingConfig(greedy=True), eos_token_ids=EOS, batch_size=8)
    decode, programs = generator._decode, {}

    def watched(parameters, state):
        keys = state.cache.answers.keys
        assert keys.sharding.shard_shape(keys.shape)[1] == keys.shape[1] // 4
        if keys.shape not in programs:
            programs[keys.shape] = decode.lower(parameters, state).compile().as_text()
        return decode(parameters, state)

    generator._decode = watched
    requests = [Prompt(key=i, row=(ids, [], [])) for i, ids in enumerate(texts)]
    generator.generate(requests, jnp.zeros((1, 48)), lambda key, tokens: None)
    assert programs
    for text in programs.values():
        assert "all-gather" not in text and "all-to-all" not in text
        assert re.findall(r"= (\S+) all-reduce\(", text) == ["s32[]"]


@pytest.mark.parametrize("devices, batch_size", [(1, 4), (8, 8)])
def test_greedy_answers_equal_transformers(reference, folder, texts, devices, batch_size):
    """More prompts than places, so that rows leave and enter; unequal prompts and unequal answers."""
    model = load_weights(folder, mesh=make_mesh(devices=jax.devices()[:devices]))
    requests = [Prompt(key=i, row=(ids, [], [])) for i, ids in enumerate(texts)]
    answers = answer(model, requests, batch_size=batch_size, greedy=True, max_new_tokens=41)
    expected = [expected_answer(reference, ids, max_new_tokens=41) for ids in texts]
    assert [answers[i] for i in range(len(texts))] == expected
    assert len(set(map(len, expected))) > 3 and max(map(len, expected)) == 41


def test_each_device_keeps_its_own_answers_when_the_batch_shrinks(reference, folder, texts, monkeypatch):
    """Five of eight answers end within the first chunk, two or more on each device, and eight places become
    four; no keys or values go to another device."""
    model = load_weights(folder, mesh=make_mesh(devices=jax.devices()[:2]))
    generator = Generator(
        model, SamplingConfig(max_new_tokens=41, greedy=True), eos_token_ids=EOS, batch_size=8
    )
    monkeypatch.setattr(FlightPlan, "few", lambda self: 4)
    take, programs = generator.on_mesh._take_stored, []

    def watched(leaf, places):
        programs.append(take.lower(leaf, places).compile().as_text())
        return take(leaf, places)

    generator.on_mesh._take_stored = watched
    texts = sorted(texts, key=len)[:8]
    requests = [Prompt(key=i, row=(ids, [], [])) for i, ids in enumerate(texts)]
    answers = {}
    generator.generate(requests, jnp.zeros((1, 48)), answers.__setitem__)
    assert [answers[i] for i in range(8)] == [
        expected_answer(reference, ids, max_new_tokens=41) for ids in texts
    ]
    assert len(programs) == 4 and not any("all-" in program for program in programs)


def test_greedy_answers_by_the_attention_kernel_equal_transformers(reference, model, texts, monkeypatch):
    """The kernel's operations run one by one; prompts asked once and twice, and a cache that grows."""
    monkeypatch.setattr(
        decoder, "fused_attention", functools.partial(decoder.fused_attention, interpret=True)
    )
    sampling = SamplingConfig(max_new_tokens=20, greedy=True)
    generator = Generator(model, sampling, eos_token_ids=EOS, batch_size=8, fused=True)
    answers = {}
    requests = [
        Prompt(key=(i, n), row=(ids, (), ())) for i, ids in enumerate(texts[:5]) for n in range(1 + i % 2)
    ]
    generator.generate(requests, jnp.zeros((1, 48)), answers.__setitem__)
    for key, ids in {prompt.key: prompt.row[0] for prompt in requests}.items():
        assert answers[key] == expected_answer(reference, ids, max_new_tokens=20)


def test_adapters_beside_the_base_equal_transformers_with_adapters_merged(reference, folder, texts):
    """Adapters from the second layer on, some linears without."""
    config = LoRAConfig(rank=3, alpha=5.0, targets=("q_proj", "v_proj", "o_proj", "down_proj"), first_layer=1)
    model = load_weights(folder, lora=config, mesh=make_mesh(devices=jax.devices()[:1]))
    merged = copy.deepcopy(reference)
    for index, target in enumerate(config.targets):
        pair = model.lora.pair(target)
        pair.lora_b.set_value(0.2 * jax.random.normal(jax.random.key(index), pair.lora_b.shape))
        updates = config.scale * np.asarray(pair.lora_a[...]) @ np.asarray(pair.lora_b[...])
        for layer, update in zip(
            merged.model.language_model.layers[config.first_layer :], updates, strict=True
        ):
            block = layer.mlp if target == "down_proj" else layer.self_attn
            getattr(block, target).weight.data += torch.tensor(update.T)
    requests = [Prompt(key=i, row=(ids, [], [])) for i, ids in enumerate(texts[:5])]
    answers = answer(model, requests, greedy=True, max_new_tokens=24)
    expected = [expected_answer(merged, ids, max_new_tokens=24) for ids in texts[:5]]
    assert [answers[i] for i in range(5)] == expected
    assert expected != [expected_answer(reference, ids, max_new_tokens=24) for ids in texts[:5]]


SAMPLED = dict(max_new_tokens=20, temperature=0.9, top_k=20, top_p=0.8, repetition_penalty=1.2)


def test_a_sampled_answer_does_not_depend_on_its_neighbours(model, texts):
    """Neither on other prompts nor on whether the prompt is shared with other samples: so a restarted run,
    which has fewer prompts, gives the answers of an unbroken one."""
    requests = [
        Prompt(key=(i, n), row=(ids, [], []), seed=100 * i + n)
        for i, ids in enumerate(texts[:4])
        for n in range(3)
    ]
    together = answer(model, requests, batch_size=6, **SAMPLED)
    for chosen in ([requests[4]], requests[1:11:3]):
        assert answer(model, chosen, batch_size=5, **SAMPLED) == {
            request.key: together[request.key] for request in chosen
        }
    assert len({tuple(together[2, n]) for n in range(3)}) == 3
    reseeded = [
        Prompt(key=request.key, row=request.row, seed=9999 + i) for i, request in enumerate(requests[:3])
    ]
    assert answer(model, reseeded, batch_size=6, **SAMPLED) != {
        key: together[key] for key in [(0, 0), (0, 1), (0, 2)]
    }


def test_equal_prompts_form_groups_of_the_size_that_needs_the_fewest_slots(texts):
    def sizes(counts, new_tokens):
        requests = [
            Prompt(key=None, row=(ids, [], []))
            for ids, n in zip(texts, counts, strict=False)
            for _ in range(n)
        ]
        return sorted(map(len, group_prompts(requests, new_tokens)))

    assert sizes([5, 5, 5], 64) == [5, 5, 5]
    # Five places for one query each would be idle in four of five; a long prompt would pay for them.
    assert sizes([5, 1, 1, 1, 1], 64) == [1] * 9
    assert sizes([4, 4, 3], 2) == [3, 4, 4]
    # The example of `group_prompts`: 600 slots and not 750.
    long = [Prompt(key=None, row=([token] * 100, [], [])) for token in (60, 60, 60, 60, 61)]
    assert sorted(map(len, group_prompts(long, 50))) == [1, 4]


def test_slots_keep_the_order_in_which_they_were_written():
    """The example of `_reordered`: four slots, written in the order 2 3 0 1, the next one is 2."""
    tokens = jnp.array([2, 3, 0, 1])  # how late each slot was written
    answers = KeysValues(*[tokens.reshape(1, 1, 1, 1, 4, 1)] * 2)
    valid = (tokens > 0)[None]
    for slots, order, at in ((8, [0, 1, 2, 3, 0, 0, 0, 0], 4), (2, [2, 3], 0)):
        made, kept, slot = state._reordered(answers, valid, jnp.int32(2), slots)
        assert made.keys.ravel().tolist() == order and int(slot) == at
        assert kept[0].tolist() == [token > 0 for token in order]


@pytest.mark.parametrize(("backend", "in_flight"), [("cpu", (59, 117, 25)), ("gpu", (64, 120, 32))])
def test_a_gpus_rows_are_a_multiple_of_8_and_the_batch_is_not_exceeded(
    model, monkeypatch, backend, in_flight
):
    generators = [
        Generator(model, SamplingConfig(max_new_tokens=4), eos_token_ids=EOS, batch_size=size)
        for size in (320, 640)
    ]
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    found = [generators[at]._flight(*asked, 20) for at, asked in ((0, (350, 5)), (1, (350, 5)), (0, (25, 3)))]
    assert tuple(flight.queries for flight in found) == in_flight
    assert all(4 * flight.prefill >= flight.queries for flight in found)
    assert generators[0]._flight(3, 5, 20).queries == 3  # so few that nothing is gained


@pytest.mark.parametrize("in_flight", [6, 7, 8])
def test_every_place_is_taken_in_every_wave(model, texts, in_flight):
    """The places may be no multiple of a prefill's prompts. Two waves of answers of 1 + 16 tokens."""
    generator = Generator(
        model, SamplingConfig(max_new_tokens=17, greedy=True), eos_token_ids=(-1,), batch_size=in_flight
    )
    requests = [Prompt(key=i, row=(texts[i % len(texts)] + [3 + i], [], [])) for i in range(2 * in_flight)]
    decode, active = generator._decode, []

    def counted(params, state):
        active.append(int(state.active.sum()))
        return decode(params, state)

    generator._decode = counted
    answers = {}
    generator.generate(requests, jnp.zeros((1, 48)), answers.__setitem__)
    assert active == [in_flight, in_flight]
    assert {len(tokens) for tokens in answers.values()} == {17}


def test_int8_cache_is_close_and_smaller(model, texts):
    """Relative error of the next token's logits behind eight tokens, their keys and values and the prompt's
    rounded."""
    batch = jax.tree.map(jnp.asarray, collate([(ids, [], []) for ids in texts], 24, 130))
    forced = jax.random.randint(jax.random.key(0), (8, len(texts)), 3, 120)
    graphdef, state = nnx.split(model)
    decode = jax.jit(lambda *inputs: nnx.merge(graphdef, state).decode(*inputs))
    logits, sizes = {}, {}
    for dtype in ("float32", "int8"):
        _, positions, store = model.prefill(batch, jnp.zeros((1, 48)), jnp.dtype(dtype))
        cache = Cache.empty(store, len(texts), 24, 1, 8).replace(prompts=store, prompt_lengths=batch.lengths)
        for step, tokens in enumerate(forced):
            logits[dtype], cache = decode(tokens, positions + step, jnp.int32(step), cache)
        sizes[dtype] = sum(leaf.nbytes for leaf in jax.tree.leaves((cache.prompts, cache.answers)))
    error = jnp.linalg.norm(logits["int8"] - logits["float32"]) / jnp.linalg.norm(logits["float32"])
    assert 1e-5 < error < 1e-2
    assert sizes["int8"] == 0.375 * sizes["float32"]  # 8 + 4 bytes for 8 numbers of 4 bytes


def test_an_int8_cache_gives_whole_answers(reference, model, texts):
    """The first tokens are those of transformers; later ones may differ."""
    requests = [Prompt(key=(i, n), row=(ids, [], [])) for i, ids in enumerate(texts) for n in range(2)]
    answers = answer(model, requests, greedy=True, max_new_tokens=12, cache_dtype="int8")
    expected = [expected_answer(reference, ids, max_new_tokens=4) for ids in texts]
    equal = [
        answers[i, n][:4] == expected[i][:4] or answers[i, n] == expected[i]
        for i in range(len(texts))
        for n in range(2)
    ]
    assert len(answers) == 2 * len(texts) and np.mean(equal) > 0.8
