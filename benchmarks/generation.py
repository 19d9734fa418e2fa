"""Answers with random weights of Qwen2-Audio's size, beside transformers' `generate`; prints JSON lines.

    python benchmarks/generation.py                  # one H100: 350 queries, 5 answers each, 64 new tokens each
    python benchmarks/generation.py --size=tiny      # two CPU cores, about a minute

Both sides get the audio's embeddings, not its sound, and sample as Qwen2-Audio's generation_config.json says.
Each runs in a process of its own, so that the memory is free in between. transformers answers fewer queries, at
several batch sizes; the best counts.

The floor of a decoding step is the bytes that it must read: every weight of the decoder and the output head, the
keys and values of each prompt once, and those of each answer so far; over the memory's bandwidth by data sheet.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import numpy as np

SAMPLING = dict(temperature=0.7, top_k=20, top_p=0.5, repetition_penalty=1.1)
BANDWIDTH = {"H100": 3.35e12, "H200": 4.8e12}  # bytes a second, by data sheet
SIZES = {
    "7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
               num_key_value_heads=32, vocab_size=156032),
    "tiny": dict(hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4,
                 num_key_value_heads=4, vocab_size=8192),
}  # fmt: skip
AUDIO_TOKENS, PROMPT_TOKENS = 75, (121, 136)  # a clip of three seconds; shortest and longest prompt


def report(**line) -> None:
    print(json.dumps(line), flush=True)


def random_prompts(queries: int, vocabulary: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, vocabulary - 8, rng.integers(*PROMPT_TOKENS, endpoint=True)).tolist() for _ in range(queries)]


def ours(arguments: argparse.Namespace) -> None:
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    import jax
    import jax.numpy as jnp

    from rrs_jax.generate import Generator, Prompt, SamplingConfig
    from rrs_jax.models.lora import LoRAConfig
    from rrs_jax.models.qwen2_audio import Qwen2Audio, Qwen2AudioConfig
    from rrs_jax.models.random_init import random_model

    text = SIZES[arguments.size]
    audio = {"d_model": 64, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}  # not used here
    config = Qwen2AudioConfig.from_hf({"text_config": text, "audio_config": audio, "audio_token_id": text["vocab_size"] - 1})
    dtype = jnp.dtype(arguments.dtype)
    lora = LoRAConfig() if arguments.lora else None
    model = random_model(lambda: Qwen2Audio(config, dtype=dtype, lora=lora))
    device = jax.devices()[0]
    bandwidth = next((value for name, value in BANDWIDTH.items() if name in device.device_kind), None)
    bank = jax.random.normal(jax.random.key(1), (64 * AUDIO_TOKENS, config.text.hidden_size), dtype)
    prompts = []
    for query, ids in enumerate(random_prompts(arguments.queries, text["vocab_size"])):
        ids[8 : 8 + AUDIO_TOKENS] = [config.audio_token_id] * AUDIO_TOKENS
        row = (ids, [query % 64 * AUDIO_TOKENS], [AUDIO_TOKENS])
        prompts += [Prompt(key=(query, i), row=row, seed=query * 100 + i) for i in range(arguments.samples)]
    sampling = SamplingConfig(max_new_tokens=arguments.new_tokens, **SAMPLING)
    matrices = config.text.num_hidden_layers * sum(a * b for a, b in config.text.linears().values())
    weights = (matrices + text["vocab_size"] * text["hidden_size"]) * dtype.itemsize
    item = 1 + 4 / 128 if arguments.cache_dtype == "int8" else dtype.itemsize
    slot = 2 * config.text.num_hidden_layers * config.text.num_key_value_heads * config.text.head_dim * item
    report(what="device", device=device.device_kind, jax=jax.__version__, weights_gb=round(weights / 1e9, 2),
           cache_kib_a_token=slot / 1024, copy_tb_a_second=round(copy_rate() / 1e12, 2))  # fmt: skip
    for batch in map(int, arguments.batch.split(",")):
        generator = Generator(model, sampling, eos_token_ids=(), batch_size=batch, cache_dtype=arguments.cache_dtype)
        answers = {}
        start = time.perf_counter()
        generator.generate(prompts, bank, answers.__setitem__)
        first = time.perf_counter() - start
        start = time.perf_counter()
        generator.generate(prompts, bank, answers.__setitem__)
        seconds = time.perf_counter() - start
        if {len(answer) for answer in answers.values()} != {arguments.new_tokens}:
            raise AssertionError("an answer of another length")
        pieces = timed_pieces(generator, prompts, bank)
        steps = [piece for piece in pieces if piece["what"] == "decode"]
        spent = sum(step["seconds"] for step in steps)
        count = sum(step["steps"] for step in steps)
        needed = sum(step["steps"] * weights + slot * step["real_slots"] for step in steps)
        read = sum(step["steps"] * (weights + slot * step["slots"]) for step in steps)
        work = sum(step["steps"] * step["rows"] for step in steps)
        stats = device.memory_stats() or {}
        report(
            what="ours", batch=batch, lora=arguments.lora, cache_dtype=arguments.cache_dtype, responses=len(prompts),
            seconds=round(seconds, 3), responses_a_second=round(len(prompts) / seconds, 1),
            seconds_with_compilation=round(first, 1), aiah_7000_responses_seconds=round(7000 * seconds / len(prompts), 1),
            prefill_seconds=round(sum(piece["seconds"] for piece in pieces if piece["what"] == "prefill"), 3),
            decode_seconds=round(spent, 3), decode_steps=count, decode_step_ms=round(1000 * spent / count, 2),
            floor_gb_a_step=round(needed / count / 1e9, 2), read_gb_a_step=round(read / count / 1e9, 2),
            floor_ms_a_step=bandwidth and round(1000 * needed / count / bandwidth, 2),
            share_of_floor=bandwidth and round(needed / bandwidth / spent, 3),
            tflop_a_second=round(2 * weights / dtype.itemsize * work / spent / 1e12, 1),
            peak_gib=round(stats.get("peak_bytes_in_use", 0) / 2**30, 1),
        )  # fmt: skip
        for rows, slots in sorted({(step["rows"], step["answer_slots"]) for step in steps}):
            same = [step for step in steps if (step["rows"], step["answer_slots"]) == (rows, slots)]
            ms = 1000 * sum(step["seconds"] for step in same) / sum(step["steps"] for step in same)
            report(what="chunk", rows=rows, answer_slots=slots, step_ms=round(ms, 2),
                   read_gb=round((weights + slot * same[0]["slots"]) / 1e9, 2))  # fmt: skip
        del generator
        jax.clear_caches()


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
        start = time.perf_counter()
        state, tokens = jax.block_until_ready(decode(params, state))
        seconds = time.perf_counter() - start
        after = np.asarray(state.made)
        steps = int((after - made).max())
        # In step i of the chunk a row attends to the tokens that it had before, and to its new one.
        real = steps * lengths + int(sum(made.sum() + i * rows for i in range(steps)))
        pieces.append({"what": "decode", "seconds": seconds, "steps": steps, "rows": rows, "answer_slots": slots,
                       "slots": prompts * width + rows * slots, "real_slots": real})  # fmt: skip
        return state, tokens

    def timed_prefill(*inputs):
        start = time.perf_counter()
        entered = jax.block_until_ready(prefill(*inputs))
        pieces.append({"what": "prefill", "seconds": time.perf_counter() - start})
        return entered

    generator._decode, generator._prefill = timed_decode, timed_prefill
    generator.generate(prompts, bank, lambda key, tokens: None)
    generator._decode, generator._prefill = decode, prefill
    return pieces


def copy_rate() -> float:
    """Bytes read and written a second, by a large copy on the device."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones(2**30 if jax.default_backend() == "gpu" else 2**24, jnp.bfloat16)
    copy = jax.jit(lambda x: -x)
    copy(x).block_until_ready()
    start = time.perf_counter()
    for _ in range(10):
        y = copy(x)
    y.block_until_ready()
    return 10 * 2 * x.nbytes / (time.perf_counter() - start)


