"""The conversation format of Qwen-Audio-Chat, and what its folder says about inputs."""

from pathlib import Path

from rrs_jax.errors import UserError
from rrs_jax.files import read_json
from rrs_jax.inputs.mel import MelConfig
from rrs_jax.inputs.prompt_format import PromptFormat
from rrs_jax.inputs.qwen_tokenizer import AUDIO_END, AUDIO_PAD, AUDIO_START, QwenTokenizer

FILE = "qwen.tiktoken"


def default_prompt(system: str | None, clips: int, text: str | None) -> list[str]:
    """The turns of the released `make_context`, which tokenises role, newline and content each on its own.
    Clips are numbered, without a blank behind the colon."""
    system = "You are a helpful assistant." if system is None else system
    audio = "".join(f"Audio {i}:{AUDIO_START}{AUDIO_PAD}{AUDIO_END}\n" for i in range(1, clips + 1))
    turns = (("system", system), ("user", audio + (text or "")))
    parts = [
        part for role, content in turns for part in ("<|im_start|>", role, "\n", content, "<|im_end|>", "\n")
    ]
    return [*parts, "<|im_start|>", "assistant", "\n"]


def load_tokenizer(folder: Path) -> QwenTokenizer:
    """The folder's tokenizer. Raises UserError where its file is missing or damaged, or numbers the audio
    tokens otherwise than config.json."""
    if not (folder / FILE).is_file():
        raise UserError(f"{folder}: has no tokenizer ({FILE} is missing); copy it from the original model.")
    tokenizer = QwenTokenizer.from_file(folder / FILE)
    declared, given = (
        read_json(folder / "config.json")["audio"].get("audio_start_id"),
        tokenizer.special_tokens[AUDIO_START],
    )
    if declared not in (None, given):
        raise UserError(
            f"{folder / 'config.json'}: audio.audio_start_id is {declared}, but {FILE} gives {AUDIO_START}"
            f" the id {given}; copy both from the same model."
        )
    return tokenizer


def mel_config(folder: Path, values: dict) -> MelConfig:
    """Feature settings, which the released code has in its source: whole hops alone count, and the encoder
    adds a vector at each end."""
    return MelConfig(num_mel_bins=values["audio"].get("n_mels", 80), partial_frame=False, extra_tokens=2)


FORMAT = PromptFormat(
    audio_token=AUDIO_PAD,
    default_prompt=default_prompt,
    modes=("audio_text", "text_only"),
    stop_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    load_tokenizer=load_tokenizer,
    mel_config=mel_config,
)
