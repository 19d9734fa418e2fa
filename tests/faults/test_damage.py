"""The quick part of the damage: every kind of file of a run, and what it reads, once."""

import shutil

import numpy as np
import pytest

from faults.damage import KINDS, copy_home, damage_all, files_of, kind_of, table
from helpers.tiny_run import ALL, make_tiny_run, restore, tiny_config
from helpers.voices import Tones
from rrs_jax.config.stages import STAGES
from rrs_jax.data.speech import speak_all
from rrs_jax.data.voices import Voice
from rrs_jax.report.table import markdown_table
from rrs_jax.run import pipeline
from rrs_jax.run.sweep_cache import SweepCache


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    base = tmp_path_factory.mktemp("faults")
    (base / "home").mkdir()
    shared = make_tiny_run(base / "home")
    copy_home(base / "home", base / "backup")
    return base / "home", base / "backup", shared


def test_no_damage_to_a_file_of_a_finished_run_is_silent(places):
    different = {kind_of(file): file for file in files_of(places[0] / "run")}
    cases = [(file, list(KINDS)[i % len(KINDS)]) for i, file in enumerate(different.values())]
    outcomes = list(damage_all(*places, cases))
    bad = [outcome for outcome in outcomes if outcome.verdict in ("silent", "wrong", "traceback")]
    assert not bad, "\n".join([table(bad), *(outcome.words for outcome in bad)])
    assert len(outcomes) > 40 and {outcome.verdict for outcome in outcomes} >= {"told"}


@pytest.mark.parametrize("below", ["model", "data"])
def test_no_damage_to_what_a_finished_run_reads_is_silent(places, below):
    files = files_of(places[0] / below)
    cases = [(file, list(KINDS)[i % 3]) for i, file in enumerate(files)]
    outcomes = list(damage_all(*places, cases, below))
    bad = [outcome for outcome in outcomes if outcome.ended != "refused" or not outcome.told]
    assert not bad, "\n".join([table(bad), *(outcome.words for outcome in bad)])


def test_a_finished_run_without_its_checkpoints_stays_finished_until_one_is_needed(places, capsys):
    """Whoever is short of disk deletes them."""
    home, backup, shared = places
    shutil.rmtree(home / "run" / "checkpoints")
    pipeline.run(tiny_config(home), ALL, shared)
    told = capsys.readouterr().err
    assert (
        told.count("done already") == len(STAGES) and "the training is done again where it is needed" in told
    )
    (home / "run" / ".done" / "export.json").unlink()
    pipeline.run(tiny_config(home), ALL, shared)
    assert "the stage train is done again" in capsys.readouterr().err
    file = "run/export/adapter/adapter_model.safetensors"
    assert (home / file).read_bytes() == (backup / file).read_bytes()
    restore(backup, home)


def test_temporary_names_do_not_outlive_the_next_start(places):
    home, backup, shared = places
    run = home / "run"
    left = [run / ".probe-77", run / "eval" / "rrs" / ".summary.json.abcd1234.tmp", run / ".seen-by-all-1"]
    for file in left:
        file.write_bytes(b"{")
    (run / "export" / ".adapter.partial").mkdir()
    (run / "export" / ".merged.replaced").mkdir()
    pipeline.run(tiny_config(home), ALL, shared)
    assert not [path for path in run.rglob(".*") if path.name not in (".done", ".lock")]
    restore(backup, home)


def test_a_field_of_no_stage_says_that_it_has_no_effect_on_a_finished_training(places, capsys):
    home, backup, shared = places
    config = tiny_config(home)
    config.report.representation_epochs = (0, 1)
    for _ in range(2):
        pipeline.run(config, ALL, shared)
        told = capsys.readouterr().err
        assert "report.representation_epochs: (0, 1) has no effect in" in told
        assert "which was trained with None" in told and told.count("done already") == len(STAGES)
    restore(backup, home)


@pytest.mark.parametrize("kind", ["cut", "flipped", "emptied"])
def test_damaged_embeddings_of_clips_are_made_again_where_they_are_read(places, kind, capsys):
    home, backup, shared = places
    cache, config = home / "run" / "data" / "training_audio.safetensors", tiny_config(home)
    before = cache.read_bytes()
    KINDS[kind](cache)
    context = pipeline.RunContext(config, pipeline.RunFolder(config.run_dir, config), shared)
    context.encode_clips("training")
    assert f"{cache}: is" in (told := capsys.readouterr().err) and "encoded again" in told
    assert cache.read_bytes() == before
    restore(backup, home)


def test_damaged_states_that_a_sweep_shares_are_computed_again(tmp_path, capsys):
    cache, states = SweepCache(tmp_path), {"key": np.arange(4.0)}
    cache.keep_states(states)
    (file,) = (tmp_path / "states").iterdir()
    np.testing.assert_array_equal(SweepCache(tmp_path).states(["key"])["key"], states["key"])
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert SweepCache(tmp_path).states(["key"]) == {}
    assert f"{file}: is" in capsys.readouterr().err and not file.exists()


def test_a_damaged_spoken_clip_is_spoken_again(tmp_path, capsys):
    voice = Voice(Tones, "200")
    ((clip, seconds),) = speak_all([("Hello there.", voice)], tmp_path)
    content = clip.read_bytes()
    KINDS["flipped"](clip)
    assert speak_all([("Hello there.", voice)], tmp_path) == [(clip, seconds)]
    assert clip.read_bytes() == content and "is damaged and spoken again" in capsys.readouterr().err


def test_a_deleted_summary_is_told_by_the_table(places, capsys):
    home, backup, _ = places
    (home / "run" / "eval" / "rrs" / "summary.json").unlink()
    assert "| rrs |" not in markdown_table([home / "run"])
    assert "rrs: has answers and no summary.json, so it is left out" in capsys.readouterr().err
    restore(backup, home)
