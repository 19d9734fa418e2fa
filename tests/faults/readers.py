"""Every reader of a file that somebody else may have written: a sound sample, and the call that reads it."""

import base64
import dataclasses
import gzip
import json
import lzma
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from helpers import authors_files, synthetic_beavertails
from rrs_jax.data.authors_questions import read_authors
from rrs_jax.data.beavertails import read_beavertails
from rrs_jax.data.manifest import load_manifest
from rrs_jax.data.reasoning import answer_of
from rrs_jax.data.rows import own_row
from rrs_jax.data.tables import read_questions, read_rows
from rrs_jax.errors import UserError
from rrs_jax.evaluate.air_bench import parse_scores
from rrs_jax.evaluate.air_bench_items import META, read_meta
from rrs_jax.evaluate.judges.phrases import declines
from rrs_jax.evaluate.judges.rubrics import load_rubric
from rrs_jax.evaluate.judges.sheet import read_sheet, write_sheet
from rrs_jax.evaluate.question_sets import read_question_sets
from rrs_jax.files import read_growing_jsonl, read_json, read_jsonl
from rrs_jax.inputs.audio import read_audio
from rrs_jax.inputs.processor import Processor
from rrs_jax.inputs.qwen_tokenizer import QwenTokenizer
from rrs_jax.mini.ctranslate2_reader import CTranslate2Encoder
from rrs_jax.mini.gguf_reader import GGUFDecoder
from rrs_jax.mini.tokenizer import CHAT_TEMPLATE, Vocabulary
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.report.authors_state_files import read_vector
from rrs_jax.run.recorded_config import recorded_config
from rrs_jax.strategies.extracted import read_extracted
from rrs_jax.testing import write_qwen2_audio, write_qwen_audio
from rrs_jax.weights.adapter import read_adapter
from rrs_jax.weights.load import abstract_model, load_weights, read_config
from rrs_jax.weights.safetensors_io import load_file, read_folder, read_header, save_file


@dataclasses.dataclass(frozen=True)
class Reader:
    """Attributes:
    write: writes a sound sample into an empty folder; returns the files that are changed by turns.
    read: reads the folder.
    share: how many of all inputs it gets, beside the others; less where an input takes long.
    """

    write: Callable[[Path], list[Path]]
    read: Callable[[Path], object]
    share: float = 1.0


def _file(name: str, content: bytes | str) -> Callable[[Path], list[Path]]:
    def write(folder: Path) -> list[Path]:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return [folder / name]

    return write


ROWS = [
    {"id": f"{label}-{i}", "pair_id": str(i), "label": label, "category": ["none", {"theft": True}][i % 2],
     "question": f"How do I walk a dog, {label} {i}?", "response": None, "audio": "a.wav", "seconds": 1.0}
    for i in range(4) for label in ("harmful", "benign")
]  # fmt: skip
OTHERS = [
    {"messages": [{"role": "user", "content": "<audio>Where is it?"},
                  {"role": "assistant", "content": "There."}],
     "audios": ["a.wav"], "categories": ["x"]},
    {"conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A dog."}]},
    {"prompt": "Why?", "label": "benign",
     "audio": {"bytes": base64.b64encode(b"RIFF....").decode(), "path": None}},
    {"instruction": "Say it.", "input": "now", "output": "It.",
     "audio": {"array": [0.0] * 9, "sampling_rate": 8000}},
]  # fmt: skip
MANIFEST = "".join(json.dumps(row) + "\n" for row in ROWS)
LINES = MANIFEST + "".join(json.dumps(row) + "\n" for row in OTHERS)
CSV = "id,question,category,audio,label\n" + "".join(
    f'{i},"How, ""{i}""?",none,a.wav,benign\n' for i in range(9)
)
JUDGED = [
    {"id": "1", "mode": "text_only", "set": "main", "category": "none", "sample": 0, "question": "Why?",
     "response": "I cannot say.", "label": "harmful"}
]  # fmt: skip
REPLIES = (
    "<think>It asks for help.</think>\n**Verdict:** refusal: yes\nharmful: no",
    'Sure. ```json\n{"refusal": true, "harmful": false}\n```\n7 8\n',
)


