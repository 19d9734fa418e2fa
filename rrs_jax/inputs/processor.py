"""Text and clips to token ids, as the model's own folder prescribes."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rrs_jax.errors import UserError
from rrs_jax.files import read_json, read_text, reading
from rrs_jax.inputs.chat_template import render
from rrs_jax.inputs.mel import MelConfig
from rrs_jax.inputs.prompt_format import PromptFormat
from rrs_jax.models.architectures import check_architecture, part
from rrs_jax.progress import say


@dataclass(frozen=True)
class Processor:
    """Tokenizer, chat template, feature and generation settings of one model folder."""

    folder: Path
    tokenizer: Any
    prompt_format: PromptFormat
    chat_template: str | None  # None: the format's default
    mel: MelConfig
    generation: dict[str, Any]  # generation_config.json, empty where there is none
    special_tokens: dict[str, int]
    audio_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Processor":
        """The processor of a model folder. Raises UserError naming the file that is missing, unreadable or of
        an unsupported architecture."""
        with reading(folder, "fetch its small files again"):
            return cls._from_folder(Path(folder))

    @classmethod
    def _from_folder(cls, folder: Path) -> "Processor":
        config = read_json(folder / "config.json")
        check_architecture(config, folder / "config.json")
        prompt_format: PromptFormat = part("inputs", config).FORMAT
        config = prompt_format.model_values(config)
        tokenizer = (prompt_format.load_tokenizer or _load_tokenizer)(folder)
        special_tokens = {
            token.content: id
            for id, token in tokenizer.added_tokens_decoder.items()
            if token.special or token.content == prompt_format.audio_token
        }
        generation_file = folder / "generation_config.json"
        generation = read_json(generation_file) if generation_file.exists() else {}
        eos, pad = _stop_tokens(folder, generation, config, tokenizer, prompt_format, special_tokens)
        return cls(
            folder=folder,
            tokenizer=tokenizer,
            prompt_format=prompt_format,
            chat_template=_chat_template(folder),
            mel=(prompt_format.mel_config or _mel_config)(folder, config),
            generation=generation,
            special_tokens=special_tokens,
            audio_token_id=_audio_token_id(folder, config, prompt_format, special_tokens),
            eos_token_ids=eos,
            pad_token_id=pad,
        )

    def encode(
        self, text: str | None, audio_token_counts: Sequence[int] = (), system: str | None = None
    ) -> list[int]:
        """Token ids of one user turn and the generation prompt, each clip as so many audio tokens.

        `system` None gives the template's own system prompt. Clips stand before the text. A special token in
        `text` or `system` stays text. Raises UserError without text and clips, and for audio
        alone where the model has no such mode.
        """
        self._check_prompt(text, audio_token_counts)
        shield = _Shield(self.special_tokens, [text or "", system or ""])
        prompt = self._render(
            None if system is None else shield.hide(system), len(audio_token_counts), shield.hide(text or "")
        )
        texts = self._apart([prompt] if isinstance(prompt, str) else prompt)
        marks = texts.count(self.prompt_format.audio_token)
        if marks != len(audio_token_counts):
            raise UserError(
                f"{self.folder}: the chat template writes {marks} audio tokens for "
                f"{len(audio_token_counts)} clips; put the audio model's own template there or remove it."
            )
        counts = iter(audio_token_counts)
        ids: list[int] = []
        for text in texts:
            if text == self.prompt_format.audio_token:
                ids.extend([self.audio_token_id] * (next(counts) - self.mel.extra_tokens))
            elif text in self.special_tokens:
                ids.append(self.special_tokens[text])
            elif text:
                ids.extend(self._encode_plain(shield.show(text)))
        return ids

    def _check_prompt(self, text: str | None, audio_token_counts: Sequence[int]) -> None:
        if not text and not audio_token_counts:
            raise UserError("a prompt has neither text nor audio; give at least one of them.")
        if not text and "audio_only" not in self.prompt_format.modes:
            raise UserError(
                "a prompt has audio alone, for which this model was not made; give it a text too."
            )
        if any(count < 2 for count in audio_token_counts):
            raise ValueError(
                f"audio_token_counts {list(audio_token_counts)}: every clip needs at least 2 tokens"
            )

    def _apart(self, pieces: Sequence[str]) -> list[str]:
        """Sets the special tokens in the pieces of a prompt apart from the text between them."""
        # A pattern of all of them, which may be thousands, would take longer than everything else.
        present = [token for token in self.special_tokens if any(token in piece for piece in pieces)]
        longest_first = sorted(present, key=len, reverse=True)
        split = re.compile("(" + ("|".join(map(re.escape, longest_first)) or "(?!)") + ")")
        return [text for piece in pieces for text in split.split(piece)]

    def text_ids(self, text: str) -> list[int]:
        """Token ids of an answer's text, in which a special token stays text."""
        return self._encode_plain(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids without special tokens."""
        return self.tokenizer.decode(
            [int(id) for id in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def token_id(self, text: str) -> int:
        """Id of a text that is exactly one token, such as the refusal token "I"; else raises UserError."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            pieces = self.tokenizer.convert_ids_to_tokens(ids)
            raise UserError(
                f"{text!r} is {len(ids)} tokens of this tokenizer {pieces}; name a text of one token."
            )
        return ids[0]

    def _render(self, system: str | None, clips: int, text: str) -> str | Sequence[str]:
        if self.chat_template is None:
            return self.prompt_format.default_prompt(system, clips, text)
        # Templates find a clip by its type or by either of the two keys.
        content: list[dict] = [{"type": "audio", "audio": "", "audio_url": ""}] * clips
        content = content + ([{"type": "text", "text": text}] if text else [])
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": content})
        try:
            return render(self.tokenizer, self.chat_template, messages)
        except Exception as error:  # whatever a foreign template raises
            raise UserError(
                f"{self.folder}: the chat template cannot be rendered ({error}); mend or remove it."
            ) from error

    def _encode_plain(self, text: str) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if self.audio_token_id in ids:
            raise UserError(
                f"{self.folder / 'tokenizer.json'}: {self.prompt_format.audio_token} is not marked special, "
                f'so the text {text!r} would be read as a clip; set its "special" to true or change the text.'
            )
        return ids


class _Shield:
    """Hides special tokens in a user's text from the template's reader, and shows them again.

    Each is replaced by its number between two private-use characters that the texts do not have.
    """

    def __init__(self, special_tokens: Iterable[str], texts: Sequence[str]):
        used = set("".join(texts))
        unused = (c for c in map(chr, range(0xE000, 0xF8FF)) if c not in used)
        self.left, self.right = next(unused), next(unused)
        self.tokens = [token for token in special_tokens if any(token in text for text in texts)]

    def hide(self, text: str) -> str:
        """The text with its special tokens replaced."""
        for number, token in enumerate(self.tokens):
            text = text.replace(token, f"{self.left}{number}{self.right}")
        return text

    def show(self, text: str) -> str:
        """The hidden text with its special tokens in place again."""
        for number, token in enumerate(self.tokens):
            text = text.replace(f"{self.left}{number}{self.right}", token)
        return text


def _load_tokenizer(folder: Path) -> Any:
    if not (folder / "tokenizer.json").exists():
        missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).exists()]
        if missing:
            raise UserError(
                f"{folder}: has no tokenizer (tokenizer.json is missing); copy it from the original model."
            )
    try:
        return _tokenizer_class(folder).from_pretrained(folder, local_files_only=True)
    except BaseException as error:  # on a damaged file the tokenizers library raises bare ones, and panics
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise UserError(
            f"{folder}: its tokenizer cannot be loaded ({error}); fetch tokenizer.json again."
        ) from error


