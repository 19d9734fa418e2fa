"""The part `generate` of both sides: answers to queries of about 130 tokens, several to each.

Both sides get the audio's embeddings, not its sound, and sample as Qwen2-Audio's generation_config.json says.
transformers answers fewer queries, at several batch sizes; the best counts.

The floor is the prefill's arithmetic, once a query, and the bytes that the decoding steps must read: every
weight of the decoder and the output head, the keys and values of each prompt once, and those of each answer
so far.
"""

import argparse
import itertools

import numpy as np
from common import GIB, Clock, decoder_weights, forward_flops, report
from parts import failure_told

SAMPLING = dict(temperature=0.7, top_k=20, top_p=0.5, repetition_penalty=1.1)
CLIP_TOKENS, PROMPT_TOKENS = 75, (121, 136)  # a clip of three seconds; shortest and longest prompt


def random_prompts(queries: int, vocabulary: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, vocabulary - 8, rng.integers(*PROMPT_TOKENS, endpoint=True)).tolist()
        for _ in range(queries)
    ]


def ours(model, values: dict, arguments: argparse.Namespace) -> None:
    import jax

    from rrs_jax.generate import Generator, Prompt, SamplingConfig

    text = model.config.text
    audio = int(np.atleast_1d(model.config.audio_token_id)[0])
    bank = jax.random.normal(jax.random.key(1), (64 * CLIP_TOKENS, text.hidden_size), model.dtype)
    prompts = []
    for query, ids in enumerate(random_prompts(arguments.queries, min(text.vocab_size, audio))):
        ids[8 : 8 + CLIP_TOKENS] = [audio] * CLIP_TOKENS
        row = (ids, [query % 64 * CLIP_TOKENS], [CLIP_TOKENS])
        prompts += [Prompt(key=(query, i), row=row, seed=query * 100 + i) for i in range(arguments.samples)]
    sampling = SamplingConfig(max_new_tokens=arguments.new_tokens, **SAMPLING)
    matrices, item = decoder_weights(text), model.dtype.itemsize
    weights = matrices * (item if text.quantize == "none" else 1) + text.vocab_size * text.hidden_size * item
    cached = 1 + 4 / text.head_dim if arguments.cache_dtype == "int8" else item
    slot = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * cached
    prefill = forward_flops(text, sum(len(prompt.row[0]) for prompt in prompts[:: arguments.samples]))
    ways = {"auto": None, "fused": True, "xla": False}
    work = dict(
        weights=weights,
        slot=slot,
        prefill=prefill,
        rows_flops=2 * (matrices + text.vocab_size * text.hidden_size),
    )
    for batch, way in itertools.product(
        map(int, arguments.answers.split(",")), arguments.attention.split(",")
    ):
        variant = variant_name(model, batch, way, arguments.cache_dtype)
        with failure_told(part="generate", side="ours", variant=variant):  # fewer in flight may fit
            generator = Generator(
                model,
                sampling,
                eos_token_ids=(-1,),
                batch_size=batch,
                cache_dtype=arguments.cache_dtype,
                fused=ways[way],
            )
            one_variant(generator, prompts, bank, variant, arguments, **work)
        generator = None
        jax.clear_caches()


def variant_name(model, batch: int, way: str, cache_dtype: str) -> str:
    name = f"{batch} answers in flight" + (", adapters" if model.lora else "")
    name += "" if model.config.text.quantize == "none" else f", {model.config.text.quantize} matrices"
    name += "" if way == "auto" else f", {way} attention"
    return name + ("" if cache_dtype == "auto" else f", {cache_dtype} keys and values")


def one_variant(
    generator, prompts, bank, variant: str, arguments, *, weights, slot, prefill, rows_flops
) -> None:
    """weights, slot: bytes of the matrices and of one token's keys and values; prefill: FLOP of all queries;
    rows_flops: of one row's step."""
    import jax

    answers = {}
    start = Clock.now()
    generator.generate(prompts, bank, answers.__setitem__)
    first = Clock.now() - start
    start = Clock.now()
    generator.generate(prompts, bank, answers.__setitem__)
    seconds = Clock.now() - start
    if {len(answer) for answer in answers.values()} != {arguments.new_tokens}:
        raise AssertionError("an answer of another length")
    pieces = timed_pieces(generator, prompts, bank)
    steps = [piece for piece in pieces if piece["what"] == "decode"]
    spent, count = (sum(step[name] for step in steps) for name in ("seconds", "steps"))
    needed = sum(step["steps"] * weights + slot * step["real_slots"] for step in steps)
    read = sum(step["steps"] * (weights + slot * step["slots"]) for step in steps)
    stats = jax.devices()[0].memory_stats() or {}
    report(
        part="generate",
        side="ours",
        variant=variant,
        seconds=seconds,
        units=len(prompts),
        unit="responses",
        floor_flops=prefill,
        floor_bytes=needed,
        seconds_with_compilation=first,
        prefill_seconds=sum(piece["seconds"] for piece in pieces if piece["what"] == "prefill"),
        decode_seconds=spent,
        decode_steps=count,
        floor_bytes_a_step=needed / count,
        read_bytes_a_step=read / count,
        peak_gib=round(stats["peak_bytes_in_use"] / GIB, 1) if "peak_bytes_in_use" in stats else None,
        new_tokens=arguments.new_tokens,
    )
    chunks = report_steps(steps, variant, weights, slot, rows_flops)
    if arguments.profile:
        profile(generator, prompts, bank, variant, chunks)