def _parquet(folder: Path) -> list[Path]:
    import pyarrow
    import pyarrow.parquet

    columns = {name: [str(row[name]) for row in ROWS] for name in ("id", "label", "question", "audio")}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "a.parquet")
    return [folder / "a.parquet"]


def _manifest(lines: str) -> Callable[[Path], list[Path]]:
    def write(folder: Path) -> list[Path]:
        soundfile.write(folder / "a.wav", np.zeros(100), 16_000)
        return _file("a.jsonl", lines)(folder)

    return write


def _sound(name: str, **how) -> Callable[[Path], list[Path]]:
    def write(folder: Path) -> list[Path]:
        hum = 0.3 * np.sin(np.arange(6000) / 7)
        soundfile.write(folder / name, np.stack([hum, hum[::-1]], 1), 8000, **how)
        return [folder / name]

    return write


def _tensors(folder: Path) -> list[Path]:
    arrays = {"a": np.ones((3, 4), np.float32), "b": np.arange(6, dtype=np.int64), "c": np.float32(1)[None]}
    save_file(folder / "a.safetensors", arrays, {"format": "pt"})
    return [folder / "a.safetensors"]


def _index(folder: Path) -> list[Path]:
    for name in ("x", "y"):
        save_file(folder / f"{name}.safetensors", {name: np.ones(3, np.float32)})
    weight_map = {name: f"{name}.safetensors" for name in ("x", "y")}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 24}, "weight_map": weight_map}))
    return [index, folder / "x.safetensors"]


def _model(folder: Path) -> list[Path]:
    write_qwen2_audio(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json",
             "chat_template.jinja", "generation_config.json")  # fmt: skip
    return [folder / name for name in names if (folder / name).exists()]


def _config(folder: Path) -> list[Path]:
    write_qwen2_audio(folder)
    return [folder / "config.json"]


def _read_config(folder: Path) -> None:
    abstract_model(read_config(folder), "float32", LoRAConfig(), read_folder(folder))


def _read_processor(folder: Path) -> None:
    processor = Processor.from_folder(folder)
    processor.encode("Walk <|im_end|> a dog.", [25], "Be brief.")
    processor.decode(range(40))


def _weights(folder: Path) -> list[Path]:
    write_qwen2_audio(folder)
    return sorted(folder.glob("*.safetensors"))


def _adapter(folder: Path) -> list[Path]:
    write_qwen2_audio(folder / "base")
    adapter = folder / "adapter"
    adapter.mkdir()
    base = read_folder(folder / "base")
    name = next(name for name in base if name.endswith("model.layers.0.self_attn.q_proj.weight"))
    outputs, inputs = base[name].shape
    module = "base_model.model." + name.removesuffix(".weight")
    halves = {f"{module}.lora_A.weight": np.ones((2, inputs), np.float32)}
    halves[f"{module}.lora_B.weight"] = np.ones((outputs, 2), np.float32)
    save_file(adapter / "adapter_model.safetensors", halves)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none",
                "alpha_pattern": {"q_proj": 8}, "use_rslora": True}  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    return [adapter / "adapter_config.json", adapter / "adapter_model.safetensors"]


def _read_adapter(folder: Path) -> None:
    read_adapter(folder / "adapter", read_config(folder / "base"))


def _mini(name: str) -> Callable[[Path], list[Path]]:
    def write(folder: Path) -> list[Path]:
        from helpers import mini_files  # which brings in torch

        mini_files.write_files(folder, mini_files.small_decoder(), mini_files.small_encoder())
        return [folder / name]

    return write


def _read_gguf(folder: Path) -> None:
    decoder = GGUFDecoder(folder / "qwen.gguf")
    decoder.text_config()
    decoder.vocabulary()
    for tensor in decoder.lazy_tensors():
        tensor.values()


