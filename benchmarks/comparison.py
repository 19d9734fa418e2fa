"""Ours beside the peer, from the lines that the benchmarks print: medians over turns, the best variant of
each side, the floor, the ratio and the share of the floor."""

import statistics
from collections.abc import Iterable, Sequence

SETTING = ("batch", "length", "rank")
# In the name of a variant with a base in 8 bit: other numbers, so it is not compared with the peer's.
MATRICES = "8 matrices"


def compare(lines: Sequence[dict]) -> list[dict]:
    """A line for each model, part and setting that either side measured, in the order of the first
    measurement."""
    models = dict.fromkeys(line["model"] for line in lines)
    return [
        line
        for model in models
        for line in _of_model([line for line in lines if line["model"] == model], model)
    ]


def _of_side(side: str, line: dict | None) -> dict:
    if not line:
        return {}
    return {
        "unit": line["unit"],
        f"{side}_seconds": line["seconds"],
        f"{side}_variant": line["variant"],
        f"{side}_a_second": line["units"] / line["seconds"],
    }


def _of_model(lines: list[dict], model: str) -> list[dict]:
    devices = [line for line in lines if line["part"] == "device"]
    rates = {
        name: max((line[name] for line in devices), default=0)
        for name in ("flops_a_second", "bytes_a_second")
    }
    versions = {line["side"]: line["version"] for line in devices}
    timed = [line for line in latest(lines) if MATRICES not in line["variant"]]
    found = []
    for key in dict.fromkeys(map(setting, timed)):
        same = [line for line in timed if setting(line) == key]
        ours, peer = (best(line for line in same if line["side"] == side) for side in ("ours", "peer"))
        line = {"model": model, **dict(zip(("part", *SETTING), key, strict=True))}
        line |= _of_side("ours", ours) | _of_side("peer", peer)
        if ours and (floor := floor_seconds(ours, rates, lines)):
            line |= {
                "floor_seconds": floor,
                "floor_a_second": ours["units"] / floor,
                "share_of_floor": floor / ours["seconds"],
            }
        if ours and peer:
            line["ratio"] = line["ours_a_second"] / line["peer_a_second"]
        if devices:
            line |= {"device": devices[0]["device"], "versions": versions, **rates}
        found.append(line)
    return [_with_peer_of_whole_run(line, found, lines) for line in found]


def latest(lines: Iterable[dict]) -> list[dict]:
    """The timed lines of the last call that measured each variant: its turns, of which the first has the
    number 0."""
    found: dict[tuple, list[dict]] = {}
    for line in lines:
        if "seconds" not in line or "units" not in line:
            continue
        turns = found.setdefault((line["model"], *setting(line), line["side"], line["variant"]), [])
        if not line.get("turn"):
            turns.clear()
        turns.append(line)
    return [line for turns in found.values() for line in turns]


def setting(line: dict) -> tuple:
    return (
        line["part"],
        line.get("batch") if line["part"] != "generate" else None,
        line.get("length"),
        line.get("rank"),
    )


def medians(lines: Iterable[dict]) -> list[dict]:
    """The first line of each variant, with the median of its turns' seconds."""
    variants: dict[str, list[dict]] = {}
    for line in lines:
        variants.setdefault(line["variant"], []).append(line)
    return [
        group[0] | {"seconds": statistics.median(line["seconds"] for line in group)}
        for group in variants.values()
    ]


def best(lines: Iterable[dict]) -> dict | None:
    """The variant with the highest rate."""
    return max(medians(lines), key=lambda line: line["units"] / line["seconds"], default=None)


def floor_seconds(line: dict, rates: dict, lines: Sequence[dict]) -> float:
    """0 where the rate was not measured."""
    disk = next(
        (line["read_bytes_a_second"] for line in reversed(lines) if line.get("detail") == "folder"), 0
    )
    seconds = 0.0
    for work, rate in (
        ("floor_flops", rates["flops_a_second"]),
        ("floor_bytes", rates["bytes_a_second"]),
        ("disk_bytes", disk),
    ):
        seconds += line[work] / rate if rate and work in line else 0.0
    return seconds


def _with_peer_of_whole_run(line: dict, compared: Sequence[dict], lines: Sequence[dict]) -> dict:
    """The whole run's line with what the peer would take by its rates of encoder, extraction and step, where
    they were measured too; a shorter prompt takes less time in proportion. Saving and compilation, which only
    we have, are free.
    """
    if line["part"] != "whole" or "ours_seconds" not in line:
        return line
    run = next(other for other in reversed(lines) if "sample_passes" in other)
    parts = {other["part"]: other for other in reversed(compared) if "peer_seconds" in other}
    if not {"encoder", "extract", "step"} <= parts.keys():
        return line
    clips = 2 * run["extractions"] / 3
    shorter = {name: run["mean_tokens"] / parts[name]["length"] for name in ("extract", "step")}
    seconds = clips / parts["encoder"]["peer_a_second"]
    seconds += run["extractions"] * shorter["extract"] / parts["extract"]["peer_a_second"]
    seconds += run["sample_passes"] * shorter["step"] / parts["step"]["peer_a_second"]
    variant = "by its rates of encoder, extraction and step"
    return line | {"peer_seconds": seconds, "peer_variant": variant, "ratio": seconds / line["ours_seconds"]}
