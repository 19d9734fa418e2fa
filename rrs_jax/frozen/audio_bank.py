"""Audio embeddings of all clips, computed once and used by every stage and epoch."""

import dataclasses
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from threadpoolctl import threadpool_limits

from rrs_jax.distributed import processes
from rrs_jax.distributed.machine import cores
from rrs_jax.distributed.mesh import batch_sharding, fetch, mesh_of, put, replicated, rows_multiple, traced_on
from rrs_jax.errors import Damaged, UserError
from rrs_jax.files import atomic_path, content_hash
from rrs_jax.frozen.overlap import one_behind
from rrs_jax.inputs.audio import as_waveform
from rrs_jax.inputs.batching import Selection, batches_in_buckets, bucket_lengths
from rrs_jax.inputs.mel import MelConfig, log_mel, pad_features
from rrs_jax.models.flops import encoder_flops, program_price
from rrs_jax.models.stack import compiler_options
from rrs_jax.progress import Progress, say
from rrs_jax.weights.finite import is_finite
from rrs_jax.weights.safetensors_io import load_file, save_file

WORKERS = min(4, cores())  # more of them wait for Python's lock longer than they compute
FRAMES_AT_ONCE = 2**15  # half as many rows for a matrix product: enough for every processor of a large GPU


@dataclasses.dataclass(frozen=True)
class AudioBank:
    """The embeddings of all clips, one below the other.

    Attributes:
      array: (rows, D) on the device. Row 0 belongs to no clip, so that a bank without clips has a row too.
      offsets, counts: clip i owns the rows from `offsets[i]` to `offsets[i] + counts[i]`.
      prints: hashes of the clips.
    """

    array: jax.Array
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    prints: tuple[str, ...] = ()

    def part(self, prints: Sequence[str]) -> "AudioBank":
        """The bank of the clips with these hashes, on the same array."""
        place = {name: i for i, name in enumerate(self.prints)}
        chosen = [place[name] for name in prints]
        offsets, counts = self.clips(chosen)
        return AudioBank(self.array, tuple(offsets), tuple(counts), tuple(prints))

    def clips(self, indices: Sequence[int]) -> tuple[list[int], list[int]]:
        """First rows and numbers of rows of some clips, as `collate` takes them."""
        return [self.offsets[i] for i in indices], [self.counts[i] for i in indices]


def make_audio_bank(
    model: nnx.Module,
    mel: MelConfig,
    audios: Sequence[str | Path | np.ndarray],
    *,
    batch_size: int = 16,
    max_buckets: int = 5,
    cache: Path | None = None,
    cache_key: object = None,
) -> AudioBank:
    """Encodes every clip with `model.encode_audio`, in few lengths and little padding.

    `batch_size`: clips at once, at least; short ones are taken together (`clips_at_once`). `cache` names a
    file that keeps the result; it is used again where it is whole, and `cache_key` and the clips are the
    same. Raises UserError that names the clips whose embeddings are not finite.
    """
    mesh = mesh_of(model)
    everywhere = replicated(mesh)
    prints = [_fingerprint(audio) for audio in audios]
    key = content_hash(str(model.dtype), cache_key, prints)
    kept = _kept(cache, key) if cache is not None else None
    if processes.by_first(lambda: kept is not None):
        if kept is None:
            raise UserError(f"{cache}: cannot be read here; all hosts have to see the run folder.")
        counts = kept["counts"][1:].tolist()
        return _bank(put(kept["rows"], everywhere), counts, prints)
    rows = _encode(model, mel, audios, batch_size, max_buckets) if audios else []
    counts = [len(own) for own in rows]
    array = np.concatenate([np.zeros((1, model.config.text.hidden_size), model.dtype), *rows])
    bank = _bank(put(array, everywhere), counts, prints)
    _check_finite(bank, audios, mesh)
    if cache is not None:
        with atomic_path(cache) as temporary:
            save_file(temporary, {"rows": array, "counts": np.asarray([0, *counts], np.int32)}, {"key": key})
    return bank


def _check_finite(bank: AudioBank, audios: Sequence[str | Path | np.ndarray], mesh: Mesh) -> None:
    finite = fetch(is_finite(bank.array, True, mesh))
    clips = zip(audios, bank.offsets, bank.counts, strict=True)
    bad = [clip for clip, start, count in clips if not finite[start : start + count].all()]
    if bad:
        named = f" ({bad[0]})" if isinstance(bad[0], str | Path) else ""
        raise UserError(
            f"audio encoder: the embeddings of {len(bad)} of {len(audios)} clips{named} hold NaN or infinite"
            " numbers; set model.dtype to float32, or check the weights."
        )