def _read_ctranslate2(folder: Path) -> None:
    encoder = CTranslate2Encoder(folder / "whisper.bin")
    encoder.audio_config()
    for tensor in encoder.lazy_tensors():
        tensor.values()


def _tiktoken(folder: Path) -> list[Path]:
    write_qwen_audio(folder)
    return [folder / "qwen.tiktoken"]


def _rubric(folder: Path) -> list[Path]:
    import rrs_jax.evaluate.judges.rubrics as rubrics

    return _file("a.toml", (Path(rubrics.__file__).parent / "rubrics" / "default.toml").read_bytes())(folder)


def _read_rubric(folder: Path) -> None:
    load_rubric.cache_clear()
    rubric = load_rubric(str(folder / "a.toml"))
    for reply in REPLIES:
        rubric.read(reply)


def _sheet(folder: Path) -> list[Path]:
    write_sheet(folder / "a.csv", JUDGED * 3)
    return [folder / "a.csv"]


def _air_bench(folder: Path) -> list[Path]:
    item = {"path": "a.wav", "question": "What is heard?", "answer_gt": "A dog.", "task_name": "speech_QA",
            "dataset_name": "x", "uniq_id": 1, "meta_info": "A dog barks."}  # fmt: skip
    meta = folder / META
    (meta.parent / "speech_QA_x").mkdir(parents=True)
    soundfile.write(meta.parent / "speech_QA_x" / "a.wav", np.zeros(100), 16_000)
    meta.write_text(json.dumps([item, item | {"uniq_id": 2}]))
    return [meta]


def _authors(folder: Path) -> list[Path]:
    authors_files.write_questions(folder)
    return [folder / "data" / "harmful.json", folder / "data" / "benign.json"]


def _read_reply(folder: Path) -> None:
    reply = (folder / "reply.txt").read_bytes().decode("utf-8", "replace")
    answer_of(reply)
    parse_scores(reply)
    load_rubric("default").read(reply)
    declines("How?", reply)


def _vector(folder: Path) -> None:
    try:
        read_vector(folder / "a.csv")
    except ValueError as fault:  # which its caller collects
        raise UserError(str(fault)) from fault


def _set(name: str, suffix: str, content: str) -> Reader:
    return Reader(
        _file(f"a{suffix}", content), lambda folder: read_question_sets([f"{name}:{folder / f'a{suffix}'}"])
    )


BEAVERTAILS = synthetic_beavertails.lines(synthetic_beavertails.source_rows(3))


def _rows(name: str, content: bytes | str, share: float = 1.0) -> Reader:
    return Reader(_file(name, content), lambda folder: list(read_rows(folder / name)), share)


