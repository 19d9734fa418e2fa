"""Clips of a sweep are encoded once, whichever run or process comes first."""

import numpy as np
import pytest

from rrs_jax.files import content_hash
from rrs_jax.frozen.audio_bank import AudioBank
from rrs_jax.run.sweep_cache import SweepCache


@pytest.fixture
def encoded(monkeypatch):
    """Returns the clips of each encoding, in place of which a file is written."""
    found = []

    def make_audio_bank(model, mel, audios, *, batch_size, cache, cache_key):
        if cache is None or not cache.is_file():
            found.append([path.name for path in audios])
            if cache is not None:
                cache.touch()
        prints = tuple(content_hash(path.read_bytes()) for path in audios)
        return AudioBank(
            np.zeros((len(audios) + 1, 1)), tuple(range(1, len(audios) + 1)), (1,) * len(audios), prints
        )

    monkeypatch.setattr("rrs_jax.run.sweep_cache.make_audio_bank", make_audio_bank)
    return found


class Processor:
    mel = None


def test_clips_beside_those_of_the_runs_are_encoded_by_one_process(encoded, tmp_path):
    paths = [tmp_path / f"{name}.wav" for name in "abcd"]
    for path in paths:
        path.write_bytes(path.name.encode())
    paths.append(tmp_path / "a_again.wav")
    paths[-1].write_bytes(paths[0].read_bytes())
    (tmp_path / "shared").mkdir()
    for _ in range(2):  # processes
        shared = SweepCache(tmp_path / "shared")
        shared.clips = paths[:2]

        def bank(chosen, shared=shared):
            return shared.audio_bank("model", Processor, chosen, batch_size=4, cache=None, key="digest")

        assert bank([paths[1], paths[4]]).offsets == (2, 1)  # of the one bank of the runs' clips
        wide = [paths[3], paths[0], paths[4]]
        assert bank(wide).offsets == (1, 2, 2) and bank(wide).array is bank(wide).array
        assert bank([paths[2]]).offsets == (1,)
    assert encoded == [["a.wav", "b.wav"], ["d.wav", "a_again.wav"], ["c.wav"]]


def test_without_a_sweep_clips_are_encoded_where_they_are_asked(encoded, tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"a")
    for _ in range(2):
        SweepCache().audio_bank("model", Processor, [path], batch_size=4, cache=None, key="digest")
    assert encoded == [["a.wav"], ["a.wav"]]
