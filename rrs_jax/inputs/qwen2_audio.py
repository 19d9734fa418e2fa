"""The conversation format of Qwen2-Audio-7B-Instruct."""

from rrs_jax.inputs.prompt_format import PromptFormat

AUDIO_TOKEN = "<|AUDIO|>"


def default_prompt(system: str | None, clips: int, text: str | None) -> str:
    """The prompt of a `Qwen2AudioProcessor` without a template in its folder: numbered clips, a line each,
    then the text."""
    system = "You are a helpful assistant." if system is None else system
    audio = "".join(f"Audio {i}: <|audio_bos|>{AUDIO_TOKEN}<|audio_eos|>\n" for i in range(1, clips + 1))
    return (
        f"<|im_start|>system\n{system}<|im_end|>\n"
        f"<|im_start|>user\n{audio}{text or ''}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


FORMAT = PromptFormat(audio_token=AUDIO_TOKEN, default_prompt=default_prompt)
