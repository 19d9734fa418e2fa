"""Every strategy through a sweep on a small random model: what is shared, resumed, told and refused."""

import importlib.util
import json
import pkgutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.sweeps import sweep_config
from rrs_jax.config import default_config, flatten
from rrs_jax.config.prompts import KEPT_TASKS
from rrs_jax.config.stages import STAGES
from rrs_jax.config.strategy_table import PLUS, STRATEGY_TABLE
from rrs_jax.errors import UserError
from rrs_jax.files import read_json, read_jsonl, with_sum, write_json
from rrs_jax.run import pipeline
from rrs_jax.run.sweep import read_sweep, run_sweep, status
from rrs_jax.weights.safetensors_io import read_header

ROOT = Path(__file__).parent.parent
RUNS = """
def runs(config):
    yield "vanilla", {"strategy": "vanilla"}
    yield "rrs", {}
    yield "top25", {"rrs.top_m": 25.0}
    shares = {"train.text_share": 0.5, "train.audio_share": 0.25}
    shares |= {"train.kept_text_share": 0.125, "train.kept_task_share": 0.125}
    added = {"data.everyday": 2, "data.contrast": 2, "rrs.read_share": 1.0}
    moves = {"rrs.amount": "own", "rrs.direction": "twins", "rrs.overlap_weight": 0.5}
    yield "rrs_plus", {"strategy": "rrs_plus"} | added | shares | moves
    for name in %r:
        yield name, {"strategy": name}
    yield "deeper", {"rrs.positions": 3, "rrs.benign_target": "hinge", "rrs.margin": 0.0}
"""
OTHERS = [name for name in STRATEGY_TABLE if name not in ("vanilla", "rrs", "rrs_plus")]
STAGES_ASKED = [name for name in STAGES if name != "export"]


@pytest.fixture(scope="module")
def base(whole_folder, sound_files, tmp_path_factory):
    path = tmp_path_factory.mktemp("sweep")
    return sweep_config(whole_folder, sound_files, path), path


@pytest.fixture(scope="module")
def swept(base):
    """The whole sweep, of which one run was done first by its index and the third was interrupted once."""
    config, path = base
    (path / "sweep.py").write_text(RUNS % OTHERS)
    run_sweep(config, str(path / "sweep.py"), STAGES_ASKED, index=1)
    assert [name for name, state in states(base).items() if state["evaluate"] == "done"] == ["rrs"]
    before = (path / "runs" / "rrs" / "metrics.jsonl").stat().st_mtime_ns

    with pytest.MonkeyPatch.context() as patch:
        whole = pipeline.STAGE_WORK["train"]

        def interrupted(context):
            if context.folder.path.name == "top25":
                raise KeyboardInterrupt
            return whole.work(context)

        patch.setitem(pipeline.STAGE_WORK, "train", replace(whole, work=interrupted))
        with pytest.raises(KeyboardInterrupt):
            run_sweep(config, str(path / "sweep.py"), STAGES_ASKED)
    assert states(base)["top25"] | {"data": "", "export": ""} == {
        "data": "",
        "extract": "done",
        "train": "to do",
        "evaluate": "to do",
        "export": "",
        "report": "to do",
    }
    made = {"generators": 0, "steps": 0, "models": 0}
    with pytest.MonkeyPatch.context() as patch:
        counted = {
            "run.sweep_cache.Generator": "generators",
            "train.loop.TrainStep": "steps",
            "run.sweep_cache.load_weights": "models",
        }
        for place, kind in counted.items():
            whole = pkgutil.resolve_name(f"rrs_jax.{place}")

            def counting(*args, whole=whole, kind=kind, **more):
                made[kind] += 1
                return whole(*args, **more)

            patch.setattr(f"rrs_jax.{place}", counting)
        run_sweep(config, str(path / "sweep.py"), STAGES_ASKED)
    # Of the plain model for four lengths of answers, of one with adapters, of a steered one. Steps of top25;
    # of rrs_plus, which has a rate of its own; of all that train on tokens; of rerouting; of harc; of
    # several positions.
    assert made == {"generators": 6, "steps": 6, "models": 1}
    assert (path / "runs" / "rrs" / "metrics.jsonl").stat().st_mtime_ns == before  # not trained again
    return config, path


