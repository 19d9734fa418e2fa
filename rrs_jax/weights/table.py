"""How the tensors of a Hugging Face folder map onto our parameters: one row a parameter, read in both directions."""

import dataclasses
from collections.abc import Callable

import numpy as np

from rrs_jax.models.qwen2_audio import Qwen2AudioConfig


def keep(array: np.ndarray) -> np.ndarray:
    return array


def transpose(array: np.ndarray) -> np.ndarray:
    """torch's Linear is (out, in), ours (in, out); torch's Conv1d is (out, in, width), ours (width, in, out)."""
    return array.T


@dataclasses.dataclass(frozen=True)
class Row:
    """`name` is the key on disk, with `{i}` for the layer where the parameter is stacked over `layers` of them.

    `convert` is its own inverse, so that the same row loads and exports.
    """

    name: str
    path: tuple[str, ...]
    convert: Callable[[np.ndarray], np.ndarray] = keep
    layers: int | None = None

    def names(self) -> list[str]:
        return [self.name] if self.layers is None else [self.name.format(i=i) for i in range(self.layers)]


@dataclasses.dataclass(frozen=True)
class WeightTable:
    """All rows of an architecture, and where its decoder's parts lie on disk.

    `linears` maps a LoRA target to its key, with `{i}` for the layer and without ".weight". `layers_pattern` is
    a regular expression, without groups, that matches a module's path up to the number of its decoder layer,
    in memory, in transformers 4 and 5. A tied `head` is `embedding` itself, and may or may not stand on disk a
    second time.
    """

    rows: tuple[Row, ...]
    linears: dict[str, str]
    layers_pattern: str
    embedding: str
    head: str


def _linear(name: str, path: tuple[str, ...], *, bias: bool, layers: int | None = None) -> list[Row]:
    rows = [Row(f"{name}.weight", (*path, "kernel"), transpose, layers)]
    return rows + [Row(f"{name}.bias", (*path, "bias"), keep, layers)] if bias else rows


def _norm(name: str, path: tuple[str, ...], *, bias: bool, layers: int | None = None) -> list[Row]:
    return [Row(f"{name}.{part}", (*path, part), keep, layers) for part in (("weight", "bias") if bias else ("weight",))]


def whisper_rows(prefix: str, path: tuple[str, ...], layers: int) -> list[Row]:
    """The encoder as transformers names it."""
    rows = [Row(f"{prefix}embed_positions.weight", (*path, "embed_positions"))]
    for name in ("conv1", "conv2"):
        rows += [
            Row(f"{prefix}{name}.weight", (*path, name, "kernel"), transpose),
            Row(f"{prefix}{name}.bias", (*path, name, "bias")),
        ]
    layer = prefix + "layers.{i}."
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        rows += _linear(f"{layer}self_attn.{name}", (*path, "layers", name), bias=name != "k_proj", layers=layers)
    for name in ("fc1", "fc2"):
        rows += _linear(f"{layer}{name}", (*path, "layers", name), bias=True, layers=layers)
    for name in ("self_attn_layer_norm", "final_layer_norm"):
        rows += _norm(f"{layer}{name}", (*path, "layers", name), bias=True, layers=layers)
    return rows


DECODER_MODULES = {
    "q_proj": "self_attn.q_proj", "k_proj": "self_attn.k_proj", "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj", "gate_proj": "mlp.gate_proj", "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}  # fmt: skip


def qwen2_rows(prefix: str, path: tuple[str, ...], layers: int) -> list[Row]:
    """A Qwen2 decoder without its head."""
    rows = [Row(f"{prefix}embed_tokens.weight", (*path, "embed_tokens"))]
    layer = prefix + "layers.{i}."
    for name, module in DECODER_MODULES.items():
        bias = name in ("q_proj", "k_proj", "v_proj")
        rows += _linear(f"{layer}{module}", (*path, "layers", name), bias=bias, layers=layers)
    for name in ("input_layernorm", "post_attention_layernorm"):
        rows += _norm(f"{layer}{name}", (*path, "layers", name), bias=False, layers=layers)
    return rows + _norm(f"{prefix}norm", (*path, "norm"), bias=False)


def qwen2_audio_table(config: Qwen2AudioConfig) -> WeightTable:
    """Qwen2-Audio's keys on disk: those of transformers 4, which transformers 5 also writes."""
    text = "language_model.model."
    rows = whisper_rows("audio_tower.", ("audio_tower",), config.audio.encoder_layers)
    rows += _norm("audio_tower.layer_norm", ("audio_tower", "layer_norm"), bias=True)
    rows += _linear("multi_modal_projector.linear", ("multi_modal_projector",), bias=True)
    rows += qwen2_rows(text, ("language_model",), config.text.num_hidden_layers)
    head = "language_model.lm_head.weight"
    if not config.text.tie_word_embeddings:
        rows.append(Row(head, ("language_model", "lm_head")))
    linears = {name: f"{text}layers.{{i}}.{module}" for name, module in DECODER_MODULES.items()}
    pattern = r".*language_model\.[a-z.]*layers\."
    return WeightTable(tuple(rows), linears, pattern, embedding=f"{text}embed_tokens.weight", head=head)
