"""Parts that the runs of one process, and of one sweep, have in common: each made once and found again by its
content."""

import contextlib
import os
import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from rrs_jax.data.manifest import audio_paths, load_manifest
from rrs_jax.errors import Damaged
from rrs_jax.files import atomic_path, content_hash, file_lock, remove_unfinished
from rrs_jax.frozen.audio_bank import AudioBank, make_audio_bank
from rrs_jax.generate import Generator, SamplingConfig
from rrs_jax.inputs.processor import Processor
from rrs_jax.progress import say
from rrs_jax.weights.load import load_weights
from rrs_jax.weights.safetensors_io import load_file, save_file

LENT = ("responses.jsonl", "responses.meta.json")


class SweepCache:
    """The loaded model, encoded clips, compiled functions, the frozen model's states and answers.

    folder: where states, clips and answers also lie on disk, for other processes of the sweep; None for
      nowhere.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = folder
        if folder is not None:
            remove_unfinished(folder, older_than=3600.0)  # another process may be writing
        self.clips: list[Path] = []  # of all runs, so that one bank serves them and shapes are the same
        self.steps: dict = {}  # compiled training steps, see `rrs_jax.train.loop.train`
        self.encoded: dict[
            tuple, list[int]
        ] = {}  # prompts' token ids, see `rrs_jax.run.context.RunContext.encode_prompt`
        self._models: dict = {}
        self._processors: dict = {}
        self._banks: dict = {}
        self._other_bank: tuple[tuple, AudioBank] | None = None  # the last one of other clips
        self._generators: dict = {}
        self._states: dict[str, np.ndarray] = {}
        self._read: set[Path] = set()

    def vanilla(self, model_folder: Path, key: tuple) -> nnx.Module:
        """The frozen model without adapters. key: digest of the folder's content, dtype, mesh, quantize."""
        if key not in self._models:
            _, dtype, mesh, quantize = key
            self._models[key] = load_weights(
                model_folder, dtype=jnp.dtype(dtype), mesh=mesh, quantize=quantize
            )
        return self._models[key]

    def processor(self, model_folder: Path, digest: str) -> Processor:
        """The folder's processor; digest: of the folder's content."""
        if digest not in self._processors:
            self._processors[digest] = Processor.from_folder(model_folder)
        return self._processors[digest]

    def audio_bank(
        self,
        model: nnx.Module,
        processor: Processor,
        paths: Sequence[Path],
        *,
        batch_size: int,
        cache: Path | None,
        key: str,
    ) -> AudioBank:
        """Embeddings of some clips; where `clips` are known, a part of the one bank of all of them, or of a
        bank of their own that all runs share.

        cache: file that keeps them where no clips are known; None for nowhere.
        key: digest of the content of the model's folder.
        """
        if not self.clips:
            return make_audio_bank(
                model, processor.mel, paths, batch_size=batch_size, cache=cache, cache_key=key
            )
        prints = [content_hash(path.read_bytes()) for path in paths]
        make = partial(self._shared_bank, model, processor, batch_size, key)
        if (whole := (key, model)) not in self._banks:
            self._banks[whole] = make({content_hash(path.read_bytes()): path for path in self.clips})
        if set(prints) <= set(self._banks[whole].prints):
            return self._banks[whole].part(prints)
        own = key, model, *prints
        if self._other_bank is None or self._other_bank[0] != own:
            self._other_bank = None  # two at once may not fit
            self._other_bank = own, make(dict(zip(prints, paths, strict=True)))
        return self._other_bank[1].part(prints)

    def _shared_bank(
        self, model: nnx.Module, processor: Processor, batch_size: int, key: str, clips: dict[str, Path]
    ) -> AudioBank:
        """Embeddings of different clips, by hashes of their bytes, as one process of the sweep makes them."""
        with self.alone("audio"):
            return make_audio_bank(
                model,
                processor.mel,
                list(clips.values()),
                batch_size=batch_size,
                cache=self.folder / f"audio-{content_hash(key, list(clips))}.safetensors",
                cache_key=key,
            )

    def generator(
        self,
        model: nnx.Module,
        sampling: SamplingConfig,
        eos_token_ids: Sequence[int],
        batch_size: int | Literal["auto"],
        cache_dtype: str,
    ) -> Generator:
        """One of the same compiled functions for every model of the same structure."""
        graphdef, state = nnx.split(model)
        key = (graphdef, sampling, tuple(eos_token_ids), batch_size, cache_dtype)
        if key not in self._generators:
            self._generators[key] = Generator(
                model, sampling, eos_token_ids=eos_token_ids, batch_size=batch_size, cache_dtype=cache_dtype
            )
        self._generators[key].state = state
        return self._generators[key]

    def know_clips(self, runs: Iterable[ConfigDict]) -> None:
        """Takes the clips of these runs' manifests, as far as they are written, for `clips`."""
        self.clips = []
        for run in runs:
            for manifest in ("data/manifest.jsonl", "data/eval/manifest.jsonl"):
                if (written := Path(run.run_dir) / manifest).is_file():
                    self.clips += audio_paths(written, load_manifest(written))

    def alone(self, what: str) -> contextlib.AbstractContextManager:
        """Keeps the other processes of the sweep from making the same part, so that they find it made."""
        return file_lock(self.folder / f".{what}.lock") if self.folder else contextlib.nullcontext()

    def states(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Those of the frozen model's states that are known, here or to another process by now."""
        if self.folder and not self._states.keys() >= set(keys):
            for path in sorted(set(self.folder.glob("states/*.safetensors")) - self._read):
                try:
                    self._states |= load_file(path)[0]
                    self._read.add(path)
                except Damaged as error:
                    say(f"{str(error).partition(';')[0]}; the states are computed again")
                    path.unlink()
        return {key: self._states[key] for key in keys if key in self._states}

    def keep_states(self, states: dict[str, np.ndarray]) -> None:
        self._states |= states
        if self.folder and states:
            path = self.folder / "states" / f"{content_hash(sorted(states))}.safetensors"
            with atomic_path(path) as temporary:
                save_file(temporary, states, {})
            self._read.add(path)

    def borrow(self, key: str, target: Path) -> None:
        """Another run's finished answers of the frozen model into `target`, where there are some and `target`
        has none."""
        source = self._answers(key)
        if source and source.is_dir() and not (target / LENT[0]).exists():
            target.mkdir(parents=True, exist_ok=True)
            for name in LENT:
                shutil.copyfile(source / name, target / name)

    def lend(self, key: str, source: Path) -> None:
        """Finished answers for other runs."""
        target = self._answers(key)
        if target and not target.is_dir():
            for left in target.parent.glob(f".{target.name}.*"):  # by a killed process
                shutil.rmtree(left)
            temporary = target.with_name(f".{target.name}.{os.getpid()}")
            temporary.mkdir(parents=True)
            for name in LENT:
                shutil.copyfile(source / name, temporary / name)
            try:
                temporary.rename(target)
            except OSError:  # another process was first
                shutil.rmtree(temporary)

    def _answers(self, key: str) -> Path | None:
        return self.folder / "vanilla" / key if self.folder else None
