"""Qwen-Audio-Chat's keys on disk: those of its released code."""

from collections.abc import Collection

from rrs_jax.models.qwen_audio import QwenAudioConfig
from rrs_jax.weights.table import Layout, Row, WeightTable, keep, linear_rows, norm_rows, transpose

LAYERS = "transformer.h."
CLASS = "AutoModelForCausalLM"
THIRDS = ("q_proj", "k_proj", "v_proj")  # of c_attn, one below the other
LINEARS = {
    "c_attn": "attn.c_attn",
    "attn_c_proj": "attn.c_proj",
    "w1": "mlp.w1",
    "w2": "mlp.w2",
    "mlp_c_proj": "mlp.c_proj",
}
DECODER = {"o_proj": "attn.c_proj", "up_proj": "mlp.w1", "gate_proj": "mlp.w2", "down_proj": "mlp.c_proj"}
ENCODER = {
    "q_proj": "attn.query",
    "k_proj": "attn.key",
    "v_proj": "attn.value",
    "out_proj": "attn.out",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
}
# Constants that older copies of the released code save along.
CONSTANTS = (
    r"transformer\.(h\.\d+\.attn\.(masked_bias|logn_tensor|rotary_emb\.inv_freq)|rotary_emb\.inv_freq)$"
)


def weight_table(config: QwenAudioConfig, values: dict, names: Collection[str]) -> WeightTable:
    """The table of a folder; neither config.json nor the tensors' names change it."""
    rows = encoder_rows(config.audio.encoder_layers) + decoder_rows(config.text.num_hidden_layers)
    if not config.text.tie_word_embeddings:
        rows.append(Row("lm_head.weight", ("language_model", "lm_head")))
    return WeightTable(
        rows=tuple(rows),
        linears={target: f"{LAYERS}{{i}}.{module}" for target, module in LINEARS.items()},
        embedding="transformer.wte.weight",
        head="lm_head.weight",
        layers=LAYERS,
        layouts={
            "whole4": Layout(LAYERS, CLASS, "the code that lies in the model's folder, with transformers 4")
        },
        layers_pattern=r".*transformer\.h\.",
        transformers_class=CLASS,
        carried=CONSTANTS,
        tied_at=((),),
        remote_code=True,
    )


def encoder_rows(layers: int) -> list[Row]:
    """Rows of the audio encoder and its projection."""
    prefix, path = "transformer.audio.", ("audio_tower",)
    rows = [Row(f"{prefix}positional_embedding", (*path, "embed_positions"))]
    for name in ("conv1", "conv2"):
        rows += linear_rows(f"{prefix}{name}", (*path, name), bias=True)
    block, stack = prefix + "blocks.{i}.", (*path, "layers")
    for name, module in ENCODER.items():
        rows += linear_rows(block + module, (*stack, name), bias=name != "k_proj", layers=layers)
    rows += norm_rows(f"{block}attn_ln", (*stack, "self_attn_layer_norm"), bias=True, layers=layers)
    rows += norm_rows(f"{block}mlp_ln", (*stack, "final_layer_norm"), bias=True, layers=layers)
    rows += norm_rows(f"{prefix}ln_post", (*path, "layer_norm"), bias=True)
    rows += linear_rows(f"{prefix}proj", ("proj",), bias=True)
    return [*rows, Row(f"{prefix}audio_bos_eos_token.weight", ("audio_bos_eos_token",))]


def decoder_rows(layers: int) -> list[Row]:
    """Rows of the decoder without its head; the fused c_attn holds three parameters."""
    path, block = ("language_model", "layers"), LAYERS + "{i}."
    rows = [Row("transformer.wte.weight", ("language_model", "embed_tokens"))]
    for third, name in enumerate(THIRDS):
        part = (third, len(THIRDS))
        rows.append(Row(f"{block}attn.c_attn.weight", (*path, name, "kernel"), transpose, layers, part))
        rows.append(Row(f"{block}attn.c_attn.bias", (*path, name, "bias"), keep, layers, part))
    for name, module in DECODER.items():
        rows += linear_rows(block + module, (*path, name), bias=False, layers=layers)
    rows += norm_rows(f"{block}ln_1", (*path, "input_layernorm"), bias=False, layers=layers)
    rows += norm_rows(f"{block}ln_2", (*path, "post_attention_layernorm"), bias=False, layers=layers)
    return rows + norm_rows("transformer.ln_f", ("language_model", "norm"), bias=False)
