"""The collectives of a compiled program, read from XLA's text of it, and those that a mesh should need."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

from rrs_jax.models.adapters import SAME_INPUT

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
ITEM = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "f8e4m3fn": 1,
    "bf16": 2,
    "f16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "f64": 8,
}
CUT_INPUTS = ("o_proj", "down_proj")  # linears whose inputs `tensor` cuts; of the others it cuts the outputs


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a program.

    Attributes:
      kind: one of `KINDS`.
      size: bytes of the whole array, on one device: gathered by all-gather, given to the other kinds.
      devices: how many take part.
      times: how often the program runs it, loops counted.
      source: XLA's name of the operation that it belongs to.
    """

    kind: str
    size: int
    devices: int
    times: int
    source: str

    @property
    def sent(self) -> float:
        """Bytes that each device sends in all, by a ring's algorithm."""
        share = 1.0 if self.kind == "collective-permute" else (self.devices - 1) / self.devices
        return self.times * self.size * share * (2 if self.kind == "all-reduce" else 1)


def read_collectives(text: str) -> list[Collective]:
    """Returns the collectives of a program's text (`compiled.as_text()`), those of small arrays too."""
    bodies = _computations(text)
    times = _times(bodies)
    found = []
    for name, lines in bodies.items():
        for line in lines:
            match = re.search(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(([^)]*)\)", line)
            if match is None:
                continue
            result, kind, started, operands = match.groups()
            # What is started gives a tuple of its operands and its results.
            size = _started_bytes(kind, result, operands) if started else _bytes(result)
            devices = _devices(line)
            size *= devices if kind == "reduce-scatter" else 1
            source = re.search(r'op_name="([^"]*)"', line)
            found.append(Collective(kind, size, devices, times[name], source.group(1) if source else ""))
    return found


def _computations(text: str) -> dict[str, list[str]]:
    """Each computation's lines by its name; the program itself is ENTRY."""
    bodies: dict[str, list[str]] = {}
    name = None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            name = "ENTRY" if head.group(1) else head.group(2)
            bodies[name] = []
        elif name is not None and line.startswith(" "):
            bodies[name].append(line)
    return bodies


def _times(bodies: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation runs: a loop's body as often as XLA knows it to."""
    callers: dict[str, list[tuple[str, int]]] = {name: [] for name in bodies}
    for name, lines in bodies.items():
        for line in lines:
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            for key, called in re.findall(r"(body|condition|calls|to_apply)=%?([\w.\-]+)", line):
                if called in callers:
                    callers[called].append((name, int(trips.group(1)) if trips and key == "body" else 1))

    def count(name: str) -> int:
        return 1 if name == "ENTRY" else sum(count(caller) * trips for caller, trips in callers[name])

    return {name: count(name) for name in bodies}


def _bytes(shapes: str) -> int:
    return sum(
        ITEM[kind] * math.prod(map(int, filter(None, sizes.split(","))))
        for kind, sizes in re.findall(rf"({'|'.join(ITEM)})\[([\d,]*)\]", shapes)
    )


def _started_bytes(kind: str, shapes: str, operands: str) -> int:
    """Bytes of the results within a tuple of operands and results."""
    arrays = [_bytes(f"{kind}[{sizes}]") for kind, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shapes)]
    given = operands.count("%")
    if len(arrays) == given:  # an all-reduce whose result alone is told
        return sum(arrays)
    return sum(arrays[given : 2 * given])


def _devices(line: str) -> int:
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}?,", line):
        return pairs.group(1).count("{") + 1
    groups = re.search(r"replica_groups=(.*?)(?:, [a-z_]+=|$)", line).group(1)
    if listed := re.match(r"\{\{([\d,]+)\}", groups):
        return len(listed.group(1).split(","))
    if tiled := re.match(r"\[(\d+),(\d+)\]", groups):
        return int(tiled.group(2))
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", groups))
    taken = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", groups[groups.index("]") + 1 :])
    return math.prod(int(part or sizes[axis]) for axis, part in taken)


