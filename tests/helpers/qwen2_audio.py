"""Small random Qwen2-Audio models of transformers, with every size odd or unequal."""

import numpy as np
import soundfile
import torch
import transformers

from helpers.tensors import randomise
from helpers.tokenizer import write_tokenizer


def small_config(**text) -> transformers.Qwen2AudioConfig:
    values = (
        dict(
            hidden_size=48,
            intermediate_size=72,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            vocab_size=136,
            rms_norm_eps=1e-5,
            max_position_embeddings=512,
            rope_theta=1000.0,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
        )
        | text
    )
    return transformers.Qwen2AudioConfig(
        audio_config=dict(
            d_model=24,
            encoder_layers=2,
            encoder_attention_heads=3,
            encoder_ffn_dim=40,
            num_mel_bins=12,
            max_source_positions=1500,
        ),
        text_config=dict(model_type="qwen2", **values),
        audio_token_index=130,
        tie_word_embeddings=values["tie_word_embeddings"],
    )


def make_reference(**text) -> transformers.Qwen2AudioForConditionalGeneration:
    model = transformers.Qwen2AudioForConditionalGeneration(small_config(**text)).float().eval()
    randomise(model)
    model.tie_weights()
    return model


def write_whole_folder(path) -> None:
    """Writes a whole model folder as a user has it: weights, tokenizer, feature extractor, generation
    config."""
    write_tokenizer(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    ids = {
        name: tokenizer.convert_tokens_to_ids(name) for name in ("<|AUDIO|>", "<|im_end|>", "<|endoftext|>")
    }
    config = small_config(vocab_size=len(tokenizer) + 8)
    config.audio_config.num_mel_bins = 80
    config.audio_token_id = config.audio_token_index = ids["<|AUDIO|>"]
    model = transformers.Qwen2AudioForConditionalGeneration(config).float().eval()
    randomise(model)
    model.generation_config = transformers.GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_k=20,
        eos_token_id=ids["<|im_end|>"],
        pad_token_id=ids["<|endoftext|>"],
    )
    model.save_pretrained(path)
    transformers.WhisperFeatureExtractor(feature_size=80, return_attention_mask=True).save_pretrained(path)


def reference_representations(model, folder, files, prompt) -> np.ndarray:
    """Final-norm state at the last token by transformers' own processor and model, one clip at a time."""
    processor = transformers.Qwen2AudioProcessor.from_pretrained(folder)
    content = [{"type": "audio", "audio_url": ""}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    rows = []
    for file in files:
        inputs = processor(
            text=text,
            audio=[soundfile.read(file, dtype="float32")[0]],
            sampling_rate=16_000,
            return_tensors="pt",
        )
        with torch.no_grad():
            rows.append(model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1].numpy())
    return np.stack(rows)
