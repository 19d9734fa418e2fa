"""The benchmarks at a tiny size: floors against torch's own count of operations, and lines of both sides."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import common  # noqa: E402
import ours  # noqa: E402
import peer  # noqa: E402
import side_by_side  # noqa: E402
from folders import write_random_weights, write_small_files  # noqa: E402
from performance_page import comparison_table, draw, with_peer_of_whole_run  # noqa: E402
from released_sizes import small  # noqa: E402

from rrs_jax.architectures import part  # noqa: E402
from rrs_jax.inputs.processor import Processor  # noqa: E402
from rrs_jax.inputs.prompts import PROMPT_POOL, PROMPT_REFUSAL, PROMPT_T  # noqa: E402
from rrs_jax.models.released import RELEASED  # noqa: E402


def options(*more: str):
    return side_by_side.parse(["--model=tiny", "--steps=1", "--batch=2", "--clips=3", "--new_tokens=4", "--queries=2", *more])


def lines_of(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("model", ["tiny", "omni-7b"])
def test_floors_are_the_operations_that_torch_counts(model):
    values = small(RELEASED[model]) if model in RELEASED else common.SIZES[model]
    config = part("models", values).MODEL.config_class.from_hf(values)
    theirs = peer.Peer(values, config, options())
    batch, length, rank = 2, 112, 8
    inputs = theirs.inputs(batch, length)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        theirs.kept(inputs, theirs.decoder)
    # torch counts nothing for its fused attention on a CPU, as the floors leave attention out.
    assert counter.get_total_flops() == common.forward_flops(config.text, batch * length)

    adapters = [parameter for parameter in theirs.adapted(rank).parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in adapters) == common.adapter_weights(config.text, rank)
    step = theirs.one_step(lambda: theirs.kept(inputs, theirs.decoder), adapters, batch)
    with FlopCounterMode(display=False) as counter:
        step()
    # The first layer's q, k and v pass no gradient to their input, which nothing before them needs.
    linears = config.text.linears()
    unneeded = sum(a * b + rank * a for a, b in (linears[name] for name in ("q_proj", "k_proj", "v_proj")))
    counted = counter.get_total_flops() + 2 * batch * length * unneeded
    assert counted == common.step_flops(config.text, batch * length, rank)


def test_encoder_floor_is_what_torch_counts_for_30_seconds():
    values = common.SIZES["tiny"]
    config = part("models", values).MODEL.config_class.from_hf(values)
    theirs = peer.Peer(values, config, options())
    _, projector = peer.module_of_class(theirs.model, "Projector")
    features = torch.zeros(2, config.audio.num_mel_bins, 3000)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        projector(theirs.tower(features).last_hidden_state)
    assert counter.get_total_flops() == common.encoder_flops(config.audio, config.text.hidden_size, [3000, 3000])


@pytest.mark.parametrize("model, parts", [
    ("tiny", ["step", "extract", "encoder", "generate"]), ("omni-7b", ["step", "encoder"]),
    ("qwen-audio", ["extract", "encoder"]),
])  # fmt: skip
def test_both_sides_tell_a_line_for_each_part(model, parts, capsys):
    values = small(RELEASED[model]) if model in RELEASED else common.SIZES[model]
    arguments = options(f"--parts={','.join(parts)}", "--answers=4", "--samples=2", "--peer_queries=2", "--adapters")
    ours.measure(values, arguments)
    peer.measure(values, arguments)
    lines = lines_of(capsys)
    assert not [line for line in lines if "failed" in line]
    compared = [line for line in side_by_side.compare(lines, model) if line.get("side") == "comparison"]
    assert [line["part"] for line in compared] == parts
    for line in compared:
        assert line["ratio"] == pytest.approx(line["ours_a_second"] / line["peer_a_second"])
        assert line["share_of_floor"] == pytest.approx(line["floor_seconds"] / line["ours_seconds"])


def test_what_fails_is_told_and_the_rest_goes_on(capsys):
    def broken(arguments):
        raise RuntimeError("no memory\nand more")

    done = []
    arguments = options("--parts=step,extract")
    side_by_side_parts = {"step": broken, "extract": done.append, "encoder": broken}
    from parts import each_part

    each_part("peer", side_by_side_parts, arguments)
    assert lines_of(capsys) == [{"part": "step", "side": "peer", "failed": "RuntimeError: no memory"}]
    assert done == [arguments]


def test_medians_of_turns_and_the_best_variant_count():
    def line(side, variant, seconds, **more):
        return dict(part="step", side=side, variant=variant, seconds=seconds, units=8, unit="samples", batch=8, **more)

    device = {"part": "device", "side": "ours", "device": "d", "version": "v", "flops_a_second": 10.0, "bytes_a_second": 4.0}
    lines = [device, device | {"side": "peer", "flops_a_second": 20.0}]
    lines += [line("ours", "a", seconds, floor_flops=20, floor_bytes=2) for seconds in (3.0, 9.0, 4.0)]
    lines += [line("peer", "slow", 16.0), *(line("peer", "fast", seconds) for seconds in (8.0, 7.0, 20.0))]
    compared = side_by_side.compare(lines, "m")[-1]
    assert (compared["ours_seconds"], compared["peer_seconds"], compared["peer_variant"]) == (4.0, 8.0, "fast")
    assert compared["floor_seconds"] == 20 / 20 + 2 / 4 and compared["ratio"] == 2.0


def test_the_page_takes_the_last_lines_and_draws_the_scales(tmp_path):
    def line(batch, seconds, part="step"):
        rates = {f"{side}_{name}": value for side in ("ours", "peer", "floor") for name, value in
                 (("seconds", seconds), ("a_second", batch / seconds))}  # fmt: skip
        return {"model": "m", "part": part, "side": "comparison", "batch": batch, "length": 144, "rank": 8, "unit": "samples",
                "ratio": 1.0, **rates}  # fmt: skip

    lines = [line(1, 5.0), line(4, 1.0), line(16, 2.0), line(1, 0.5)]
    failed = {"model": "m", "part": "step", "side": "peer", "failed": "out of memory"}
    table = comparison_table([*lines, failed])
    assert "| 2 samples/s (500 ms) |" in table and "5.00 s" not in table
    assert "Failed: m, step, peer: out of memory." in table
    assert [file.name for file in draw(lines, tmp_path, "n")] == ["n-batch.svg"]


def test_prompts_are_as_long_as_by_qwens_own_tokenizer(tmp_path):
    write_small_files(tmp_path, common.SIZES["small"])
    processor = Processor.from_folder(tmp_path)
    lengths = [len(processor.encode(text, [75])) for text in (*PROMPT_POOL, PROMPT_T, PROMPT_REFUSAL)]
    by_qwen = [109, 109, 109, 110, 112, 111, 113, 111, 112, 114, 113, 125]  # with the tokenizer and template of the mini
    assert np.abs(np.subtract(lengths, by_qwen)).max() <= 1


def test_a_folder_of_random_weights_is_loaded_by_transformers_whole(tmp_path):
    values = common.SIZES["tiny"]
    write_small_files(tmp_path, values)
    size = write_random_weights(tmp_path / "model.safetensors", values, "float32")
    assert (tmp_path / "model.safetensors").stat().st_size == size
    model_class, settings = peer.peer_class(values, part("models", values).MODEL.config_class.from_hf(values))
    _, info = model_class.from_pretrained(tmp_path, config=settings, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]


def test_the_peers_whole_run_is_by_its_rates():
    def compared(name, rate, **more):
        return {"model": "m", "part": name, "side": "comparison", "peer_a_second": rate, "peer_seconds": 1.0, **more}

    parts = [compared("encoder", 10.0), compared("extract", 20.0, length=200), compared("step", 40.0, length=200)]
    run = {"model": "m", "part": "whole", "side": "ours", "extractions": 60, "sample_passes": 400, "mean_tokens": 100.0}
    line = {"model": "m", "part": "whole", "side": "comparison", "ours_seconds": 2.0}
    whole = with_peer_of_whole_run(line, [*parts, run, line])
    assert whole["peer_seconds"] == 40 / 10 + 60 / 20 / 2 + 400 / 40 / 2 and whole["ratio"] == whole["peer_seconds"] / 2
    assert with_peer_of_whole_run(line, [*parts[1:], run, line]) == line


def test_clips_are_as_long_as_the_starter_set():
    seconds = common.clip_seconds(1131)
    assert np.quantile(seconds, [0, 0.5, 1]) == pytest.approx([1.6, 2.61, 5.88], abs=0.3)
    assert seconds.mean() == pytest.approx(2.68, abs=0.05)
