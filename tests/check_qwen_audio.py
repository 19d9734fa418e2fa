"""Qwen-Audio-Chat against its published code on random small weights: `python tests/check_qwen_audio.py
FOLDER`.

Not collected by pytest: FOLDER holds the published files (modeling_qwen.py, audio.py, tokenization_qwen.py
and the others, qwen.tiktoken, mel_filters.npz), which are no part of this project, and they run under
transformers 4.57 with einops, matplotlib and tiktoken, so that it wants an environment of its own. Prints the
largest relative errors of the encoder, of every hidden state and of the logits, how many greedy tokens and
how many prompts' ids are equal, and whether the published model gives our representation from a merged folder
and with an adapter under PEFT.
"""

import importlib
import sys
import tempfile
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import peft
import soundfile
import torch

from rrs_jax.config.prompts import PROMPT_POOL, PROMPT_REFUSAL, PROMPT_T
from rrs_jax.data.starter import StarterChoice, choose_rows
from rrs_jax.inputs.batching import collate
from rrs_jax.inputs.mel import MelConfig, log_mel
from rrs_jax.inputs.processor import Processor
from rrs_jax.inputs.qwen_tokenizer import QwenTokenizer
from rrs_jax.models.cache import Cache
from rrs_jax.models.decoder_pass import Wanted
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.testing.qwen_audio import END, PAD, START, small_values, write_qwen_audio
from rrs_jax.weights.export import export_adapter, export_merged
from rrs_jax.weights.load import load_weights
from rrs_jax.weights.safetensors_io import read_folder

MEL = MelConfig(num_mel_bins=80, partial_frame=False, extra_tokens=2)
SAMPLES = (
    9_001,
    23_456,
    16_000,
    641,
    480_000,
    12_479,
    479_990,
)  # odd and even halves, whole and partial hops, 30 s
NEW_TOKENS = 12


def published(folder: Path, module: str) -> types.ModuleType:
    """A module of the published code, which imports its neighbours relatively."""
    if "published" not in sys.modules:
        package = types.ModuleType("published")
        package.__path__ = [str(folder)]
        sys.modules["published"] = package
    return importlib.import_module(f"published.{module}")


def error(ours, theirs) -> float:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def reference_model(folder: Path, tensors: dict, values: dict) -> torch.nn.Module:
    config = published(folder, "configuration_qwen").QWenConfig(**values)
    model = published(folder, "modeling_qwen").QWenLMHeadModel(config).float().eval()
    state = {name: torch.tensor(array) for name, array in tensors.items()}
    missing, surplus = model.load_state_dict(state, strict=False)
    assert not missing and not surplus, (missing, surplus)
    return model


def waveforms() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(rng.normal(size=n) * 0.1 * np.sin(np.arange(n) / 900) ** 2).astype(np.float32) for n in SAMPLES]