def _tokenizer_class(folder: Path) -> Any:
    """The class that AutoTokenizer would take.

    AutoTokenizer imports torch where there is one, which takes seconds and 190 MB; the class of Qwen's
    tokenizers does not.
    """
    settings = folder / "tokenizer_config.json"
    named = read_json(settings).get("tokenizer_class") if settings.exists() else None
    if named in ("Qwen2Tokenizer", "Qwen2TokenizerFast"):
        from transformers import Qwen2TokenizerFast

        return Qwen2TokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def _chat_template(folder: Path) -> str | None:
    """The processor's template, searched where and in the order in which transformers does.

    A template in tokenizer_config.json is the text model's and knows no audio; transformers' processor passes
    over it too.
    """
    found = {}
    for name in ("processor_config.json", "chat_template.json", "chat_template.jinja"):
        if (file := folder / name).exists() and (template := _template_in(file)):
            found[name] = template
    used = next(iter(found), None)
    aside = [name for name, template in found.items() if template != found[used]]
    if aside:
        say(f"{folder}: the chat template of {used} is read, as by transformers; {aside[0]} has another")
    return found.get(used)


def _template_in(file: Path) -> str | None:
    if file.suffix == ".json":
        template = read_json(file).get("chat_template")
        template = template.get("default") if isinstance(template, dict) else template
        if template is not None and not isinstance(template, str):
            raise UserError(f"{file}: chat_template is no text; copy it from the original model.")
        return template
    return read_text(file)


