"""Qwen2-Audio's keys on disk: those of transformers 4, which transformers 5 also writes."""

from collections.abc import Collection

from rrs_jax.models.qwen2_audio import Qwen2AudioConfig
from rrs_jax.weights.table import (
    DECODER_MODULES,
    Layout,
    Row,
    WeightTable,
    linear_rows,
    norm_rows,
    qwen2_rows,
    whisper_rows,
)

CLASS = "Qwen2AudioForConditionalGeneration"


def weight_table(config: Qwen2AudioConfig, values: dict, names: Collection[str]) -> WeightTable:
    """The table of a folder; neither config.json nor the tensors' names change it."""
    text = "language_model.model."
    rows = [Row("audio_tower.embed_positions.weight", ("audio_tower", "embed_positions"))]
    rows += whisper_rows("audio_tower.", ("audio_tower",), config.audio.encoder_layers)
    rows += norm_rows("audio_tower.layer_norm", ("audio_tower", "layer_norm"), bias=True)
    rows += linear_rows("multi_modal_projector.linear", ("multi_modal_projector",), bias=True)
    rows += qwen2_rows(text, ("language_model",), config.text.num_hidden_layers)
    head = "language_model.lm_head.weight"
    if not config.text.tie_word_embeddings:
        rows.append(Row(head, ("language_model", "lm_head")))
    return WeightTable(
        rows=tuple(rows),
        linears={name: f"{text}layers.{{i}}.{module}" for name, module in DECODER_MODULES.items()},
        embedding=f"{text}embed_tokens.weight",
        head=head,
        layers=f"{text}layers.",
        layouts={
            "whole4": Layout(f"{text}layers.", CLASS, "transformers 4 and 5"),
            "whole5": Layout("model.language_model.layers.", CLASS, "transformers 5 alone"),
        },
        layers_pattern=r".*language_model\.[a-z.]*layers\.",
        transformers_class=CLASS,
    )