def states(base):
    config, path = base
    return status(read_sweep(str(path / "sweep.py"), config))


def test_kept_questions_may_aim_at_what_the_model_has_where_it_reads_them(base, swept):
    """A share of 1 makes the target beside a spoken prompt the state of the same prompt in writing, which
    `train.text_share` has in the pool as well."""
    run = base[1] / "runs" / "rrs_plus"
    entries, _ = read_header(run / "representations.safetensors")
    arrays = {name: np.array(entry.array()) for name, entry in entries.items()}
    kept = arrays["kept_prompts"]
    assert kept.shape[:2] == (3, 23 + len(KEPT_TASKS))
    np.testing.assert_allclose(kept[:, :10], kept[:, 10:20], atol=1e-5)
    assert np.abs(kept[:, -1] - kept[:, 0]).max() > 1e-2  # the question alone
    rows = read_jsonl(run / "data" / "manifest.jsonl")
    own = [i for i, row in enumerate(rows) if row.get("role") == "keep"]
    assert np.abs(arrays["kept"] - arrays["read"][own]).max(axis=1).min() > 1e-2


def test_the_others_keep_in_writing_what_the_model_has_there(base, swept):
    """Announced beside t, a question is asked as where `rrs.read_share` reads it; bare, it is another
    prompt, the same for the kept questions' clip alone, which read_share takes to what is read."""
    run = base[1] / "runs" / "rrs_plus"
    entries, _ = read_header(run / "representations.safetensors")
    arrays = {name: np.array(entry.array()) for name, entry in entries.items()}
    rows = read_jsonl(run / "data" / "manifest.jsonl")
    moved = [i for i, row in enumerate(rows) if row.get("role") != "keep"]
    kept = [i for i, row in enumerate(rows) if row.get("role") == "keep"]
    texts, tasks = np.split(arrays["staying"], [2], axis=1)
    assert len(texts) == len(moved)
    np.testing.assert_allclose(texts[:, 1], arrays["read"][moved], atol=1e-5)
    np.testing.assert_allclose(arrays["kept_prompts"][:, 21], arrays["read"][kept], atol=1e-5)
    np.testing.assert_allclose(arrays["kept_prompts"][:, 20], arrays["kept_prompts"][:, -1], atol=1e-5)
    assert np.abs(texts[:, 0] - texts[:, 1]).max(axis=1).min() > 1e-2
    tasks = np.concatenate([tasks, arrays["kept_prompts"][:, 22:-1]])
    assert tasks.shape[:2] == (len(rows), len(KEPT_TASKS))
    heard = np.concatenate([arrays["harmful"], arrays["benign"], arrays["kept"]])  # under t
    assert np.abs(tasks[:, :, None] - heard).max(axis=-1).min() > 1e-2


def test_every_strategy_is_trained_and_evaluated(swept):
    config, path = swept
    for name, state in states(swept).items():
        assert {state[stage] for stage in STAGES_ASKED} <= {"done", "-"}, name
        strategy = config.strategy if name in ("top25", "deeper") else name
        summary = read_json(path / "runs" / name / "eval" / strategy / "summary.json")
        assert summary["strategy"] == strategy and summary["modes"]["audio_text"]["queries"] == 1
        if strategy != "vanilla":
            assert summary["nsi"] is not None
        if STRATEGY_TABLE[strategy].trains:
            first = read_jsonl(path / "runs" / name / "metrics.jsonl")[0]
            assert first["loss"] > 0 and first["grad_norm"] > 0


def test_the_table_has_every_run_and_vanilla_once(swept):
    _, path = swept
    table = (path / "runs" / "report" / "table.md").read_text()
    first = [row.split("|")[1].strip() for row in table.splitlines() if row.startswith("|")]
    assert sum("vanilla" in name for name in first) == 1
    assert len(first) == 2 + len(OTHERS) + 5
    done = (path / "runs" / "report" / "status.md").read_text()
    assert "| vanilla | done | - | - | done | - | done |" in done