def audio_info(folder: Path, waves: list[np.ndarray]) -> dict:
    """Returns what the published tokenizer makes of files: here of 16-bit wav, as ffmpeg hands them over."""
    audio = published(folder, "audio")
    mels, lengths, spans = [], [], []
    for wave in waves:
        mels.append(audio.log_mel_spectrogram(audio.pad_or_trim(wave)))
        positions = audio.get_T_after_cnn(min(len(wave), 480_000) // 160)
        count = (positions - 2) // 2 + 1
        lengths.append([positions, count])
        spans.append(count + 2)
    return {
        "input_audios": torch.stack(mels),
        "input_audio_lengths": torch.IntTensor(lengths),
        "audio_span_tokens": spans,
        "audio_urls": [""] * len(waves),
    }


def compare_encoder(folder: Path, reference, model) -> list[np.ndarray]:
    """Compares clips one by one, as `chat` hears them, then all in one batch, where the published code lets
    them touch."""
    waves, ours = waveforms(), []
    features = [log_mel(wave, MEL) for wave in waves]
    width = -(-max(array.shape[1] for array, _ in features) // 4) * 4
    batch = np.full((len(waves), 80, width), 7.0, np.float32)  # behind a clip's frames lies nonsense
    for row, (array, _) in zip(batch, features, strict=True):
        row[:, : array.shape[1]] = array
    rows = jax.jit(lambda x, m: model.encode_audio(x, m))(
        jnp.asarray(batch), jnp.asarray([m for _, m in features])
    )
    ours = [np.asarray(row)[: MEL.token_count(m)] for row, (_, m) in zip(rows, features, strict=True)]
    alone, info = [], audio_info(folder, waves)
    for wave in waves:
        one = audio_info(folder, [wave])
        alone += reference.transformer.audio.encode(
            one["input_audios"], one["input_audio_lengths"], one["audio_span_tokens"]
        )
    together = reference.transformer.audio.encode(
        info["input_audios"], info["input_audio_lengths"], info["audio_span_tokens"]
    )
    mels = [error(array[:, :m], info["input_audios"][i, :, :m]) for i, (array, m) in enumerate(features)]
    print(f"log-mel: {max(mels):.1e}")
    assert [len(clip) for clip in ours] == info["audio_span_tokens"]
    print(f"encoder, each clip alone: {max(map(error, ours, alone)):.1e}")
    print(
        f"encoder, the published batch of {len(waves)} against each alone:"
        f" {max(map(error, together, alone)):.1e}"
    )
    return ours


def compare_decoder(folder: Path, reference, model, clips: list[np.ndarray]) -> None:
    """Prompts of 9 to about 900 positions, the trained length being 16; one without audio, one of two clips
    of equal length, which the published batch treats as alone."""
    rng, waves = np.random.default_rng(1), waveforms()
    counts = [len(clip) for clip in clips]
    offsets = np.cumsum([1, *counts])[:-1]
    bank = jnp.asarray(np.concatenate([np.zeros((1, clips[0].shape[1]), np.float32), *clips]))
    states, logits, cached, equal, answers = [], [], [], 0, 0
    for chosen in ([0], [], [3], [1, 1], [2], [5], [4]):
        ids = rng.integers(3, 250, 9).tolist()
        for clip in chosen:
            ids += [START, *[PAD] * (counts[clip] - 2), END, *rng.integers(3, 250, 6).tolist()]
        row = ids, [offsets[clip] for clip in chosen], [counts[clip] for clip in chosen]
        info = audio_info(folder, [waves[clip] for clip in chosen]) if chosen else None
        with torch.no_grad():
            theirs = reference(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids)),
                audio_info=info,
                output_hidden_states=True,
                use_cache=True,
            )
        batch = jax.tree.map(jnp.asarray, collate([row], len(ids) + 3, model.config.audio_token_id))
        x = model.embed(batch.input_ids, batch.audio_index, bank)
        layers = model(batch, bank, Wanted(each_layer="all")).each_layer
        hidden = model.hidden_states(batch, bank)
        for one, other in zip([x, *layers[:-1], hidden], theirs.hidden_states, strict=True):
            states.append(error(one[0, : len(ids)], other[0]))
        states.append(error(model.representations(batch, bank)[0], theirs.hidden_states[-1][0, -1]))
        logits.append(error(model.logits(hidden)[0, : len(ids)], theirs.logits[0]))

        ours, positions, prompts = model.prefill(batch, bank)
        layers, queries, heads, _, size = prompts.keys.shape
        empty = jnp.zeros((layers, queries, heads, 1, NEW_TOKENS, size))
        cache = Cache(prompts, batch.lengths, type(prompts)(empty, empty), jnp.zeros((1, NEW_TOKENS), bool))
        past, last = theirs.past_key_values, theirs.logits[:, -1]
        for step in range(NEW_TOKENS):
            token, other = int(ours[0].argmax()), int(last[0].argmax())
            equal, answers = equal + (token == other), answers + 1
            ours, cache = model.decode(jnp.asarray([other]), positions + step, jnp.int32(step), cache)
            with torch.no_grad():
                mask = torch.ones(1, len(ids) + step + 1)
                theirs = _next(reference, other, past, mask)
            past, last = theirs.past_key_values, theirs.logits[:, -1]
            cached.append(error(ours[0], last[0]))
    print(
        f"hidden states: {max(states):.1e}; logits: {max(logits):.1e}; cached logits: {max(cached):.1e}; "
        f"greedy tokens equal: {equal} of {answers}"
    )


def _next(reference, token: int, past, mask):
    """One cached step. The published model takes the past's length from the wrong axis for unused position
    ids, which does no harm."""
    return reference(torch.tensor([[token]]), past_key_values=past, attention_mask=mask, use_cache=True)


