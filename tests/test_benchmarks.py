"""The benchmarks at a tiny size: floors against torch's own count of operations, and lines of both sides."""

import json
import os
import signal
import threading
import time
import xml.etree.ElementTree

import common
import decoding_step
import numpy as np
import ours
import peer
import pytest
import side_by_side
import torch
from comparison import compare
from folders import write_random_weights, write_small_files
from parts import each_part, failure_told, interruptible
from performance_page import comparison_table, profiles, scaling, variants_table
from released_sizes import small
from torch.utils.flop_counter import FlopCounterMode

from rrs_jax.config.prompts import PROMPT_POOL, PROMPT_REFUSAL, PROMPT_T
from rrs_jax.inputs.processor import Processor
from rrs_jax.models.architectures import part
from rrs_jax.models.released import RELEASED


def options(*more: str):
    return side_by_side.parse(
        ["--model=tiny", "--steps=1", "--batch=2", "--clips=3", "--new_tokens=4", "--queries=2", *more]
    )


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
    assert counter.get_total_flops() == common.encoder_flops(
        config.audio, config.text.hidden_size, [3000, 3000]
    )


@pytest.mark.parametrize(
    "model, parts",
    [
        ("tiny", ["step", "extract", "encoder", "generate"]),
        ("omni-7b", ["step", "encoder"]),
        ("qwen-audio", ["extract", "encoder"]),
    ],
)
def test_both_sides_tell_a_line_for_each_part(model, parts, capsys):
    values = small(RELEASED[model]) if model in RELEASED else common.SIZES[model]
    arguments = options(
        f"--parts={','.join(parts)}", "--answers=4", "--samples=2", "--peer_queries=2", "--adapters"
    )
    ours.measure(values, arguments)
    peer.measure(values, arguments)
    lines = [{"model": model, **line} for line in lines_of(capsys)]
    assert not [line for line in lines if "failed" in line]
    compared = compare(lines)
    assert [line["part"] for line in compared] == parts
    for line in compared:
        assert line["ratio"] == pytest.approx(line["ours_a_second"] / line["peer_a_second"])
        assert line["share_of_floor"] == pytest.approx(line["floor_seconds"] / line["ours_seconds"])


def test_what_fails_is_told_and_the_rest_goes_on(capsys):
    def broken(arguments):
        raise RuntimeError("no memory\nand more")

    done = []
    arguments = options("--parts=step,extract")
    each_part("peer", {"step": broken, "extract": done.append, "encoder": broken}, arguments)
    with failure_told(part="generate", variant="many"):
        raise MemoryError
    assert lines_of(capsys) == [
        {"part": "step", "side": "peer", "failed": "RuntimeError: no memory"},
        {"part": "generate", "variant": "many", "failed": "MemoryError: "},
    ]
    assert done == [arguments]


@pytest.mark.parametrize(
    "script, last", [("import time; time.sleep(60)", "interrupted"), ("exit(3)", "ended with status 3")]
)
def test_what_was_measured_outlives_a_side_that_ends_and_a_time_limit(tmp_path, monkeypatch, script, last):
    (tmp_path / "side.py").write_text(f'print(\'{{"part": "step"}}\', flush=True)\n{script}')
    monkeypatch.setattr(side_by_side, "__file__", str(tmp_path / "side.py"))
    lines = []

    def time_limit():
        while not lines:
            time.sleep(0.05)
        for _ in range(2):  # as `timeout` does, to the program and to its group
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    interruptible()
    try:
        if last == "interrupted":
            threading.Thread(target=time_limit).start()
            with pytest.raises(KeyboardInterrupt):
                side_by_side.run_side(lines, "m", "ours", 0, str(tmp_path / "out"))
        else:
            side_by_side.run_side(lines, "m", "ours", 0, str(tmp_path / "out"))
    finally:
        signal.signal(signal.SIGTERM, before)
    written = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert (
        written
        == lines
        == [
            {"model": "m", "part": "step", "turn": 0},
            {"model": "m", "part": "process", "side": "ours", "failed": last},
        ]
    )


def line_of(side, variant, seconds, batch=8, **more):
    told = dict(
        model="m",
        part="step",
        side=side,
        variant=variant,
        seconds=seconds,
        units=batch,
        unit="samples",
        batch=batch,
    )
    return told | more


DEVICE = dict(
    model="m", part="device", side="ours", device="d", version="v", flops_a_second=10.0, bytes_a_second=4.0
)


def test_medians_of_turns_and_the_best_variant_count():
    lines = [DEVICE, DEVICE | {"side": "peer", "flops_a_second": 20.0}]
    lines += [line_of("ours", "a", 1.0, turn=0)]  # of an earlier call
    turns = list(enumerate((3.0, 9.0, 4.0)))
    lines += [
        line_of("ours", "a", seconds, floor_flops=20, floor_bytes=2, turn=turn) for turn, seconds in turns
    ]
    lines += [line_of("ours", "a, int8 matrices", 0.1)]  # another model's numbers
    lines += [
        line_of("peer", "slow", 16.0),
        *(line_of("peer", "fast", s, turn=turn) for turn, s in enumerate((8.0, 7.0, 20.0))),
    ]
    (compared,) = compare(lines)
    assert (compared["ours_seconds"], compared["peer_seconds"], compared["peer_variant"]) == (
        4.0,
        8.0,
        "fast",
    )
    assert compared["floor_seconds"] == 20 / 20 + 2 / 4 and compared["ratio"] == 2.0


