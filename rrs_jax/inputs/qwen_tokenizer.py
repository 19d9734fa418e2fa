"""The first Qwen tokenizer: byte-pair ranks out of `qwen.tiktoken`, and special tokens numbered behind
them."""

import base64
import binascii
import dataclasses
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from rrs_jax.errors import UserError

# Contractions; a word with at most one sign before it; one digit; signs; line ends; blanks.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
AUDIO_PAD, AUDIO_START, AUDIO_END = "[[[AUDIO:modality]]]", "<audio>", "</audio>"


def special_tokens() -> list[str]:
    """Special tokens in the order of their ids."""
    named = ["endoftext", "im_start", "im_end", *(f"extra_{i}" for i in range(205))]
    audio = [
        "startoftranscript",
        "startofanalysis",
        "translate",
        "transcribe",
        "caption",
        "keyword",
        "unknown",
        "en",
        "zh",
        "de",
        "es",
        "ko",
        "fr",
        "ja",
        "it",
        "zh_tr",
        "notimestamps",
        "sil",
        "timestamps",
        *(f"{hundredths / 100:.2f}" for hundredths in range(3001)),
        "caption_audiocaps",
        "caption_clotho",
        "audioset_ontology",
        "caption_plain",
        "itn",
        "wo_itn",
        "startofentityvalue",
        "endofentityvalue",
        "startofentitytype",
        "endofentitytype",
        "named_entity_recognition",
        "audio_grounding",
        "startofword",
        "endofword",
        "delim",
        "emotion_recognition",
        "music_description",
        "note_analysis",
        "pitch",
        *(f"midi_pitch_{i}" for i in range(128)),
        "velocity",
        *(f"midi_velocity_{i}" for i in range(128)),
        "sonic",
        "instrument",
        "speaker_meta",
        "song_meta",
        "question",
        "answer",
        "choice",
        "scene",
        "event",
        "vocal_classification",
        "speech_understanding",
        "scenario",
        "action",
        "entities",
        "speech_edit",
    ]
    return [
        *(f"<|{name}|>" for name in named),
        AUDIO_PAD,
        *(f"<|{name}|>" for name in audio),
        AUDIO_START,
        AUDIO_END,
    ]


@dataclasses.dataclass(frozen=True)
class SpecialToken:
    """An entry of `added_tokens_decoder`, as transformers has it."""

    content: str
    special: bool = True


class QwenTokenizer:
    """A tokenizer with those methods of a `PreTrainedTokenizerFast` that `rrs_jax.inputs.processor` calls. A
    special token in a text is text."""

    eos_token_id: int
    pad_token_id: int

    def __init__(self, ranks: dict[bytes, int]):
        import tiktoken

        self.ranks = ranks
        self.special_tokens = {token: id for id, token in enumerate(special_tokens(), start=len(ranks))}
        self.eos_token_id = self.pad_token_id = self.special_tokens["<|endoftext|>"]
        self.encoding = tiktoken.Encoding(
            "qwen", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=self.special_tokens
        )

    @classmethod
    def from_file(cls, file: Path) -> "QwenTokenizer":
        """The tokenizer of a file whose lines are a token in base64 and its rank. Raises UserError
        where the file is not of that form."""
        ranks = {}
        for number, line in enumerate(file.read_bytes().splitlines(), start=1):
            if not line:
                continue
            try:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
            except (ValueError, binascii.Error):
                raise UserError(
                    f"{file}: line {number} is no token with its rank; fetch the file again."
                ) from None
        if sorted(ranks.values()) != list(range(len(ranks))) or any(
            bytes([i]) not in ranks for i in range(256)
        ):
            raise UserError(
                f"{file}: is incomplete: ranks or single bytes are missing; fetch the file again."
            )
        return cls(ranks)

    @property
    def added_tokens_decoder(self) -> dict[int, SpecialToken]:
        """Special tokens by id."""
        return {id: SpecialToken(token) for token, id in self.special_tokens.items()}

    def __call__(
        self, text: str, *, add_special_tokens: bool = False, split_special_tokens: bool = True
    ) -> dict[str, list[int]]:
        if add_special_tokens or not split_special_tokens:
            raise ValueError("this tokenizer adds no special tokens and reads none out of a text")
        return {"input_ids": self.encoding.encode_ordinary(unicodedata.normalize("NFC", text))}

    def decode(
        self,
        ids: Iterable[int],
        *,
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        """Text of the ids. Those above the vocabulary, which the head's surplus rows could give, are left out
        with the special ones."""
        if clean_up_tokenization_spaces:
            raise ValueError("this tokenizer changes no blanks")
        last = len(self.ranks) if skip_special_tokens else self.encoding.n_vocab
        return self.encoding.decode([id for id in ids if id < last], errors="replace")

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """Text of each id by itself."""
        return [self.encoding.decode([id], errors="replace") for id in ids]