def test_a_sweep_ends_with_how_to_open_its_page(swept, capsys):
    config, path = swept
    run_sweep(config, str(path / "sweep.py"), ("report",))
    page = (path / "runs" / "report" / "index.html").resolve()
    assert capsys.readouterr().out.endswith(f"To look and listen, open {page} in a browser.\n")


def test_what_runs_have_in_common_is_made_once(swept):
    """One set of the frozen model's answers, byte for byte; its states and clips lie in the shared folder."""
    _, path = swept
    answers = [file.read_bytes() for file in sorted(path.glob("runs/*/eval/vanilla/responses.jsonl"))]
    assert len(answers) == len(OTHERS) + 5 and len(set(answers)) == 1
    assert len(list((path / "runs" / "shared" / "vanilla").iterdir())) == 1
    entries, _ = read_header(next((path / "runs" / "shared").glob("audio-*.safetensors")))
    assert (
        len(entries["counts"].array()) == 1 + 8 + 4
    )  # a row of none, the clips, and those that rrs_plus adds
    states = [name for file in (path / "runs/shared/states").iterdir() for name in read_header(file)[0]]
    assert len(states) == len(set(states))


def test_a_run_alone_gives_what_it_gives_in_the_sweep(swept):
    """The last bits differ, since clips are encoded in other batches."""
    config, path = swept
    alone = config.copy_and_resolve_references()
    alone.run_dir = str(path / "alone")
    pipeline.run(alone, ("data", "extract", "train"))
    ours, theirs = (read_jsonl(run / "metrics.jsonl")[0] for run in (path / "alone", path / "runs" / "rrs"))
    np.testing.assert_allclose(
        [ours["loss"], ours["grad_norm"]], [theirs["loss"], theirs["grad_norm"]], rtol=1e-4
    )
    one, other = (
        read_header(run / "representations.safetensors")[0]["safety_vector"].array()
        for run in (path / "alone", path / "runs" / "rrs")
    )
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_sft_targets_are_what_the_strategies_say(swept):
    _, path = swept
    rows = {
        name: read_jsonl(path / "runs" / name / "sft_targets.jsonl")
        for name in OTHERS
        if name.startswith("sft")
    }
    full = rows["sft_full"]
    assert all(
        row["text"] and "I do.".startswith(row["text"]) for row in full[:3]
    )  # from the manifest, cut at 4 tokens
    assert full[4]["text"].startswith("I")  # harmful without a response: a refusal
    (refusal,) = {row["target"][0] for row in rows["sft_shallow_mirror"] if row["label"] == "harmful"}
    for name in ("sft_shallow_mirror", "sft_shallow_parallel"):
        assert all(len(row["target"]) == 1 for row in rows[name])
        assert {row["text"] for row in rows[name] if row["label"] == "harmful"} == {"I"}
    answers = {row["key"]: row["tokens"] for row in read_jsonl(path / "runs" / "shared" / "responses.jsonl")}
    own = {tuple(tokens) for tokens in answers.values()}
    assert all(tuple(row["target"]) in own for row in rows["sft_shallow_mirror"] if row["label"] == "benign")
    for row in rows["sft_deep"]:
        lengths = [len(prefill) for prefill in row["prefills"]]
        assert lengths == ([0, 1, 2] if row["label"] == "harmful" else [0])
        if row["label"] == "harmful":
            assert row["target"][0] == refusal != row["prefills"][-1][0]


def test_a_failing_run_is_told_and_the_others_go_on(base, tmp_path, capsys):
    config, _ = base
    config = config.copy_and_resolve_references()
    config.run_dir = str(tmp_path / "runs")
    (tmp_path / "sweep.py").write_text(
        "def runs(config):\n    yield 'bad', {'rrs.refusal_tokens': ('two words',)}\n    yield 'good', {}\n"
    )
    with pytest.raises(UserError, match="bad: 'two words' is . tokens"):
        run_sweep(config, str(tmp_path / "sweep.py"), ("data", "extract"))
    assert states((config, tmp_path))["good"]["extract"] == "done"