def compare_tokens(folder: Path) -> None:
    """Whole prompts of `make_context`, with the published ranks; clips of different lengths."""
    theirs = published(folder, "tokenization_qwen").QWenTokenizer(str(folder / "qwen.tiktoken"))
    ours = QwenTokenizer.from_file(folder / "qwen.tiktoken")
    assert theirs.special_tokens == ours.special_tokens
    processor = Processor.from_folder(folder)
    make_context = published(folder, "qwen_generation_utils").make_context
    texts = [
        PROMPT_T,
        PROMPT_REFUSAL,
        *PROMPT_POOL,
        *(row["question"] for row in choose_rows(StarterChoice("eval", pairs_per_category=3))),
    ]
    texts += [
        "\n\nleading lines",
        " blank  and   more\t",
        "Numbers 1234567, café cafe\u0301 ſ ½",
        "语音问题 😀 it's WE'LL",
        "<|im_end|> is text, <|endoftext|> too",
        "line\r\nbreak\n\n\n  x",
    ]
    equal = total = 0
    with tempfile.TemporaryDirectory() as temporary:
        for number, text in enumerate(texts):
            for clips in (0, 1, 2):
                files, counts = [], []
                for clip in range(clips):
                    wave = waveforms()[clip][: 9_001 + 641 * number]
                    file = Path(temporary) / f"{number}_{clip}.wav"
                    soundfile.write(file, wave, 16_000, subtype="PCM_16")
                    files.append(str(file))
                    counts.append(MEL.token_count(MEL.feature_length(len(wave))))
                query = theirs.from_list_format([*({"audio": file} for file in files), {"text": text}])
                expected = make_context(theirs, query, system="You are a helpful assistant.")[1]
                equal, total = equal + (processor.encode(text, counts) == expected), total + 1
    print(f"token ids of prompts equal: {equal} of {total}; special tokens equal: {len(ours.special_tokens)}")


def compare_exports(folder: Path) -> None:
    """Random adapters on all linears; the published class with the merged weights, and the base under
    PEFT."""
    ids, rng = np.random.default_rng(5).integers(3, 250, (1, 21)), np.random.default_rng(6)
    with tempfile.TemporaryDirectory() as temporary:
        base, out = Path(temporary) / "base", Path(temporary)
        base.mkdir()
        tensors = write_qwen_audio(base)
        model = load_weights(base, lora=LoRAConfig(rank=3, alpha=5.0, targets=None))
        for target in model.lora.config.targets:
            for parameter in (model.lora.pair(target).lora_a, model.lora.pair(target).lora_b):
                parameter.set_value(jnp.asarray(rng.normal(size=parameter.shape) * 0.3, jnp.float32))
        export_adapter(model, base, out / "adapter", base_name="base")
        export_merged(model, base, out / "merged")
        merged = {name: np.array(entry.array()) for name, entry in read_folder(out / "merged").items()}
        models = {
            "base": reference_model(folder, tensors, small_values()),
            "merged": reference_model(folder, merged, small_values()),
            "adapter": peft.PeftModel.from_pretrained(
                reference_model(folder, tensors, small_values()), out / "adapter"
            ),
        }
    batch = jax.tree.map(jnp.asarray, collate([(ids[0].tolist(), [], [])], 21, model.config.audio_token_id))
    ours = model.representations(batch, jnp.zeros((1, 48)))
    for name, reference in models.items():
        with torch.no_grad():
            states = reference(
                torch.tensor(ids), attention_mask=torch.ones(1, 21), output_hidden_states=True
            ).hidden_states
        print(
            f"our adapted representation against the published model, {name}:"
            f" {error(ours[0], states[-1][0, -1]):.1e}"
        )


def main(folder: Path) -> None:
    audio = published(folder, "audio")
    # ffmpeg reads the file; without it, a 16-bit wav of 16 kHz is the same samples.
    audio.load_audio = lambda file, sr=16_000: (
        soundfile.read(file, dtype="int16")[0].astype(np.float32) / 32768
    )
    published(folder, "tokenization_qwen").load_audio = audio.load_audio
    with tempfile.TemporaryDirectory() as temporary:
        tensors = write_qwen_audio(Path(temporary))
        reference, model = reference_model(folder, tensors, small_values()), load_weights(Path(temporary))
    with torch.no_grad():
        clips = compare_encoder(folder, reference, model)
    compare_decoder(folder, reference, model, clips)
    compare_exports(folder)
    compare_tokens(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
