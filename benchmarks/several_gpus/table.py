"""Tables of docs/hosts.md from lines that `several_gpus` wrote."""

import json
from collections.abc import Iterable
from pathlib import Path

import jax.numpy as jnp
from common import SIZES

from rrs_jax.models.architectures import part
from several_gpus.predict import Cards, fit, sizes_of

MANY = (16, 32, 64)  # cards that the prediction is made for
ROWS = 16  # of each card there


def tables(files: Iterable[Path], network: float) -> str:
    """Returns Markdown. `network`: GB a second of one card to other hosts, for the prediction."""
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    parts = [
        training(lines),
        collectives(lines),
        throughput(lines),
        omni(lines),
        processes(lines),
        default(lines),
    ]
    steps = [line for line in lines if line["part"] == "train"]
    if steps and any(line["part"] == "links" for line in lines):
        values = SIZES[steps[0]["model"]]
        text = part("models", values).MODEL.config_class.from_hf(values).text
        same = [line for line in lines if line.get("model") == steps[0]["model"]]
        item = jnp.dtype(steps[0]["dtype"]).itemsize
        parts.append(prediction(*fit(same, text, item, network * 1e9)))
    return "\n\n".join(filter(None, parts))


def grid(head: list[str], rows: list[list]) -> str:
    """Returns a Markdown table whose numbers stand on the right."""
    sides = ["---" if not rows or isinstance(rows[0][i], str) and not rows[0][i][:1].isdigit() else "---:"
             for i in range(len(head))]  # fmt: skip
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [head, sides, *rows])


def latest(lines: list[dict], *parts: str) -> list[dict]:
    """Returns lines of some parts, of lines about the same mesh and batch the last one."""
    kept: dict[tuple, dict] = {}
    for line in lines:
        if line["part"] in parts:
            kept[line["part"], line.get("mesh"), line.get("batch"), line.get("remat")] = line
    return list(kept.values())


def training(lines: list[dict]) -> str:
    found = latest(lines, "train", "rows")
    compared = {line["mesh"]: line for line in latest(lines, "losses")}
    one = {line["batch"]: line["seconds"] for line in found if line["mesh"] == "one"}
    rows = []
    for line in found:
        shared = line["batch"] // (sizes_of(line["mesh"])["data"] * sizes_of(line["mesh"])["fsdp"])
        alone = one.get(line["batch"]) if line["part"] == "train" else one.get(shared)
        work = 1 if line["part"] == "train" else line["batch"] / shared
        rows.append(
            [
                line["mesh"],
                line["batch"],
                f"{1000 * line['seconds']:.1f}",
                f"{line['batch'] / line['seconds']:.0f}",
                f"{alone * work / line['seconds'] / line['devices']:.0%}" if alone else "–",
                f"{line['arguments_gib'] + line['temporary_gib']:.1f}" if "arguments_gib" in line else "–",
                f"{max(line['peak_gib']):.1f}" if line.get("peak_gib") else "–",
                f"{compared[line['mesh']]['largest_difference']:.1e}"
                if line["part"] == "train" and line["mesh"] in compared
                else "–",
            ]
        )
    head = ["mesh", "rows in all", "ms a step", "samples/s", "of linear", "GiB a card, program"]
    head += ["highest use so far", "losses of 10 steps off by"]
    if not rows:
        return ""
    order = compared.get("one", {}).get("of_the_order_of_rows")
    told = f"\n\nOne card with its rows in another order: {order:.1e}." if order is not None else ""
    return grid(head, rows) + told + continued(found)


def continued(found: list[dict]) -> str:
    told = [
        f"from {line['continued']['from']} to {line['mesh']}"
        f" {abs(line['continued']['loss'] / line['continued']['expected'] - 1):.1e}"
        for line in found
        if "continued" in line
    ]
    return f" The next loss behind a checkpoint of another mesh is off by: {', '.join(told)}." if told else ""


def collectives(lines: list[dict]) -> str:
    rows = []
    for line in latest(lines, "train"):
        for kind, row in line["collectives"].items():
            planned = line["planned"][kind]
            rows.append(
                [
                    line["mesh"],
                    kind,
                    row["times"],
                    f"{row['bytes'] / 1e6:.2f}",
                    f"{planned / 1e6:.2f}",
                    f"{row['largest'] / 1e6:.2f}",
                ]
            )
    head = ["mesh", "collective", "times", "MB in all", "planned", "largest array"]
    return grid(head, rows) if rows else ""


