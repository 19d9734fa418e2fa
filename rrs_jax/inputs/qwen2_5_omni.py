"""The conversation format of Qwen2.5-Omni's thinker."""

from rrs_jax.inputs.prompt_format import PromptFormat

AUDIO_TOKEN = "<|AUDIO|>"


def default_prompt(system: str | None, clips: int, text: str | None) -> str:
    """The released template: clips without number or line break, the text right behind them."""
    system = "You are a helpful assistant." if system is None else system
    audio = f"<|audio_bos|>{AUDIO_TOKEN}<|audio_eos|>" * clips
    return (
        f"<|im_start|>system\n{system}<|im_end|>\n"
        f"<|im_start|>user\n{audio}{text or ''}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


FORMAT = PromptFormat(
    audio_token=AUDIO_TOKEN,
    default_prompt=default_prompt,
    # Derivatives publish an empty generation_config.json, and the thinker's config names no end either.
    stop_tokens=("<|im_end|>", "<|endoftext|>"),
    model_values=lambda values: values.get("thinker_config", values),
)
