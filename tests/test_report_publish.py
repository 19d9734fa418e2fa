"""Published results: names, provenance, no path of the machine, tables of a page."""

import json

import pytest

from helpers.summaries import write_summary
from rrs_jax.files import read_json
from rrs_jax.report.publish import main

PAGE = (
    "# Results\n\n<!-- table:paper -->\nold\n<!-- /table -->\n\n<!-- table:paper-ranking -->\n<!-- /table"
    " -->\nend\n"
)


def record(folder, strategy: str, seed: int) -> None:
    session = {
        "command": f"launch.py --config.run_dir={folder} --config.model.path=/data/models/m",
        "commit": "abc",
        "device": {"kind": "H100"},
        "versions": {"jax": "1"},
    }
    config = {"strategy": strategy, "seed": seed, "model": {"path": "/data/models/m"}, "run_dir": str(folder)}
    (folder / "config.json").write_text(json.dumps({"config": config, "seed": seed, "sessions": [session]}))
    (folder / ".done").mkdir()
    (folder / ".done" / "train.json").write_text('{"hash": "x", "seconds": 12.5}')


@pytest.fixture
def sweep(tmp_path):
    source = tmp_path / "paper"
    for run, strategy, seed in (
        ("vanilla", "vanilla", 0),
        ("rrs", "rrs", 0),
        ("rrs-seed1", "rrs", 1),
        ("rrs_top25", "rrs", 0),
    ):
        write_summary(source, run, "vanilla", (100.0, 90.0, None), 1.0, 5.0, nsi=False)
        if strategy != "vanilla":
            write_summary(source, run, strategy, (20.0 + seed, 30.0, None), 2.0, 6.0, nsi=True)
        record(source / run, strategy, seed)
    write_summary(source, "rrs", "rrs-check", (19.0, 30.0, None), 2.0, 6.0, nsi=True)
    (source / "report" / "pooled").mkdir(parents=True)
    (source / "report" / "table.md").write_text("| the | table |\n")
    (source / "report" / "ranking.md").write_text("| the | ranking |\n")
    (source / "report" / "index.html").write_text("<html></html>")
    (tmp_path / "page.md").write_text(PAGE)
    return tmp_path


def test_a_sweep_is_published(sweep, capsys):
    target = sweep / "docs"
    assert main([str(sweep / "paper"), str(target), f"--page={sweep / 'page.md'}"]) == 0
    assert sorted(path.name for path in target.iterdir()) == [
        "index.html",
        "paper.runs.json",
        "rrs-check-seed0.json",
        "rrs-seed0.json",
        "rrs-seed1.json",
        "rrs_top25-seed0.json",
        "vanilla-seed0.json",
    ]
    assert read_json(target / "rrs-seed1.json")["modes"]["audio_text"]["asr"] == 21.0
    runs = {run["run"]: run for run in read_json(target / "paper.runs.json")["runs"]}
    assert runs["rrs-seed1"]["seconds"] == {"train": 12.5} and runs["rrs-seed1"]["seed"] == 1
    session = runs["rrs"]["sessions"][0]
    assert (
        session["command"] == "launch.py --config.run_dir=rrs --config.model.path=m"
        and session["commit"] == "abc"
    )
    assert runs["rrs"]["files"] == ["rrs-check-seed0.json", "rrs-seed0.json"]
    for path in target.iterdir():
        assert str(sweep) not in path.read_text() and "/data" not in path.read_text()
    page = (sweep / "page.md").read_text()
    assert "old" not in page and page.index("the | table") < page.index("the | ranking") < page.index("end")


def test_one_run_is_published_by_its_strategy(sweep):
    target = sweep / "docs"
    assert main([str(sweep / "paper" / "rrs_top25"), str(target)]) == 0
    assert {path.name for path in target.iterdir()} == {
        "rrs-seed0.json",
        "vanilla-seed0.json",
        "rrs_top25.runs.json",
    }


def test_mistakes_and_large_files_are_told(sweep, capsys):
    target = sweep / "docs"
    assert main([str(sweep / "docs"), str(target)]) == 2
    assert "is no folder of a run or of a sweep with an evaluation" in capsys.readouterr().err
    assert main([str(sweep / "paper"), str(target), f"--page={sweep / 'page.md'}", "--name=other"]) == 2
    assert "holds <!-- table:other --> 0 times" in capsys.readouterr().err
    assert not target.exists()
    (sweep / "paper" / "report" / "figure.png").write_bytes(b"0" * 5_000_001)
    assert main([str(sweep / "paper"), str(target)]) == 0
    assert "figure.png: left out, since it has 5.0 MB and 5 MB is the most" in capsys.readouterr().err
    assert not (target / "figure.png").exists() and (target / "index.html").exists()
