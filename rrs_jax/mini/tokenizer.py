"""Tokenizer files of the mini: the decoder's vocabulary with Qwen2-Audio's three audio marks."""

from dataclasses import dataclass
from pathlib import Path

from rrs_jax.errors import UserError
from rrs_jax.files import read_json, reading, write_json

# How Qwen's tokenizers cut text before the byte-pair merges (single digits).
PRE_TOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}

Added = dict[int, tuple[str, bool]]  # added tokens: id to text and whether it is special

END_OF_TEXT, END_OF_TURN = "<|endoftext|>", "<|im_end|>"
# Qwen2-Audio's marks stand in the three rows behind <|im_end|> (151646 to 151648), where Qwen2.5-Coder has
# other marks, which neither it nor Qwen2-Audio's template uses in chats.
AUDIO_TOKENS = ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")

# Renders as Qwen2-Audio's template: the released system line unless the chat begins with its own, clips
# numbered over the whole chat, a newline after each clip, texts as they are.
CHAT_TEMPLATE = """\
{%- set clips = namespace(count=0) -%}
{%- for message in messages -%}
    {%- if loop.first and message['role'] != 'system' -%}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
    {%- endif -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for item in message['content'] -%}
            {%- if 'audio' in item or 'audio_url' in item or item['type'] == 'audio' -%}
                {%- set clips.count = clips.count + 1 -%}
                {{- 'Audio ' ~ clips.count ~ ': <|audio_bos|><|AUDIO|><|audio_eos|>\\n' -}}
            {%- elif 'text' in item -%}
                {{- item['text'] -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level byte-pair vocabulary.

    Attributes:
      ranks: id of each ordinary token.
      merges: pairs "a b" in the order in which they are merged.
      added: added tokens, id to (text, special).
    """

    ranks: dict[str, int]
    merges: list[str]
    added: Added

    @property
    def pad_token_id(self) -> int:
        """Id of <|endoftext|>, 151643 in Qwen's vocabularies."""
        return self.token_id(END_OF_TEXT)

    @property
    def eos_token_id(self) -> int:
        """Id of <|im_end|>, 151645 in Qwen's vocabularies."""
        return self.token_id(END_OF_TURN)

    @property
    def audio_token_ids(self) -> tuple[int, ...]:
        """Ids of the rows that AUDIO_TOKENS take.

        Raises UserError where the vocabulary has no special tokens there.
        """
        ids = tuple(range(self.eos_token_id + 1, self.eos_token_id + 1 + len(AUDIO_TOKENS)))
        if not set(ids) <= self.added.keys():
            raise UserError(
                f"the decoder's vocabulary has no special tokens at {ids}; a Qwen2.5 vocabulary is needed."
            )
        return ids

    def token_id(self, text: str) -> int:
        """Returns an added token's id. Raises UserError where there is none."""
        for token_id, (content, _) in self.added.items():
            if content == text:
                return token_id
        raise UserError(
            f"the decoder's vocabulary has no special token {text}; a Qwen2.5 vocabulary is needed."
        )

    @classmethod
    def from_tokenizer_json(cls, path: Path) -> "Vocabulary":
        """Reads the vocabulary of a tokenizer.json."""
        content = read_json(path)
        with reading(path):
            merges = [
                pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]
            ]
            added = {token["id"]: (token["content"], token["special"]) for token in content["added_tokens"]}
            return cls(ranks=content["model"]["vocab"], merges=merges, added=added)


def write_tokenizer(folder: Path, vocabulary: Vocabulary, model_max_length: int) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja.

    Raises UserError where the vocabulary lacks Qwen's special tokens.
    """
    marks = zip(vocabulary.audio_token_ids, AUDIO_TOKENS, strict=True)
    added = dict(sorted((vocabulary.added | {i: (text, True) for i, text in marks}).items()))
    write_json(folder / "tokenizer.json", _tokenizer(vocabulary, added))
    write_json(folder / "tokenizer_config.json", _tokenizer_config(added, model_max_length))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _tokenizer(vocabulary: Vocabulary, added: Added) -> dict:
    """Returns the contents of tokenizer.json."""
    split = {"type": "Split", "pattern": {"Regex": PRE_TOKENIZER}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token_id,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": special,
            }
            for token_id, (text, special) in added.items()
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL]},
        "post_processor": BYTE_LEVEL,
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary.ranks,
            "merges": vocabulary.merges,
        },
    }


def _tokenizer_config(added: Added, model_max_length: int) -> dict:
    """Returns the contents of tokenizer_config.json."""
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model_max_length,
        "bos_token": None,
        "eos_token": END_OF_TURN,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "errors": "replace",
        "processor_class": "Qwen2AudioProcessor",
        "chat_template": CHAT_TEMPLATE,
        "added_tokens_decoder": {
            str(token_id): {
                "content": text,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": special,
            }
            for token_id, (text, special) in added.items()
        },
    }