def report_steps(steps: list[dict], variant: str, weights, slot, rows_flops) -> dict[int, dict]:
    """Reports the mean step of each number of rows and slots; returns the longest chunk by its slots."""
    chunks = {}
    for rows, slots in sorted({(step["rows"], step["answer_slots"]) for step in steps}):
        same = [step for step in steps if (step["rows"], step["answer_slots"]) == (rows, slots)]
        each = sum(step["seconds"] for step in same) / sum(step["steps"] for step in same)
        report(
            part="generate",
            detail="decoding step",
            rows=rows,
            answer_slots=slots,
            seconds=each,
            variant=variant,
            read_bytes=weights + slot * same[0]["slots"],
        )
        # The longest one is a whole chunk; at the end of the work there may be shorter ones.
        longest = max(same, key=lambda step: step["steps"])
        chunks[slots] = {
            "steps": longest["steps"],
            "rows": rows,
            "milliseconds": 1000 * each * longest["steps"],
            "floor_flops": longest["steps"] * rows * rows_flops,
        }
    return chunks


def profile(generator, prompts, bank, variant: str, chunks: dict[int, dict]) -> None:
    """The kernels of one chunk of decoding steps for each number of the answers' slots, with what `chunks`
    tells of it."""
    import jax
    from kernels import kernels, summary

    decode, seen = generator._decode, set()

    def traced_decode(params, state):
        slots = state.cache.valid.shape[1]
        if slots in seen:
            return decode(params, state)
        seen.add(slots)
        result = []
        jax.block_until_ready(state)
        found = summary(kernels(lambda: result.append(decode(params, state)) or result[-1], repeats=1), 10)
        report(
            part="generate",
            detail="kernels of a chunk",
            variant=variant,
            answer_slots=slots,
            device=jax.devices()[0].device_kind,
            **chunks.get(slots, {}),
            **found,
        )
        return result[0]

    generator._decode = traced_decode
    try:
        generator.generate(prompts, bank, lambda key, tokens: None)
    finally:
        generator._decode = decode


def timed_pieces(generator, prompts, bank) -> list[dict]:
    """One more run in which every piece is waited for: seconds, steps, rows, and slots of the cache."""
    import jax

    pieces: list[dict] = []
    decode, prefill = generator._decode, generator._prefill

    def timed_decode(params, state):
        rows, slots = state.cache.valid.shape
        prompts, width = state.cache.prompts.keys.shape[1], state.cache.prompts.keys.shape[3]
        made = np.asarray(state.made)
        lengths = int(np.asarray(state.cache.prompt_lengths).sum())
        start = Clock.now()
        state, tokens = jax.block_until_ready(decode(params, state))
        seconds = Clock.now() - start
        after = np.asarray(state.made)
        steps = int((after - made).max())
        # In step i of the chunk a row attends to the tokens that it had before, and to its new one.
        real = steps * lengths + int(sum(made.sum() + i * rows for i in range(steps)))
        pieces.append(
            {
                "what": "decode",
                "seconds": seconds,
                "steps": steps,
                "rows": rows,
                "answer_slots": slots,
                "slots": prompts * width + rows * slots,
                "real_slots": real,
            }
        )
        return state, tokens

    def timed_prefill(*inputs):
        start = Clock.now()
        entered = jax.block_until_ready(prefill(*inputs))
        pieces.append({"what": "prefill", "seconds": Clock.now() - start})
        return entered

    generator._decode, generator._prefill = timed_decode, timed_prefill
    generator.generate(prompts, bank, lambda key, tokens: None)
    generator._decode, generator._prefill = decode, prefill
    return pieces


def their_decoder(text, device, dtype):
    """transformers' Qwen2 decoder of the same sizes; `text` is our `DecoderConfig`."""
    import torch
    import transformers

    config = transformers.Qwen2Config(
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_hidden_layers=text.num_hidden_layers,
        num_attention_heads=text.num_attention_heads,
        num_key_value_heads=text.num_key_value_heads,
        vocab_size=text.vocab_size,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
    )
    torch.set_default_dtype(dtype)
    with device:
        model = transformers.Qwen2ForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    return model


def theirs(text, arguments: argparse.Namespace) -> None:
    """Measures transformers' decoder; `text` is our `DecoderConfig`."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, arguments.dtype)
    model = their_decoder(text, device, dtype)
    rows = random_prompts(arguments.queries, text.vocab_size)
    for queries in map(int, arguments.peer_queries.split(",")):
        chosen = [rows[i % len(rows)] for i in range(queries)]
        width = max(map(len, chosen))
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in chosen], device=device)
        embeddings = torch.randn(queries, width, text.hidden_size, device=device, dtype=dtype)

        def answer(embeddings=embeddings, mask=mask, new_tokens=arguments.new_tokens):
            with torch.no_grad():
                output = model.generate(
                    inputs_embeds=embeddings,
                    attention_mask=mask,
                    do_sample=True,
                    num_return_sequences=arguments.samples,
                    min_new_tokens=new_tokens,
                    max_new_tokens=new_tokens,
                    pad_token_id=0,
                    eos_token_id=1,
                    **SAMPLING,
                )
            return output.cpu()

        line = dict(part="generate", side="peer", variant=f"generate, {queries} queries at once")
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        with failure_told(**line):
            answer(new_tokens=4)
            start = Clock.now()
            responses = len(answer())
            seconds = Clock.now() - start
            peak = round(torch.cuda.max_memory_allocated() / GIB, 1) if device.type == "cuda" else None
            report(**line, seconds=seconds, units=responses, unit="responses", peak_gib=peak)