def _kept(cache: Path, key: str) -> dict[str, np.ndarray] | None:
    """Returns the arrays of a cache with this key; None where there is none. A damaged one is told."""
    if not cache.is_file():
        return None
    try:
        arrays, metadata = load_file(cache)
    except Damaged as error:
        say(f"{str(error).partition(';')[0]}; the clips are encoded again")
        return None
    return arrays if metadata.get("key") == key else None


def _encode(
    model: nnx.Module,
    mel: MelConfig,
    audios: Sequence[str | Path | np.ndarray],
    batch_size: int,
    max_buckets: int,
) -> list[np.ndarray]:
    """Each clip's embeddings (A, D), on the host in the model's dtype."""
    mesh, rows = mesh_of(model), [np.empty(0)] * len(audios)
    graphdef, parameters = nnx.split(model)
    encode, progress = encoder(graphdef, mesh), Progress(len(audios), "encoding the clips", "clips")
    # Each worker's small products in its own thread: BLAS threads of several workers wait for one another.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(WORKERS) as pool, progress:
        waveforms = list(pool.map(as_waveform, audios))
        counts = [mel.token_count(mel.feature_length(len(waveform))) for waveform in waveforms]
        lengths = [mel.frames(len(waveform)) for waveform in waveforms]
        price = program_price(encoder_flops(model.config.audio) / 2, mesh.size)
        buckets = bucket_lengths(lengths, max_buckets, model.frame_multiple, price=price)
        size = clips_at_once(len(audios), buckets[-1], batch_size, rows_multiple(mesh))
        selections = batches_in_buckets(lengths, size, buckets)
        # Asked for in the order in which they are encoded, so that the device starts behind the first
        # batch's features.
        features = [
            pool.map(log_mel, [waveforms[i] for i in batch.indices], repeat(mel)) for batch in selections
        ]

        def run(selection: Selection, clips) -> jax.Array:
            arrays = pad_features(list(clips), selection.length)
            return encode(parameters, *put(arrays, batch_sharding(mesh)))

        calls = ((batch, run(batch, clips)) for batch, clips in zip(selections, features, strict=True))
        for selection, output in one_behind(calls):
            output = fetch(output)
            for place in np.flatnonzero(selection.weights):
                clip = selection.indices[place]
                rows[clip] = output[place, : counts[clip]]
            progress.update(int(selection.weights.sum()))
    return rows


def clips_at_once(clips: int, frames: int, least: int, multiple: int) -> int:
    """Size of a batch of `clips` whose longest has `frames`: about as many as have `FRAMES_AT_ONCE`, but not
    fewer than `least`; with little filling in the last one, and a multiple of `multiple`."""
    batches = -(-clips // max(least, FRAMES_AT_ONCE // frames))
    size = -(-clips // batches)
    # XLA copies what goes into a product of 16 bit and comes out of it where its rows are no multiple of 8.
    size = -(-size // 8) * 8 if size > least else least
    return -(-size // multiple) * multiple


@functools.lru_cache(maxsize=8)
def encoder(graphdef, mesh: Mesh):
    """`encode_audio` of a model's structure as a function of its state, compiled once for each shape of
    clips."""

    def encode(state, features, lengths):
        return nnx.merge(graphdef, state).encode_audio(features, lengths)

    return jax.jit(traced_on(mesh, encode), compiler_options=compiler_options())


def empty_audio_bank(model: nnx.Module) -> AudioBank:
    """A bank without clips, for prompts without audio."""
    return AudioBank(jnp.zeros((1, model.config.text.hidden_size), jnp.float32), (), ())


def _bank(array: jax.Array, counts: Sequence[int], prints: Sequence[str]) -> AudioBank:
    offsets = np.cumsum([1, *counts])[:-1] if counts else []
    return AudioBank(array, tuple(map(int, offsets)), tuple(map(int, counts)), tuple(prints))


def _fingerprint(audio: str | Path | np.ndarray) -> str:
    return content_hash(
        audio.tobytes() if isinstance(audio, np.ndarray) else Path(audio).expanduser().read_bytes()
    )