def planned_step(
    text, rank: int, rows: int, length: int, mesh: Mapping[str, int], item: int
) -> dict[str, float]:
    """Returns the bytes of whole arrays, by kind, that a training step is planned to send.

    text: the decoder's `DecoderConfig`; adapters of `rank` on all its linears. rows, length: of the whole
    batch. mesh: sizes of its axes. item: bytes of a number.

    - `fsdp` gathers each layer's matrices (beside `tensor` a part of them): in the forward pass, and in the
      backward pass all but those of the last layer, which are still there. It exchanges the words' embeddings
      once.
    - `data` and `fsdp` add up the adapters' gradients, which have the shapes that
      `rrs_jax.models.adapters` packs them in.
    - `tensor` adds up hidden states: two of a layer in each direction, of the last layer one, and the words'
      embeddings; beside each, thin products of the adapters. It gathers the gradients of what is cut as its
      linear is.
    """
    layers, width, data, fsdp, tensor = (
        text.num_hidden_layers,
        text.hidden_size,
        *(mesh[axis] for axis in ("data", "fsdp", "tensor")),
    )
    linears = text.linears()
    layer = sum(a * b for a, b in linears.values()) / tensor
    states = rows * length * width / (data * fsdp)
    planned = dict.fromkeys(KINDS, 0.0)
    if fsdp > 1:
        planned["all-gather"] += (2 * layers - 1) * layer
        planned["all-to-all"] += states
    if data * fsdp > 1:
        planned["all-reduce"] += layers * packed_adapter(linears, rank, tensor)
    if tensor > 1:
        planned["all-reduce"] += (4 * (layers - 1) + 2) * states + 7 * (layers - 1) * rank * states / width
        planned["all-gather"] += layers * sum(rank * cut_side(name, size) for name, size in linears.items())
    return {kind: size * item for kind, size in planned.items()}


def planned_times(text, mesh: Mapping[str, int]) -> dict[str, int]:
    """Returns how often a training step is planned to run each kind of collective."""
    layers, tensor = text.num_hidden_layers, mesh["tensor"] > 1
    gathers = len(text.linears()) * (2 * layers - 1) if mesh["fsdp"] > 1 else 0
    reductions = layers if mesh["data"] * mesh["fsdp"] > 1 else 0
    return {
        "all-gather": gathers + tensor,
        "all-reduce": reductions + (4 * (layers - 1) + 2 if tensor else 0),
        "all-to-all": int(mesh["fsdp"] > 1),
    }


def packed_adapter(linears: Mapping[str, tuple[int, int]], rank: int, tensor: int = 1) -> float:
    """Numbers of one layer's adapters in one device's packing: a matrix A for each input, and B of each
    linear with rows for all linears of its input. Beside `tensor` each device has its part of what is cut."""
    total = 0.0
    for names in SAME_INPUT:
        rows_of_a = linears[names[0]][0] / (tensor if names[0] in CUT_INPUTS else 1)
        columns_of_b = sum(linears[name][1] / (1 if name in CUT_INPUTS else tensor) for name in names)
        total += len(names) * rank * (rows_of_a + columns_of_b)
    return total


def cut_side(name: str, size: tuple[int, int]) -> int:
    """The dimension of a linear that `tensor` cuts."""
    return size[0] if name in CUT_INPUTS else size[1]


def by_kind(collectives: Iterable[Collective]) -> dict[str, dict[str, float]]:
    """Returns for each kind `bytes` of whole arrays, `sent` by a device, `times`, and the `largest` array."""
    table = {kind: {"bytes": 0, "sent": 0.0, "times": 0, "largest": 0} for kind in KINDS}
    for one in collectives:
        row = table[one.kind]
        row["bytes"] += one.size * one.times
        row["sent"] += one.sent
        row["times"] += one.times
        row["largest"] = max(row["largest"], one.size)
    return table