def _mel_config(folder: Path, config: dict) -> MelConfig:
    """Feature settings of processor_config.json, where transformers 5 writes them and looks first, or else of
    preprocessor_config.json."""
    file, older = folder / "processor_config.json", folder / "preprocessor_config.json"
    fields = read_json(file).get("feature_extractor") if file.exists() else None
    if fields is None and not older.exists():
        raise UserError(f"{folder}: preprocessor_config.json is missing; copy it from the original model.")
    if fields is None:
        file, fields = older, read_json(older)
    mel = MelConfig.from_dict(fields, str(file))
    aside = read_json(older) if file != older and older.exists() else {}
    if differing := [name for name in fields.keys() & aside.keys() if fields[name] != aside[name]]:
        say(f"{folder}: {differing[0]} of {file.name} is read, as by transformers, not that of {older.name}")
    encoder_bins = config.get("audio_config", {}).get("num_mel_bins", mel.num_mel_bins)
    if encoder_bins != mel.num_mel_bins:
        raise UserError(
            f"{file}: feature_size is {mel.num_mel_bins}, but config.json's encoder takes {encoder_bins} "
            "mel bins; copy both files from the same model."
        )
    return mel


def _audio_token_id(
    folder: Path, config: dict, prompt_format: PromptFormat, special_tokens: dict[str, int]
) -> int:
    id = special_tokens.get(prompt_format.audio_token)
    if id is None:
        raise UserError(
            f"{folder}: the tokenizer lacks {prompt_format.audio_token}; copy the audio model's tokenizer."
        )
    declared = config.get("audio_token_index", config.get("audio_token_id", id))
    if declared != id:
        raise UserError(
            f"{folder / 'config.json'}: the audio token is {declared}, but the tokenizer gives "
            f"{prompt_format.audio_token} the id {id}; copy both from the same model."
        )
    return id


def _stop_tokens(
    folder: Path,
    generation: dict,
    config: dict,
    tokenizer: Any,
    prompt_format: PromptFormat,
    special_tokens: dict[str, int],
) -> tuple[tuple[int, ...], int]:
    """The ids that end an answer, and the padding's: of generation_config.json, else of config.json, else of
    the tokenizer; the format's own stop tokens come on top."""
    text_config = config.get("text_config", {})

    def first(name: str) -> int | list[int] | None:
        candidates = (generation.get(name), text_config.get(name), config.get(name), getattr(tokenizer, name))
        return next((value for value in candidates if value is not None), None)

    eos, own = (
        first("eos_token_id"),
        [special_tokens[token] for token in prompt_format.stop_tokens if token in special_tokens],
    )
    if eos is None and not own:
        raise UserError(
            f"{folder}: no eos_token_id in generation_config.json, config.json or the tokenizer; add it."
        )
    named = [] if eos is None else eos if isinstance(eos, list) else [eos]
    eos = tuple(dict.fromkeys([*named, *own]))
    pad = first("pad_token_id")
    return eos, eos[0] if pad is None else pad
