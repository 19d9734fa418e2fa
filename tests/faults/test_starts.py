"""The quick part of simultaneous starts."""

from faults.starts import start_together
from rrs_jax.testing import write_manifest, write_qwen2_audio


def test_of_two_commands_at_one_instant_one_runs(tmp_path):
    write_qwen2_audio(tmp_path / "model")
    write_manifest(tmp_path / "data")
    assert start_together(tmp_path, 3) == []
