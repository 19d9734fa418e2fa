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
    config["rrs"] = {"top_m": 25.0 if folder.name == "rrs_top25" else 51.0}
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


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_sweep_is_one_file_of_lines(sweep, capsys):
    target = sweep / "docs"
    assert main([str(sweep / "paper"), str(target), f"--page={sweep / 'page.md'}"]) == 0
    assert [path.name for path in target.iterdir()] == ["paper.jsonl"]
    head, *runs = lines(target / "paper.jsonl")
    assert [(line["run"], line["evaluation"], line["strategy"], line["seed"]) for line in runs] == [
        ("rrs", "rrs", "rrs", 0),
        ("rrs", "rrs-check", "rrs", 0),
        ("rrs-seed1", "rrs", "rrs", 1),
        ("rrs_top25", "rrs", "rrs", 0),
        ("vanilla", "vanilla", "vanilla", 0),
    ]
    assert head["sweep"] == "paper" and head["config"] == {"model.path": "m"} and head["judge"] == "phrases"
    assert [line.get("config") for line in runs] == [None, None, None, {"rrs.top_m": 25.0}, None]
    assert len(head["sessions"]) == 4 and head["sessions"][0] == {
        "command": "launch.py --config.run_dir=rrs --config.model.path=m",
        "commit": "abc",
        "device": {"kind": "H100"},
        "versions": {"jax": "1"},
    }
    assert [line["sessions"] for line in runs] == [[0], [0], [1], [2], [3]]
    assert "/data" not in (target / "paper.jsonl").read_text()
    page = (sweep / "page.md").read_text()
    assert "old" not in page and page.index("the | table") < page.index("the | ranking") < page.index("end")


def test_a_line_has_the_rates_without_what_follows_from_them(sweep):
    path = sweep / "paper" / "rrs" / "eval" / "rrs" / "summary.json"
    summary = read_json(path)
    full = {"queries": 10, "responses": 10, "refusals": 8, "answers": 2, "any_asr": 20.0, "compliance": 20.0}
    summary["modes"]["audio_text"] |= full | {"empty": 0, "gibberish": 3, "unjudged": 0}
    summary["modes"]["text_only"] |= {"responses": 50, "any_asr": 40.0, "compliance": 60.0}
    summary["orr_by_mode"] = {
        "audio_text": {"orr": summary["orr"], "borderline_orr": summary["borderline_orr"]},
        "text_only": {"orr": summary["orr"], "borderline_orr": summary["borderline_orr"]},
        "audio_only": {"orr": {"rate": 7.0}, "borderline_orr": None},
    }
    judged = {field: summary[field] for field in ("modes", "orr", "borderline_orr")}
    summary["everyday_orr"] = summary["orr"]
    summary["refused_by"] = {"style": {"harmful": {"task": {"audio_text": full, "text_only": None}}}}
    summary |= {"by_category": {"harmful": {}}, "other_judges": {"first_token": judged | {"orr": None}}}
    path.write_text(json.dumps(summary))
    assert main([str(sweep / "paper"), str(sweep / "docs")]) == 0
    line = lines(sweep / "docs" / "paper.jsonl")[1]
    block = {"asr": 20.0, "ci95": [0.0, 100.0], "queries": 10, "responses": 10}
    assert line["modes"]["audio_text"] == block | {"refusals": 8, "gibberish": 3}
    assert line["modes"]["text_only"] == block | {
        "asr": 30.0, "responses": 50, "any_asr": 40.0, "compliance": 60.0,
    }  # fmt: skip
    assert line["modes"]["audio_only"] is None and line["orr"]["rate"] == 2.0
    assert line["nsi"] == {"average": 1.0} and line["seconds"] == {"train": 12.5}
    assert line["orr_by_mode"] == {
        "text_only": {"orr": line["orr"], "borderline_orr": line["borderline_orr"]},
        "audio_only": {"orr": {"rate": 7.0}, "borderline_orr": None},
    }
    assert line["other_judges"] == {
        "first_token": {"audio_text": 20.0, "text_only": 30.0, "audio_only": None, "borderline_orr": 6.0}
    }
    assert "by_category" not in line and line["everyday_orr"] == line["orr"]
    assert line["refused_by"] == {"style": {"harmful": {"task": {"audio_text": [8, 10]}}}}


def test_what_differs_between_runs_stands_in_their_lines(sweep):
    path = sweep / "paper" / "rrs_top25" / "eval" / "rrs" / "summary.json"
    path.write_text(json.dumps(read_json(path) | {"judge": "llm:default"}))
    assert main([str(sweep / "paper"), str(sweep / "docs")]) == 0
    head, *runs = lines(sweep / "docs" / "paper.jsonl")
    assert "judge" not in head
    assert [line["judge"] for line in runs] == ["phrases", "phrases", "phrases", "llm:default", "phrases"]


def test_one_run_is_published_with_its_vanilla_model(sweep):
    target = sweep / "docs"
    assert main([str(sweep / "paper" / "rrs_top25"), str(target)]) == 0
    head, *runs = lines(target / "rrs_top25.jsonl")
    assert [line["evaluation"] for line in runs] == ["rrs", "vanilla"]
    assert head["config"] == {"model.path": "m", "rrs.top_m": 25.0}
    assert runs[0]["modes"]["audio_text"]["asr"] == 20.0 and runs[1]["modes"]["audio_text"]["asr"] == 100.0


def test_the_report_is_copied_where_it_is_asked_for(sweep, capsys):
    target, report = sweep / "docs", sweep / "paper" / "report"
    (report / "figure.png").write_bytes(b"0" * 5_000_001)
    (report / "table2.md").write_text("| table 2 |\n")
    assert main([str(sweep / "paper"), str(target), "--report"]) == 0
    assert {path.name for path in target.iterdir()} == {"paper.jsonl", "index.html", "table2.md"}
    assert (target / "index.html").read_text() == "<html></html>"
    assert "figure.png: left out, since it has 5.0 MB and 5 MB is the most" in capsys.readouterr().err


def test_mistakes_are_told(sweep, capsys):
    target = sweep / "docs"
    assert main([str(sweep / "docs"), str(target)]) == 2
    assert "is no folder of a run or of a sweep with an evaluation" in capsys.readouterr().err
    assert main([str(sweep / "paper"), str(target), f"--page={sweep / 'page.md'}", "--name=other"]) == 2
    assert "holds <!-- table:other --> 0 times" in capsys.readouterr().err
    assert not target.exists()