def test_the_page_has_what_was_measured_last_and_what_failed():
    lines = [
        line_of("ours", "a", 5.0),
        line_of("peer", "b", 4.0, peak_gib=2.5),
        line_of("ours", "a", 0.5, peak_gib=1.5),
    ]
    lines += [line_of("ours", "c", 1.0, peak_gib=1.5)]  # what the process had taken before
    lines += [
        {"model": "m", "part": "step", "side": "peer", "variant": name, "failed": "no memory"}
        for name in ("d", "e")
    ]
    lines += [line_of("peer", "d", 9.0)]
    table = comparison_table(lines)
    assert "| m | step | 8 at once | – | 16 samples/s (500 ms) | 2 samples/s (4.00 s) | 8.00 |" in table
    assert "Failed: m, step, peer, e: no memory." in table and "peer, d" not in table
    assert variants_table(lines).splitlines()[2:] == [
        "| m | step | ours | a | 16 samples/s (500 ms) | 1.5 |  |",
        "| m | step | ours | c | 8 samples/s (1.00 s) | – |  |",
        "| m | step | peer | b | 2 samples/s (4.00 s) | 2.5 |  |",
        "| m | step | peer | d | 0.889 samples/s (9.00 s) | – |  |",
    ]


def test_curves_of_three_settings_or_more(tmp_path):
    lines = [
        line_of(side, side, batch / 2, batch, length=9, rank=8)
        for batch in (4, 16, 1)
        for side in ("ours", "peer")
    ]
    lines += [line_of("ours", "ours", 1.0, 4, length=19, rank=8)]
    text, files = scaling(lines, tmp_path, "n")
    assert [file.name for file in files] == ["n-m-batch.svg"]
    assert [row.split(" | ")[0] for row in text.splitlines() if row.startswith("| ")] == [
        "| samples a step",
        "| ---:",
        "| 1",
        "| 4",
        "| 16",
    ]
    drawn = xml.etree.ElementTree.parse(files[0]).getroot()
    places = [
        [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        for line in drawn.iter("{http://www.w3.org/2000/svg}polyline")
    ]
    ours, theirs = places
    assert (
        ours == theirs
    )  # the same rate at each of the three, which lie in equal steps of a logarithmic scale
    (a, _), (b, _), (c, _) = ours
    assert b - a == pytest.approx(c - b, abs=0.2) and len({y for _, y in ours}) == 1
    assert comparison_table(lines).count("| m | step |") == 1


def test_a_profile_tells_kernels_and_the_share_of_the_matrix_units():
    top = [f"{10 - i:.2f} ms {i + 1}x kernel_{i}" for i in range(10)]
    line = {
        "model": "m",
        "part": "step",
        "variant": "v",
        "batch": 16,
        "top": top,
        "kernel_milliseconds": 60.0,
        "launches": 100,
        "milliseconds": 100.0,
        "floor_flops": 49.45e12,
        "device": "NVIDIA H100 80GB HBM3",
    }
    text = profiles([line | {"top": []}, line])
    assert (
        "(m, v, 16 at once): 100.0 ms, 494 TFLOP/s" in text
        and "**50% of the matrix units' 989 TFLOP/s**" in text
    )
    rows = [row for row in text.splitlines() if row.startswith("| ")][2:]
    assert rows[0] == "| `kernel_0` | 10.00 | 1 | 10.0% |" and len(rows) == 12
    assert rows[10:] == ["| all others | 5.00 | 45 | 5.0% |", "| between kernels | 40.00 |  | 40.0% |"]


def test_prompts_are_as_long_as_by_qwens_own_tokenizer(tmp_path):
    write_small_files(tmp_path, common.SIZES["small"])
    processor = Processor.from_folder(tmp_path)
    lengths = [len(processor.encode(text, [75])) for text in (*PROMPT_POOL, PROMPT_T, PROMPT_REFUSAL)]
    by_qwen = [
        109,
        109,
        109,
        110,
        112,
        111,
        113,
        111,
        112,
        114,
        113,
        125,
    ]  # with the tokenizer and template of the mini
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
    def timed(name, side, rate, **more):
        return {
            "model": "m",
            "part": name,
            "side": side,
            "variant": "v",
            "seconds": 1 / rate,
            "units": 1,
            "unit": "u",
            **more,
        }

    parts = [
        timed("encoder", "peer", 10.0),
        timed("extract", "peer", 20.0, length=200),
        timed("step", "peer", 40.0, length=200),
    ]
    whole = timed("whole", "ours", 0.5, extractions=60, sample_passes=400, mean_tokens=100.0)
    compared = compare([*parts, whole])[-1]
    assert compared["peer_seconds"] == pytest.approx(40 / 10 + 60 / 20 / 2 + 400 / 40 / 2)
    assert compared["ratio"] == pytest.approx(compared["peer_seconds"] / 2)
    assert "peer_seconds" not in compare([*parts[1:], whole])[-1]


def test_clips_are_as_long_as_the_starter_set():
    seconds = common.clip_seconds(1131)
    assert np.quantile(seconds, [0, 0.5, 1]) == pytest.approx([1.6, 2.61, 5.88], abs=0.3)
    assert seconds.mean() == pytest.approx(2.68, abs=0.05)


def test_a_decoding_step_is_timed_and_says_that_variants_are_for_a_gpu(capsys, monkeypatch):
    words = ["decoding_step.py", "--model=tiny", "--dtype=float32", "--queries=1"]
    monkeypatch.setattr("sys.argv", [*words, "--variants="])
    decoding_step.main()
    _, line = map(json.loads, capsys.readouterr().out.splitlines())
    assert line["rows"] == 5 and line["tokens"] == 1.0 and line["milliseconds"] > 0
    monkeypatch.setattr("sys.argv", [*words, "--variants=WARPS=8"])
    with pytest.raises(SystemExit, match="settings for a GPU"):
        decoding_step.main()