def throughput(lines: list[dict]) -> str:
    rows = [
        [
            {"extract": "representations", "generate": "responses"}[line["part"]],
            line["mesh"],
            f"{line['a_second']:.0f}",
            f"{line['share_of_linear']:.0%}",
        ]
        for line in latest(lines, "extract", "generate")
    ]
    return grid(["what", "mesh", "a second", "of linear"], rows) if rows else ""


def omni(lines: list[dict]) -> str:
    rows = [
        [
            line["mesh"],
            line["remat"],
            line["batch"] // line["parts"],
            f"{max(line['peak_gib']) * 2**30 / 1e9:.1f}" if line.get("peak_gib") else "–",
            f"{line['limit_bytes'] / 1e9:.1f}" if line.get("limit_bytes") else "–",
        ]
        for line in latest(lines, "omni")
        if "loss" in line
    ]
    return grid(["Omni-7B on", "remat", "rows at once", "GB a card, most", "limit, GB"], rows) if rows else ""


def processes(lines: list[dict]) -> str:
    told = []
    for line in lines:
        if line["part"] == "processes" and "failed" not in line:
            told.append(
                f"{line['devices']} processes against one: losses of {line['steps']} steps off by"
                f" {line['largest_difference']:.1e}."
            )
        elif line["part"] == "killed" and "failed" not in line:
            told.append(
                f"Process {line['process']} killed: the others ended"
                f" {line['seconds_until_the_others_ended']:.0f} s later."
            )
        elif line["part"] == "resumed" and "failed" not in line:
            same = "the same, bit for bit" if line["equal_adapters"] else "not the same"
            told.append(
                f"The same command resumed at step {line['steps_before']} of {line['steps']}; its adapter is"
                f" {same}."
            )
    return " ".join(told)


def default(lines: list[dict]) -> str:
    found = [line for line in latest(lines, "default") if "stage_seconds" in line]
    names = ("extract", "train", "evaluate", "export", "report")
    rows = [
        [line["mesh"], f"{line['seconds']:.0f}"]
        + [f"{line['stage_seconds'][name]:.0f} ({line['compile_seconds'][name]:.0f})" for name in names]
        for line in found
    ]
    return grid(["mesh", "s in all", *(f"{name} (compiling)" for name in names)], rows) if rows else ""


def prediction(cards: Cards, rows: list[dict]) -> str:
    checked = [
        [
            row["mesh"],
            row["batch"],
            f"{1000 * row['measured']:.1f}",
            f"{1000 * row['predicted']:.1f}",
            "fitted" if row["fitted"] else f"{row['off']:+.0%}",
        ]
        for row in rows
    ]
    alone = cards.step(ROWS, sizes_of("one"))
    many = []
    for n in MANY:
        for name in (f"data {n}", f"data {n // 8}, fsdp 8", f"fsdp {n}", f"data {n // 8}, tensor 8"):
            mesh = sizes_of(name)
            batch = ROWS * mesh["data"] * mesh["fsdp"]
            seconds = cards.step(batch, mesh)
            share = batch / ROWS * alone / seconds / n
            many.append([name, batch, f"{1000 * seconds:.0f}", f"{batch / seconds:.0f}", f"{share:.0%}"])
    links = ", ".join(f"{kind} {link.rate / 1e9:.0f} GB/s" for kind, link in cards.links.items())
    start = 1e6 * max(link.start for link in cards.links.values())
    return "\n\n".join(
        [
            f"A step on one card: {1000 * cards.fixed:.1f} ms and {1000 * cards.each:.2f} ms a row. Links:"
            f" {links}, {start:.0f} µs to start one; {cards.network / 1e9:.0f} GB/s a card to other hosts."
            f" Gathers take {cards.gathers:.1f} times as long as by themselves.",
            grid(["mesh", "rows in all", "ms, measured", "predicted", "off"], checked),
            grid(["predicted for", "rows in all", "ms a step", "samples/s", "of linear"], many),
        ]
    )
