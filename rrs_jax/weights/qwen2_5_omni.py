"""Qwen2.5-Omni's keys on disk: of the whole model (`thinker.` before each), or of the thinker alone."""

from collections.abc import Collection

from rrs_jax.models.qwen2_5_omni import OmniConfig
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

WHOLE, THINKER = "Qwen2_5OmniForConditionalGeneration", "Qwen2_5OmniThinkerForConditionalGeneration"
# Which classes load an adapter was measured, docs/export.md has the table.
LAYOUTS = {
    "whole4": Layout(
        "thinker.model.layers.",
        THINKER,
        "the thinker's class in transformers 5, the whole model's in transformers 4 (4.52 or later), and"
        " vLLM",
    ),
    "thinker4": Layout("model.layers.", THINKER, "the thinker's class in transformers 4 and 5"),
    "whole5": Layout(
        "thinker.model.language_model.layers.", WHOLE, "the whole model's class in transformers 5"
    ),
    "thinker5": Layout("model.language_model.layers.", THINKER, "the thinker's class in transformers 5"),
}


def weight_table(config: OmniConfig, values: dict, names: Collection[str]) -> WeightTable:
    """The table of a folder. Where the tensors' names are known, they and not the config say whether it is
    that of the whole model."""
    whole = any(name.startswith("thinker.") for name in names) if names else "thinker_config" in values
    prefix = "thinker." if whole else ""
    text, tower = f"{prefix}model.", f"{prefix}audio_tower."
    rows = whisper_rows(tower, ("audio_tower",), config.audio.encoder_layers)
    rows += norm_rows(f"{tower}ln_post", ("audio_tower", "ln_post"), bias=True)
    rows += linear_rows(f"{tower}proj", ("audio_tower", "proj"), bias=True)
    rows += qwen2_rows(text, ("language_model",), config.text.num_hidden_layers)
    head = f"{prefix}lm_head.weight"
    if not config.text.tie_word_embeddings:
        rows.append(Row(head, ("language_model", "lm_head")))
    first = "whole4" if whole else "thinker4"
    place = ("thinker_config",) if "thinker_config" in values else ()
    return WeightTable(
        rows=tuple(rows),
        linears={name: f"{text}layers.{{i}}.{module}" for name, module in DECODER_MODULES.items()},
        embedding=f"{text}embed_tokens.weight",
        head=head,
        layers=f"{text}layers.",
        layouts={first: LAYOUTS[first]} | LAYOUTS,
        layers_pattern=r"(?:thinker\.)?model\.(?:language_model\.)?layers\.",
        transformers_class=WHOLE if whole else THINKER,
        # The encoder's own start and end vectors are in no forward pass; the word embeddings stand there.
        carried=rf"{prefix}(visual\.|audio_tower\.audio_bos_eos_token\.)|talker\.|token2wav\.",
        tied_at=(place, (*place, "text_config")),
    )
