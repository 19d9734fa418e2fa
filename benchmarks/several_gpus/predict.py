"""A small model of a training step on many cards: arithmetic as one card takes it, bytes, collectives.

A step takes what one card takes for a card's rows, which grows with them along a line through two measured
points, plus what its collectives take: each its start and its bytes at the rate of the link. The rates are
those of collectives by themselves, beyond what each call of one takes the host. Two numbers are read off
whole steps: a collective's start within a program off the mesh `tensor`, which has the most sums, and how
long the layers' gathers take beside the arithmetic off the mesh `fsdp`. The other steps are predictions. Sums
and exchanges are not hidden: what follows needs them at once.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from several_gpus.collectives import KINDS, planned_step, planned_times

HOST = 8  # cards that NVLink connects
HOP_SECONDS = 1e-5  # that a collective takes longer for each further host
Mesh = Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Link:
    """Seconds that a collective takes to start, and bytes a second that a card then sends."""

    start: float
    rate: float


@dataclasses.dataclass(frozen=True)
class Cards:
    """What is known of a card and its links.

    Attributes:
      text: the model's `DecoderConfig`; rank: of the adapters; length: tokens of a row; item: bytes of a
        number.
      fixed, each: seconds of a step on one card, and of each of its rows.
      links: by kind of collective, within a host.
      network: bytes a second of one card to other hosts.
      gathers: seconds that a step is longer by for each second that its gathers take by themselves; below 1
        where arithmetic hides them, above where the two slow one another.
    """

    text: object
    rank: int
    length: int
    item: int
    fixed: float
    each: float
    links: Mapping[str, Link]
    network: float
    gathers: float = 1.0

    def compute(self, rows: float, mesh: Mesh) -> float:
        """Seconds of the arithmetic of `rows` rows in all."""
        return self.fixed + self.each * rows / (mesh["data"] * mesh["fsdp"] * mesh["tensor"])

    def collectives(self, rows: float, mesh: Mesh) -> dict[str, float]:
        """Seconds of a step's collectives by kind, none hidden."""
        sizes = planned_step(self.text, self.rank, rows, self.length, mesh, self.item)
        times, found = planned_times(self.text, mesh), {}
        for kind in KINDS:
            if not sizes[kind]:
                continue
            devices = {
                "all-gather": mesh["fsdp"] if mesh["fsdp"] > 1 else mesh["tensor"],
                "all-to-all": mesh["fsdp"],
                "all-reduce": mesh["tensor"] if mesh["tensor"] > 1 else mesh["data"] * mesh["fsdp"],
            }[kind]
            found[kind] = self.seconds(kind, sizes[kind], times[kind], devices, inner=self.inner(kind, mesh))
        return found

    @staticmethod
    def inner(kind: str, mesh: Mesh) -> int:
        """Cards that lie side by side in a collective's groups: `tensor` is the innermost axis."""
        return 1 if kind == "all-reduce" else mesh["tensor"]

    def seconds(self, kind: str, size: float, times: int, devices: int, inner: int) -> float:
        """Seconds of `times` collectives of `size` bytes in all among `devices` cards."""
        sent = size * (devices - 1) / devices * (2 if kind == "all-reduce" else 1)
        link, hosts = self.links.get(kind, self.links["all-gather"]), -(-devices * inner // HOST)
        rate = link.rate if hosts == 1 else min(link.rate, self.network * HOST)
        return times * (link.start + HOP_SECONDS * 2 * (hosts - 1)) + sent / rate

    def step(self, rows: float, mesh: Mesh) -> float:
        """Returns the seconds of a training step of `rows` rows in all."""
        compute, parts = self.compute(rows, mesh), self.collectives(rows, mesh)
        gathers = parts.pop("all-gather", 0.0)
        return compute + gathers * self.gathers + sum(parts.values())


def fit_links(lines: Iterable[dict], start: float) -> dict[str, Link]:
    """Returns the links that lines of the part `links` tell, with rates by least squares."""
    found = {}
    lines = [line for line in lines if line["part"] == "links"]
    for kind in dict.fromkeys(line["kind"] for line in lines):
        same = [line for line in lines if line["kind"] == kind]
        seconds = np.asarray([line["seconds"] for line in same])
        sent = np.asarray([line["sent_a_second"] * line["seconds"] for line in same])
        matrix = np.stack([np.ones_like(sent), sent], axis=1) / seconds[:, None]
        (_, each), *_ = np.linalg.lstsq(matrix, np.ones_like(seconds), rcond=None)
        found[kind] = Link(start, 1 / max(float(each), 1e-15))
    return found


def sizes_of(name: str) -> dict[str, int]:
    """Returns the axes' sizes of a mesh's name (`workload.name_of`)."""
    given = dict(part.split() for part in name.split(", ")) if name != "one" else {}
    return {axis: int(given.get(axis, 1)) for axis in ("data", "fsdp", "tensor")}


def fit(lines: list[dict], text, item: int, network: float) -> tuple[Cards, list[dict]]:
    """Returns the model of the cards, and a row for each measured step: what was measured, what is predicted,
    and whether it was used (`fitted`)."""
    steps = [line for line in lines if line["part"] in ("train", "rows")]
    (small, few), (large, many) = sorted(
        (line["batch"], line["seconds"]) for line in steps if line["mesh"] == "one"
    )[:2]
    each = (many - few) / (large - small)
    length = lines[0]["length"]
    cards = Cards(text, 8, length, item, few - each * small, each, fit_links(lines, 0.0), network)

    def first(axis: str) -> tuple[dict, float, dict[str, float]] | None:
        """The first step of a mesh of this axis alone: its line, and what is predicted of it so far."""
        for line in steps:
            if line["part"] == "train" and line["mesh"].split()[0] == axis and "," not in line["mesh"]:
                mesh = sizes_of(line["mesh"])
                return line, cards.step(line["batch"], mesh), cards.collectives(line["batch"], mesh)
        return None

    fitted = [line for line in steps if line["mesh"] == "one"]
    if found := first("tensor"):
        line, predicted, _ = found
        times = sum(planned_times(text, sizes_of(line["mesh"])).values())
        start = max((line["seconds"] - predicted) / times, 0.0)
        cards = dataclasses.replace(cards, links=fit_links(lines, start))
        fitted.append(line)
    if found := first("fsdp"):
        line, predicted, parts = found
        factor = 1 + (line["seconds"] - predicted) / parts["all-gather"]
        cards = dataclasses.replace(cards, gathers=max(factor, 0.0))
        fitted.append(line)
    rows = []
    for line in steps:
        predicted = cards.step(line["batch"], sizes_of(line["mesh"]))
        rows.append(
            {
                "mesh": line["mesh"],
                "batch": line["batch"],
                "measured": line["seconds"],
                "predicted": predicted,
                "off": predicted / line["seconds"] - 1,
                "fitted": line in fitted,
            }
        )
    return cards, rows