def _named(name: str, read: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: read(folder / name)


def _own_rows(file: Path) -> None:
    for _, row in read_rows(file):
        if isinstance(row, dict):
            own_row(row)


def _mapped(file: Path) -> None:
    for entry in read_header(file)[0].values():
        entry.array().sum()


RECORDED = json.dumps({"config": {"train.epochs": 3, "seed": 1, "model.path": "m"}})
STATE = ",".join(map(str, np.linspace(-3, 3, 90)))
XSTEST = "id,prompt,type,label\n1,How?,homonyms,safe\n2,Why?,x,unsafe\n"
READERS: dict[str, Reader] = {
    "rows .jsonl": Reader(_file("a.jsonl", LINES), _named("a.jsonl", _own_rows)),
    "rows .json": _rows("a.json", json.dumps(ROWS + OTHERS)),
    "rows .csv": _rows("a.csv", CSV),
    "rows .tsv": _rows("a.tsv", CSV.replace(",", "\t")),
    "rows .jsonl.gz": _rows("a.jsonl.gz", gzip.compress(LINES.encode())),
    "rows .jsonl.xz": _rows("a.jsonl.xz", lzma.compress(LINES.encode())),
    "rows .parquet": Reader(_parquet, lambda folder: list(read_rows(folder / "a.parquet")), 0.6),
    "manifest": Reader(_manifest(MANIFEST), _named("a.jsonl", load_manifest)),
    "manifest, bad rows skipped": Reader(
        _manifest(LINES), lambda folder: load_manifest(folder / "a.jsonl", skip_bad=True)
    ),
    "questions": Reader(_file("a.jsonl", LINES), _named("a.jsonl", read_questions)),
    "beavertails": Reader(
        _file("a.jsonl", BEAVERTAILS), lambda folder: read_beavertails(str(folder / "a.jsonl")), 0.3
    ),
    "question set jsonl": Reader(
        _manifest(MANIFEST), lambda folder: read_question_sets([f"jsonl:{folder / 'a.jsonl'}"])
    ),
    "question set xstest": _set("xstest", ".csv", XSTEST),
    "question set strongreject": _set("strongreject", ".csv", "category,source,forbidden_prompt\nx,y,How?\n"),
    "authors' questions": Reader(_authors, read_authors, 0.5),
    "authors' state": Reader(_file("a.csv", STATE), _vector),
    "json": Reader(_file("a.json", json.dumps({"rows": ROWS + OTHERS})), _named("a.json", read_json)),
    "jsonl": Reader(_file("a.jsonl", LINES), _named("a.jsonl", read_jsonl)),
    "growing jsonl": Reader(
        _file("a.jsonl", LINES), _named("a.jsonl", lambda file: read_growing_jsonl(file, str))
    ),
    "recorded config": Reader(_file("config.json", RECORDED), recorded_config),
    "safetensors header": Reader(_tensors, _named("a.safetensors", _mapped), 2),
    "safetensors": Reader(_tensors, _named("a.safetensors", load_file)),
    "extracted": Reader(_tensors, _named("a.safetensors", read_extracted)),
    "shards": Reader(_index, read_folder, 2),
    "config.json": Reader(_config, _read_config, 0.1),
    "weights": Reader(_weights, load_weights, 0.02),
    "processor": Reader(_model, _read_processor, 0.1),
    "adapter": Reader(_adapter, _read_adapter, 0.1),
    "qwen.tiktoken": Reader(_tiktoken, _named("qwen.tiktoken", QwenTokenizer.from_file), 0.1),
    "tokenizer.json of a decoder": Reader(
        _model, _named("tokenizer.json", Vocabulary.from_tokenizer_json), 0.3
    ),
    "gguf": Reader(_mini("qwen.gguf"), _read_gguf, 0.3),
    "ctranslate2": Reader(_mini("whisper.bin"), _read_ctranslate2, 0.6),
    "rubric": Reader(_rubric, _read_rubric),
    "sheet": Reader(_sheet, _named("a.csv", read_sheet)),
    "air-bench": Reader(_air_bench, read_meta),
    "reply": Reader(_file("reply.txt", REPLIES[0] * 3), _read_reply),
    "reply with json": Reader(_file("reply.txt", REPLIES[1] * 3), _read_reply),
} | {
    f"sound {name}": Reader(_sound(f"a.{name}", **how), _named(f"a.{name}", read_audio), share)
    for name, share, how in (
        ("wav", 1, {}),
        ("flac", 1, {}),
        ("ogg", 0.6, {}),
        ("mp3", 0.6, {}),
        ("aiff", 0.5, {}),
        ("au", 0.5, {}),
        ("w64", 0.5, {}),
        ("caf", 0.3, {}),
        ("wavex", 0.3, {"format": "WAVEX", "subtype": "FLOAT"}),
        ("opus", 0.3, {"format": "OGG", "subtype": "OPUS"}),
    )
}


def _misbehaving(how: Callable[[], object]) -> Reader:
    return Reader(_file("a", "sound"), lambda folder: (folder / "a").read_bytes() == b"sound" or how())


# By which the harness is tested.
MISBEHAVING = {
    "fails": _misbehaving(lambda: {}["key"]),
    "hangs": _misbehaving(lambda: time.sleep(1000)),
    "crashes": _misbehaving(lambda: os.kill(os.getpid(), signal.SIGSEGV)),
    "fills the memory": _misbehaving(lambda: bytearray(10**11)),
}
ALL = READERS | MISBEHAVING
