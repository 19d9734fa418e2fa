"""A small byte-level tokenizer of the same make as Qwen2-Audio's."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from rrs_jax.config import prompts

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_tokenizer(folder: str | Path, audio_is_special: bool = True) -> Tokenizer:
    """Writes tokenizer.json and tokenizer_config.json of about 400 tokens, learnt from the paper's prompts.

    Args:
      folder: an existing folder.
      audio_is_special: whether <|AUDIO|> is marked special, as released tokenizers have it.

    Returns:
      The tokenizer; `token_to_id` gives the ids of `SPECIAL`.
    """
    folder = Path(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [
        prompts.PROMPT_REFUSAL,
        *prompts.PROMPT_POOL,
        "system\nuser\nassistant\n\nAudio 1: You are a helpful\n\n",
    ] * 9
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_tokens(
        [AddedToken(t, special=audio_is_special or t != "<|AUDIO|>", normalized=False) for t in SPECIAL]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    settings["chat_template"] = "{{ messages[0]['content'] }}"  # a text model's; no processor reads it
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer
