"""Reports of evaluations whose judge gives no label: a rate that nobody knows is N/A, and nothing fails."""

import pytest

from helpers import report_runs
from helpers.report_runs import write_run
from rrs_jax.evaluate.compare import compare_folders, format_comparison
from rrs_jax.evaluate.judges.judge import FirstToken, Judgement, Phrases
from rrs_jax.evaluate.pool import pool_runs
from rrs_jax.files import read_json, read_jsonl, write_json
from rrs_jax.report.details import details
from rrs_jax.report.page import make_page, make_sweep_pages
from rrs_jax.report.publish import publish
from rrs_jax.report.ranking import can_rank, ranking
from rrs_jax.report.table import markdown_table, text_table
from rrs_jax.run.sweep import pooled_seeds


class Some:
    """A person who has labelled these sets, in these modes, alone."""

    name, version, sees = "human:some", "1", frozenset({"refusal", "harmful"})

    def __init__(self, *labels):
        self.labels = labels

    def judge(self, question, response, label):
        if label not in self.labels:
            return Judgement(None, None, "unlabelled")
        return Judgement(False, True, "answer")


CASES = {
    "none": [Some(), Phrases(), FirstToken()],
    "benign": [Some("benign"), Phrases()],
    "harmful": [Some("harmful"), Phrases()],
    "borderline": [Some("borderline")],
    "second": [Phrases(), Some()],
}


@pytest.mark.parametrize("case", CASES)
def test_every_report_of_unjudged_answers(case, tmp_path, monkeypatch):
    monkeypatch.setattr(report_runs, "make_judges", lambda names: CASES[case])
    written = {"pairs": 4, "epochs": 2, "evaluated": (1,), "recorded": (0, 2)}
    runs = [
        write_run(tmp_path / "rrs", **written),
        write_run(tmp_path / "rrs-seed1", seed=1, draw=2, **written),
        write_run(tmp_path / "wide", **written | {"rrs.top_m": 30.0}),
        write_run(tmp_path / "before", "vanilla", **written),
    ]
    for run in runs:
        record = read_json(run / "config.json")
        record["sessions"][0]["command"] = "launch.py"
        write_json(run / "config.json", record)
    table = text_table(runs)
    known = {"second": 5 * 7, "harmful": 3 * 7}.get(case, 0)
    known += 7 if case in ("benign", "borderline") else 0
    cells = [line.split("  ") for line in table.splitlines()[2:9]]
    assert sum("[" in cell for row in cells for cell in row) == known
    assert ("N/A" in table) == (case != "second")
    assert markdown_table(runs, vanilla_once=True) and details(runs) and details(runs, markdown=True)
    pool_runs(runs[:2], "rrs", tmp_path / "pooled")
    assert text_table([tmp_path / "pooled"]) and markdown_table(
        pooled_seeds(runs, tmp_path / "report/pooled")
    )
    assert format_comparison(compare_folders(runs[0] / "eval/vanilla", runs[0] / "eval/rrs"))
    assert can_rank(runs, "rrs") == (case == "second")
    if case == "second":
        assert ranking(runs, "rrs") and ranking(runs, "rrs", markdown=True)
    make_page(tmp_path / "page", runs, "x")
    make_sweep_pages(tmp_path, runs)
    assert "N/A" in (tmp_path / "page/index.html").read_text() or case == "second"
    publish(tmp_path, tmp_path / "published", "x")
    assert len(read_jsonl(tmp_path / "published/x.jsonl")) == 1 + 4


def test_a_ranking_over_rates_that_are_known_in_part(tmp_path):
    """A mode, and a set, that one run's judge has not seen are left out of its row."""
    runs = [write_run(tmp_path / name, pairs=4, epochs=2, evaluated=()) for name in ("rrs", "other")]
    path = runs[1] / "eval/rrs/summary.json"
    summary = read_json(path)
    summary["modes"]["audio_text"]["asr"] = summary["borderline_orr"]["rate"] = None
    write_json(path, summary)
    row = next(line for line in ranking(runs, "rrs").splitlines() if line.startswith("other"))
    assert "N/A" in row and row.split()[1] != "N/A"


def test_a_report_between_runs_pools_the_seeds_of_the_last_run_alone(tmp_path):
    runs = [
        write_run(tmp_path / name, pairs=4, seed=i) for i, name in enumerate(("a", "a-seed1", "b", "b-seed1"))
    ]
    target = tmp_path / "pooled"
    assert pooled_seeds(runs, target, "a") == [target / "a-2seeds", target / "b-2seeds"]
    summaries = [target / f"{name}-2seeds/eval/rrs/summary.json" for name in "ab"]
    whole = [summary.read_bytes() for summary in summaries]
    for summary in summaries:
        summary.write_text("{}")
    pooled_seeds(runs, target, "a-seed1")
    assert [summary.read_bytes() for summary in summaries] == [whole[0], b"{}"]
    summaries[1].unlink()  # as where pooling was interrupted
    pooled_seeds(runs, target, "a-seed1")
    assert [summary.read_bytes() for summary in summaries] == whole
    pooled_seeds(runs, target)
    assert [summary.read_bytes() for summary in summaries] == whole
