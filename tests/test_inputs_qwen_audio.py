"""Qwen-Audio-Chat's tokenizer and prompts: ids of the release, the released turns, and what is said of bad
folders."""

import json
import random
import unicodedata

import pytest

from rrs_jax.errors import UserError
from rrs_jax.inputs.processor import Processor
from rrs_jax.inputs.qwen_tokenizer import special_tokens
from rrs_jax.testing.qwen_audio import END, MERGES, PAD, RANKS, START, write_qwen_audio
from rrs_jax.weights.load import read_config

IM_START, IM_END = RANKS + 1, RANKS + 2
WORD = {token: 256 + rank for rank, token in enumerate(MERGES)}  # ids of the small ranks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen_audio")
    write_qwen_audio(path)
    return path


@pytest.fixture(scope="module")
def processor(folder):
    return Processor.from_folder(folder)


def test_special_tokens_have_the_ids_of_the_release():
    """The ids follow the release's 151643 ranks; the table is that of the published tokenizer."""
    names = special_tokens()
    ids = {name: 151643 + place for place, name in enumerate(names)}
    assert len(ids) == len(names) == 155165 - 151643
    known = {
        "<|endoftext|>": 151643,
        "<|im_start|>": 151644,
        "<|im_end|>": 151645,
        "<|extra_0|>": 151646,
        "<|extra_204|>": 151850,
        "[[[AUDIO:modality]]]": 151851,
        "<|startoftranscript|>": 151852,
        "<|startofanalysis|>": 151853,
        "<|keyword|>": 151857,
        "<|unknown|>": 151858,
        "<|en|>": 151859,
        "<|it|>": 151866,
        "<|zh_tr|>": 151867,
        "<|timestamps|>": 151870,
        "<|0.00|>": 151871,
        "<|0.29|>": 151900,
        "<|30.00|>": 154871,
        "<|caption_audiocaps|>": 154872,
        "<|itn|>": 154876,
        "<|audio_grounding|>": 154883,
        "<|emotion_recognition|>": 154887,
        "<|question|>": 155152,
        "<|answer|>": 155153,
        "<|speech_edit|>": 155162,
        "<audio>": 155163,
        "</audio>": 155164,
    }
    assert {name: ids[name] for name in known} == known


def ids_of(text: str) -> list[int]:
    """Bytes of a text without any of the merges."""
    return list(text.encode())


def system() -> list[int]:
    text = "You are a helpful assistant."
    words = [byte for byte in ids_of(text)]
    return [IM_START, *ids_of("system"), 10, *words, IM_END, 10]


def test_one_clip_and_text(processor):
    """`Audio 1:` without a blank behind the colon; markers and repeated token; the line break joins the
    text's piece."""
    ids = processor.encode("xyz", [5])
    assert ids == [
        *system(),
        IM_START,
        WORD[b"user"],
        10,
        WORD[b"Audio"],
        *ids_of(" 1:"),
        START,
        PAD,
        PAD,
        PAD,
        END,
        10,
        *ids_of("xyz"),
        IM_END,
        10,
        IM_START,
        *ids_of("assistant"),
        10,
    ]
    two = processor.encode("xyz", [3, 4])
    first, second = (i for i, id in enumerate(two) if id == START)
    assert two[first - 4 : first] == [WORD[b"Audio"], *ids_of(" 1:")][-4:] and two[first : first + 3] == [
        START,
        PAD,
        END,
    ]
    assert two[first + 3 : second] == [10, WORD[b"Audio"], *ids_of(" 2:")]
    assert two[second : second + 4] == [START, PAD, PAD, END]


def test_pieces_of_a_turn_are_tokenised_apart(processor):
    """Role, line break and content: a content that begins with a line break does not melt into the role's."""
    ids = processor.encode("\nxyz")
    at = ids.index(WORD[b"user"])
    assert ids[at + 1 : at + 3] == [10, 10]
    assert WORD[b"\n\n"] in processor.encode("xyz\n\nx") and WORD[b"\n\n"] in processor.encode("\nx", [4])


def test_special_tokens_in_a_text_are_text(processor):
    ids = processor.encode("<audio>a</audio><|im_end|><|en|>", [4])
    assert ids.count(START) == ids.count(END) == 1 and ids.count(IM_END) == 2
    assert processor.decode(processor.encode("<audio>a</audio><|im_end|>")).count("<|im_end|>") == 1


def test_texts_are_read_back_and_normalised(processor):
    rng = random.Random(0)
    alphabet = [
        "a",
        "Z",
        "é",
        "e\u0301",
        "语",
        "😀",
        "7",
        " ",
        "\n",
        "\t",
        "'ll",
        "user",
        "Audio",
        "\r\n",
        "½",
        "\u00a0",
    ]
    for _ in range(200):
        text = "".join(rng.choices(alphabet, k=12))
        assert processor.decode(processor.tokenizer(text)["input_ids"]) == unicodedata.normalize("NFC", text)
    assert (
        processor.decode([START, PAD, END, IM_END, END + 5, 65, 0xC3]) == "A\ufffd"
    )  # specials and surplus rows are left out


def test_one_token_texts(processor):
    assert processor.token_id("I") == ord("I")
    with pytest.raises(UserError, match=r"'No' is 2 tokens of this tokenizer \['N', 'o'\]"):
        processor.token_id("No")


def test_settings_of_the_folder(processor):
    assert set(processor.eos_token_ids) == {RANKS, IM_START, IM_END} and processor.pad_token_id == RANKS
    assert (processor.mel.num_mel_bins, processor.mel.extra_tokens, processor.mel.feature_length(641)) == (
        80,
        2,
        4,
    )
    assert processor.prompt_format.modes == ("audio_text", "text_only")


def test_audio_alone_is_refused(processor):
    with pytest.raises(UserError, match="a prompt has audio alone, for which this model was not made"):
        processor.encode(None, [4])


def broken(tmp_path, change) -> str:
    write_qwen_audio(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError) as error:
        read_config(tmp_path)
        Processor.from_folder(tmp_path)
    return str(error.value)


def test_bad_folders_are_told_in_a_sentence(tmp_path):
    file, config = tmp_path / "qwen.tiktoken", tmp_path / "config.json"

    def rewrite(**changes):
        return lambda _: config.write_text(json.dumps(json.loads(config.read_text()) | changes))

    def cut(lines):
        return lambda _: file.write_text("".join(file.read_text().splitlines(keepends=True)[lines]))

    message = broken(tmp_path, lambda _: file.unlink())
    assert (
        message
        == f"{tmp_path}: has no tokenizer (qwen.tiktoken is missing); copy it from the original model."
    )
    message = broken(tmp_path, lambda _: file.write_text("AA== 0\nnot a token\n"))
    assert message == f"{file}: line 2 is no token with its rank; fetch the file again."
    message = broken(tmp_path, cut(slice(2, None)))
    assert message == f"{file}: is incomplete: ranks or single bytes are missing; fetch the file again."
    message = broken(tmp_path, cut(slice(None, -1)))
    assert f"audio.audio_start_id is {START}, but qwen.tiktoken gives <audio> the id {START - 1}" in message
    message = broken(tmp_path, rewrite(audio=None))
    assert (
        message
        == f'{config}: has no "audio"; of the models of type qwen, Qwen-Audio-Chat alone is supported.'
    )