@pytest.mark.parametrize(
    "text, sentence",
    [
        (
            "def runs(config):\n    yield 'a', {'rrs.topm': 3.0}",
            "a: rrs.topm is no field, the nearest is rrs.top_m",
        ),
        ("def runs(config):\n    yield 'a', {'rrs.top_m': 0}", "a: rrs.top_m is 0, give a number above 0"),
        (
            "def runs(config):\n    yield 'a', {}\n    yield 'a', {}",
            "'a' is no name of a run, or given twice",
        ),
        ("def runs(config):\n    yield 'shared', {}", "'shared' is no name of a run"),
        ("def runs(config):\n    return ()", "yields nothing"),
        ("def runs(:", "cannot be loaded (SyntaxError"),
        ("x = 3", "has no function runs(config); give a sweep's file"),
        ("def runs(config):\n    yield 'rrs'", "yields 'rrs'; yield a name and a dict of fields"),
        ("def runs(config):\n    yield 'a', 25.0", "yields ('a', 25.0); yield a name and a dict"),
        ("def runs(config):\n    return config.no_field", "cannot be loaded (AttributeError"),
    ],
)
def test_a_mistake_in_a_sweep_is_one_sentence(base, tmp_path, text, sentence):
    (tmp_path / "sweep.py").write_text(text)
    with pytest.raises(UserError) as error:
        read_sweep(str(tmp_path / "sweep.py"), base[0])
    assert sentence in str(error.value)


def test_a_row_wins_over_the_preset_and_so_does_what_all_rows_share(tmp_path):
    (tmp_path / "sweep.py").write_text(
        "def runs(config):\n"
        "    yield 'rrs', {}\n"
        "    yield 'preset', {'strategy': 'rrs_plus'}\n"
        "    yield 'given', {'strategy': 'rrs_plus', 'train.epochs': 10, 'rrs.harmful_weight': 1.0}\n"
    )
    config = default_config()
    config.model.path, config.train.average = "mini", 0.0
    runs = read_sweep(str(tmp_path / "sweep.py"), config)
    found = {
        name: (run.train.epochs, run.rrs.harmful_weight, run.train.learning_rate, run.train.average)
        for name, run in runs.items()
    }
    assert found == {
        "rrs": (10, 1.0, 5e-5, 0.0),
        "preset": (20, 3.0, 2e-4, 0.0),
        "given": (10, 1.0, 2e-4, 0.0),
    }


def test_the_papers_preset_row_has_all_of_the_preset():
    spec = importlib.util.spec_from_file_location("mini", ROOT / "configs" / "mini_rrs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    runs = read_sweep(str(ROOT / "configs" / "sweeps" / "paper.py"), module.get_config("full"))
    values = flatten(runs["rrs_plus-seed1"])
    assert {name: values[name] for name in PLUS} == PLUS


def test_index_and_file_are_checked(base, tmp_path):
    config, _ = base
    (tmp_path / "sweep.py").write_text("def runs(config):\n    yield 'a', {}\n")
    with pytest.raises(UserError, match="--sweep_index: 1 is none of 0 to 0"):
        run_sweep(config, str(tmp_path / "sweep.py"), ("data",), index=1)
    with pytest.raises(UserError, match="no file; give a sweep"):
        read_sweep(str(tmp_path / "absent.py"), config)


SCRIPTS = [*ROOT.glob("configs/sweeps/*.py"), *ROOT.glob("benchmarks/research/*.py")]
SHIPPED = sorted(file for file in SCRIPTS if "\ndef runs(" in file.read_text())


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_the_shipped_sweeps_are_right(file, tmp_path):
    config = default_config()
    config.model.path = "mini"
    if file.stem == "later_tuning":  # of what another sweep has trained
        for name in ("rrs", "rrs-seed1", "sft_deep"):
            (tmp_path / name / "export" / "adapter").mkdir(parents=True)
            write_json(tmp_path / name / "config.json", with_sum({"config": config.to_dict()}))
        config.lora.start = str(tmp_path)
    runs = read_sweep(str(file), config)
    told = [json.dumps(run.to_dict() | {"run_dir": ""}, sort_keys=True) for run in runs.values()]
    assert (
        len(set(told)) == len(told) > (10 if file.stem in ("paper", "plus") else 3)
    )  # no run is another one again
    assert {"rrs", "rrs-seed2", "rrs_plus-seed1", "sft_deep", "rrs_top12.5"} <= set(
        runs
    ) or file.stem != "paper"
