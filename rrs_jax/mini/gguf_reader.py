"""A Qwen2 decoder from a GGUF file: configuration, tensors under Hugging Face names, vocabulary.

GGUF lists dimensions fastest first, so a (out, in) matrix has shape [in, out] there; the bytes are row-major
(out, in). For the architecture `qwen2` the file keeps query and key rows in Hugging Face's order (half-split
rotary), where for `llama` they would be permuted.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from rrs_jax.errors import UserError
from rrs_jax.files import DAMAGE, reading, reason_of
from rrs_jax.mini.gguf_bounds import check_bounds
from rrs_jax.mini.lazy_tensor import DTYPE, LazyTensor
from rrs_jax.mini.tokenizer import Vocabulary

LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
ROWS_AT_ONCE = 4096
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # tokenizer.ggml.token_type; unused rows (5) get no token


def check_package() -> None:
    """Raises UserError where the package that reads the file is missing."""
    if find_spec("gguf") is None:
        raise UserError("The small models' weights are read with the package gguf; run: pip install gguf")


class GGUFDecoder:
    """An open GGUF file of architecture `qwen2`; the tensors stay mapped on disk."""

    def __init__(self, path: Path):
        """Raises UserError where `path` is no GGUF file of a Qwen2 decoder."""
        check_package()
        import gguf

        self.path = path
        try:
            check_bounds(path, {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()})
            self.reader = gguf.GGUFReader(path)
        except DAMAGE as error:
            raise UserError(
                f"{path}: is no readable GGUF file ({reason_of(error)}); fetch it again."
            ) from error
        self.tensors = {tensor.name: tensor for tensor in self.reader.tensors}
        architecture = self.field("general.architecture", str)
        if architecture != "qwen2":
            raise UserError(f"{path}: holds the architecture '{architecture}'; 'qwen2' is needed.")

    def field(self, key: str, kind: type) -> Any:
        """Returns a metadata field. Raises UserError where the file lacks it, or has one of another kind."""
        field = self.reader.get_field(key)
        if field is None:
            raise UserError(f"{self.path}: lacks the field '{key}'; fetch the file again.")
        with reading(f"{self.path}, field '{key}'"):
            value = field.contents()
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(f"{self.path}: the field '{key}' is of another kind; fetch the file again.")
        return value

    def text_config(self) -> dict:
        """Returns the decoder's part of config.json."""
        return {
            "vocab_size": int(self.tensors[self.embedding_name()].shape[-1]),
            "hidden_size": self.field("qwen2.embedding_length", int),
            "intermediate_size": self.field("qwen2.feed_forward_length", int),
            "num_hidden_layers": self.layers(),
            "num_attention_heads": self.field("qwen2.attention.head_count", int),
            "num_key_value_heads": self.field("qwen2.attention.head_count_kv", int),
            "max_position_embeddings": self.field("qwen2.context_length", int),
            "rms_norm_eps": shortest(self.field("qwen2.attention.layer_norm_rms_epsilon", float)),
            "rope_theta": shortest(self.field("qwen2.rope.freq_base", float)),
        }

    def vocabulary(self) -> Vocabulary:
        """Returns the decoder's vocabulary."""
        tokens = self.field("tokenizer.ggml.tokens", list)
        kinds = self.field("tokenizer.ggml.token_type", list)
        if len(tokens) != len(kinds):
            raise UserError(
                f"{self.path}: has {len(tokens)} tokens and {len(kinds)} token types; fetch the file again."
            )
        added = {
            i: (tokens[i], kinds[i] == CONTROL)
            for i in range(len(tokens))
            if kinds[i] in (CONTROL, USER_DEFINED)
        }
        ranks = {tokens[i]: i for i in range(len(tokens)) if kinds[i] == NORMAL}
        return Vocabulary(ranks=ranks, merges=self.field("tokenizer.ggml.merges", list), added=added)

    def lazy_tensors(self) -> Iterator[LazyTensor]:
        """Yields all tensors of the decoder under their Qwen2-Audio names, without a head.

        The embedding and the output matrix are two quantisations of one tied matrix; the finer one stands for
        both. Raises UserError naming every missing and every surplus tensor.
        """
        names = {"output_norm.weight": "norm.weight"}
        for layer in range(self.layers()):
            names |= {
                f"blk.{layer}.{ours}": f"layers.{layer}.{theirs}" for ours, theirs in LAYER_NAMES.items()
            }
        table = self.embedding_name()
        names[table] = "embed_tokens.weight"
        missing = sorted(set(names) - set(self.tensors))
        surplus = sorted(set(self.tensors) - set(names) - {"token_embd.weight", "output.weight"})
        if missing or surplus:
            raise UserError(
                f"{self.path}: tensors missing: {', '.join(missing) or 'none'}; "
                f"not understood: {', '.join(surplus) or 'none'}; fetch the file again."
            )
        for ours, theirs in names.items():
            yield self.lazy_tensor(self.tensors[ours], f"language_model.model.{theirs}")

    def layers(self) -> int:
        """Returns the number of layers. Raises UserError where the file has fewer tensors than that."""
        layers = self.field("qwen2.block_count", int)
        if layers > len(self.tensors):
            raise UserError(
                f"{self.path}: states {layers} layers and has {len(self.tensors)} tensors; fetch it again."
            )
        return layers

    def embedding_name(self) -> str:
        """Returns `output.weight` or `token_embd.weight`, whichever spends more bytes on a value."""
        tables = [name for name in ("output.weight", "token_embd.weight") if name in self.tensors]
        if not tables:
            raise UserError(f"{self.path}: lacks 'token_embd.weight'; fetch the file again.")
        return max(tables, key=lambda name: self.tensors[name].n_bytes / self.tensors[name].n_elements)

    def lazy_tensor(self, tensor, name: str) -> LazyTensor:
        """Returns a tensor that is dequantised when it is written."""
        import gguf

        shape = tuple(int(size) for size in reversed(tensor.shape))

        def make() -> np.ndarray:
            rows = tensor.data.reshape(-1, tensor.data.shape[-1])  # bytes of a row's blocks, or float values
            values = np.empty((len(rows), shape[-1]), DTYPE)
            for start in range(0, len(rows), ROWS_AT_ONCE):  # the float32 copy is four times the file's size
                part = slice(start, start + ROWS_AT_ONCE)
                try:
                    values[part] = gguf.quants.dequantize(rows[part], tensor.tensor_type)
                except NotImplementedError as error:
                    raise UserError(
                        f"{self.path}: the tensor {tensor.name} has the type {tensor.tensor_type.name}, "
                        "which no weights have; fetch the file again."
                    ) from error
            return values.reshape(shape)

        return LazyTensor(name, shape, make)


def shortest(value: float) -> float:
    """Returns the shortest decimal of the same float32: 1e-06 for 9.99999997e-07."""
    return float(str(np.float32(value)))