def theirs(arguments: argparse.Namespace) -> None:
    import torch
    import transformers

    text = SIZES[arguments.size]
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    config = transformers.Qwen2Config(**text, max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=False)
    torch.set_default_dtype(getattr(torch, arguments.dtype))
    with device:
        model = transformers.Qwen2ForCausalLM(config).eval()
    rows = random_prompts(arguments.queries, text["vocab_size"])
    best = None
    for queries in map(int, arguments.peer_queries.split(",")):
        chosen = [rows[i % len(rows)] for i in range(queries)]
        width = max(map(len, chosen))
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in chosen], device=device)
        embeddings = torch.randn(queries, width, text["hidden_size"], device=device)

        def answer(embeddings=embeddings, mask=mask, new_tokens=arguments.new_tokens):
            with torch.no_grad():
                output = model.generate(
                    inputs_embeds=embeddings, attention_mask=mask, do_sample=True, num_return_sequences=arguments.samples,
                    min_new_tokens=new_tokens, max_new_tokens=new_tokens, pad_token_id=0, eos_token_id=1, **SAMPLING,
                )  # fmt: skip
            return output.cpu()

        try:
            answer(new_tokens=4)
            start = time.perf_counter()
            responses = len(answer())
            seconds = time.perf_counter() - start
        except torch.cuda.OutOfMemoryError:
            report(what="transformers", queries=queries, failed="out of memory")
            torch.cuda.empty_cache()
            continue
        line = dict(
            what="transformers", version=transformers.__version__, queries=queries, responses=responses,
            seconds=round(seconds, 3), responses_a_second=round(responses / seconds, 1),
            step_ms=round(1000 * seconds / arguments.new_tokens, 2),
            peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 1) if cuda else None,
        )  # fmt: skip
        report(**line)
        if best is None or line["responses_a_second"] > best["responses_a_second"]:
            best = line
    report(what="transformers at best", **{name: best[name] for name in ("queries", "responses_a_second")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--queries", type=int)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--batch", help="answers in flight, several with commas between")
    parser.add_argument("--peer_queries", help="queries in a batch of transformers, several with commas between")
    parser.add_argument("--dtype")
    parser.add_argument("--cache_dtype", default="auto")
    parser.add_argument("--lora", action="store_true", help="with adapters of rank 8 on all linears")
    parser.add_argument("--part", choices=("ours", "transformers", "both"), default="both")
    arguments = parser.parse_args()
    tiny = arguments.size == "tiny"
    arguments.queries = arguments.queries or (12 if tiny else 350)
    arguments.batch = arguments.batch or ("60" if tiny else "320")
    arguments.peer_queries = arguments.peer_queries or ("12" if tiny else "16,64")
    arguments.dtype = arguments.dtype or ("float32" if tiny else "bfloat16")
    if arguments.part != "both":
        (ours if arguments.part == "ours" else theirs)(arguments)
        return
    best = {}
    for part in ("transformers", "ours"):
        command = [sys.executable, __file__, *sys.argv[1:], f"--part={part}"]
        path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}) as process:
            for line in process.stdout:
                print(line, end="", flush=True)
                if line.startswith("{"):
                    rate = json.loads(line).get("responses_a_second")
                    best[part] = max(best.get(part, 0), rate or 0)
        if process.returncode:
            raise SystemExit(f"{part} failed with status {process.returncode}")
    report(what="ratio", ours_over_transformers=round(best["ours"] / best["transformers"], 2))


if __name__ == "__main__":
    main()
