"""The map from the tensors of a Hugging Face folder to our parameters: one row a parameter, read in both
directions."""

import dataclasses
import re
from collections.abc import Callable

import numpy as np


def keep(array: np.ndarray) -> np.ndarray:
    """The array itself, for parameters that are on disk as they are here."""
    return array


def transpose(array: np.ndarray) -> np.ndarray:
    """The array with its axes reversed: torch's Linear is (out, in), ours (in, out); torch's Conv1d is
    (out, in, width), ours (width, in, out)."""
    return array.T


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter and the tensors that hold it.

    Attributes:
      name: the key on disk, with `{i}` for the layer where the parameter is stacked over layers.
      path: where the parameter stands in the model.
      convert: tensor to parameter; its own inverse, so that the same row loads and exports.
      layers: how many layers the parameter is stacked over, None for one that is not.
      part: (which, of how many), where the parameter is one of several equal parts of the tensor, which lie
        one below the other.
    """

    name: str
    path: tuple[str, ...]
    convert: Callable[[np.ndarray], np.ndarray] = keep
    layers: int | None = None
    part: tuple[int, int] = (0, 1)

    def names(self) -> list[str]:
        """Keys on disk, one a layer."""
        return [self.name] if self.layers is None else [self.name.format(i=i) for i in range(self.layers)]

    def read(self, tensor: np.ndarray) -> np.ndarray:
        """The parameter, or its layer, out of a tensor: a view."""
        which, parts = self.part
        size = tensor.shape[0] // parts
        return self.convert(tensor[which * size : (which + 1) * size])

    def shape_on_disk(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one tensor where the parameter, or its layer, has `shape`."""
        first, *rest = self.convert(np.broadcast_to(np.int8(0), shape)).shape
        return first * self.part[1], *rest


@dataclasses.dataclass(frozen=True)
class Layout:
    """The names by which one reader of an adapter calls the model's modules.

    Attributes:
      layers: what stands before the number of a decoder layer, with the dot.
      transformers_class: the class onto which PEFT loads the adapter.
      readers: the programs that load it, as a sentence of the model card.
    """

    layers: str
    transformers_class: str
    readers: str


@dataclasses.dataclass(frozen=True)
class WeightTable:
    """All rows of an architecture, and the facts about its folder that an export needs.

    Attributes:
      rows: one for each parameter of the model.
      linears: a LoRA target to its key, with `{i}` for the layer and without ".weight".
      embedding, head: keys; a tied head is the embedding itself, and may or may not stand on disk a second
        time.
      layers: what stands on disk before the number of a decoder layer, with the dot.
      layouts: the choices of `export.layout`; the first one is written where nothing is said.
      layers_pattern: a regular expression, without groups, that matches what stands before a decoder layer's
        number in all layouts and releases of transformers, and nothing else that holds modules of the same
        names.
      carried: regular expression of keys that are not loaded but stay in a merged folder.
      tied_at: where config.json says whether the head is tied, as paths of nested dictionaries.
      transformers_class: the class that loads the whole folder.
      remote_code: that class lies in the folder.
    """

    rows: tuple[Row, ...]
    linears: dict[str, str]
    embedding: str
    head: str
    layers: str
    layouts: dict[str, Layout]
    layers_pattern: str
    transformers_class: str
    carried: str | None = None
    tied_at: tuple[tuple[str, ...], ...] = ((), ("text_config",))
    remote_code: bool = False

    def is_carried(self, name: str) -> bool:
        """True for a key that is not loaded but stays in a merged folder."""
        return self.carried is not None and re.match(self.carried, name) is not None


def linear_rows(name: str, path: tuple[str, ...], *, bias: bool, layers: int | None = None) -> list[Row]:
    """Rows of a linear: its weight, and its bias if it has one."""
    rows = [Row(f"{name}.weight", (*path, "kernel"), transpose, layers)]
    return rows + [Row(f"{name}.bias", (*path, "bias"), keep, layers)] if bias else rows


def as_on_disk(table: WeightTable, path: tuple[str, ...]) -> WeightTable:
    """The table with the kernels below `path` kept as `weight` (out, in), which no copy transposes."""

    def turned(row: Row) -> Row:
        if row.path[: len(path)] != path or row.path[-1] != "kernel":
            return row
        return dataclasses.replace(row, path=(*row.path[:-1], "weight"), convert=keep)

    return dataclasses.replace(table, rows=tuple(map(turned, table.rows)))


def norm_rows(name: str, path: tuple[str, ...], *, bias: bool, layers: int | None = None) -> list[Row]:
    """Rows of a norm: its weight, and its bias if it has one."""
    return [
        Row(f"{name}.{part}", (*path, part), keep, layers)
        for part in (("weight", "bias") if bias else ("weight",))
    ]


def whisper_rows(prefix: str, path: tuple[str, ...], layers: int) -> list[Row]:
    """Rows of the encoder's convolutions and layers, as transformers names them."""
    rows = []
    for name in ("conv1", "conv2"):
        rows += [
            Row(f"{prefix}{name}.weight", (*path, name, "kernel"), transpose),
            Row(f"{prefix}{name}.bias", (*path, name, "bias")),
        ]
    layer = prefix + "layers.{i}."
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        rows += linear_rows(
            f"{layer}self_attn.{name}", (*path, "layers", name), bias=name != "k_proj", layers=layers
        )
    for name in ("fc1", "fc2"):
        rows += linear_rows(f"{layer}{name}", (*path, "layers", name), bias=True, layers=layers)
    for name in ("self_attn_layer_norm", "final_layer_norm"):
        rows += norm_rows(f"{layer}{name}", (*path, "layers", name), bias=True, layers=layers)
    return rows


DECODER_MODULES = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}


def qwen2_rows(prefix: str, path: tuple[str, ...], layers: int) -> list[Row]:
    """Rows of a Qwen2 decoder without its head."""
    rows = [Row(f"{prefix}embed_tokens.weight", (*path, "embed_tokens"))]
    layer = prefix + "layers.{i}."
    for name, module in DECODER_MODULES.items():
        bias = name in ("q_proj", "k_proj", "v_proj")
        rows += linear_rows(f"{layer}{module}", (*path, "layers", name), bias=bias, layers=layers)
    for name in ("input_layernorm", "post_attention_layernorm"):
        rows += norm_rows(f"{layer}{name}", (*path, "layers", name), bias=False, layers=layers)
    return rows + norm_rows(f"{prefix}norm", (*path, "norm"), bias=False)
