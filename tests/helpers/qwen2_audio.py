"""Small random Qwen2-Audio models of transformers, with every size odd or unequal."""

import numpy as np
import soundfile
import torch
import transformers

from helpers.tensors import randomise
from rrs_jax.testing.qwen2_audio import small_values


def small_config(**text) -> transformers.Qwen2AudioConfig:
    """Returns the config of `rrs_jax.testing`'s model; `text` overrides fields of the decoder."""
    return transformers.Qwen2AudioConfig(**small_values(**text))


def make_reference(**text) -> transformers.Qwen2AudioForConditionalGeneration:
    model = transformers.Qwen2AudioForConditionalGeneration(small_config(**text)).float().eval()
    randomise(model)
    model.tie_weights()
    return model


def prompt_inputs(processor, file, prompt) -> dict[str, torch.Tensor]:
    """A model's inputs for one clip beside a text, by transformers' own processor."""
    content = [{"type": "audio", "audio_url": ""}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return processor(
        text=text, audio=[soundfile.read(file, dtype="float32")[0]], sampling_rate=16_000, return_tensors="pt"
    )


def last_state(model, processor, file, prompt) -> torch.Tensor:
    """Final-norm state (D,) at the last token."""
    inputs = prompt_inputs(processor, file, prompt)
    return model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1]


def reference_representations(model, folder, files, prompt) -> np.ndarray:
    """Final-norm states by transformers' own processor and model, one clip at a time."""
    processor = transformers.Qwen2AudioProcessor.from_pretrained(folder)
    with torch.no_grad():
        return np.stack([last_state(model, processor, file, prompt).numpy() for file in files])
