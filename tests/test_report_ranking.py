"""The ranking of a sweep's runs by the target, seeds averaged."""

import runpy
import sys
from pathlib import Path

import pytest

from helpers.summaries import write_summary
from rrs_jax.errors import UserError
from rrs_jax.report.ranking import main, ranking, worst_ranking

ROOT = Path(__file__).parent.parent
GROUPS = {"style": ("keywords", "polite"), "category": ("self_harm",)}


@pytest.fixture
def sweep(tmp_path):
    for run, asr, orr, borderline in (
        ("rrs", (20.0, 30.0, None), 9.0, 60.0),
        ("met", (22.0, 33.0, None), 2.0, 10.0),
        ("unsafe", (20.0, 36.0, None), 1.0, 5.0),
    ):
        write_summary(tmp_path, run, "vanilla", (100.0, 90.0, None), 1.0, 5.0, nsi=False)
        write_summary(tmp_path, run, "rrs", asr, orr, borderline, nsi=True)
    return [tmp_path / run for run in ("rrs", "met", "unsafe")]


def test_of_several_seeds_the_mean_is_ranked(sweep, tmp_path):
    """rrs answers 26 and 32 % on average, met 30 and 29, unsafe, which has one seed, 20 and 36."""
    for run, asr, orr in (("rrs-seed1", (32.0, 34.0, None), 1.0), ("met-seed1", (38.0, 25.0, None), 4.0)):
        write_summary(tmp_path, run, "vanilla", (100.0, 90.0, None), 1.0, 5.0, nsi=False)
        write_summary(tmp_path, run, "rrs", asr, orr, 10.0, nsi=True)
    lines = ranking([*sweep, tmp_path / "rrs-seed1", tmp_path / "met-seed1"], "rrs").splitlines()
    assert [line.split() for line in lines[2:5]] == [
        ["unsafe", "+4.0", "+0.0", "+0.0", "1.0"],
        ["met,", "2", "seeds", "+4.0", "+2.0", "+5.0", "2.0"],
        ["rrs,", "2", "seeds", "+0.0", "+4.0", "+30.0", "28.0"],
    ]


def write_groups(path, run: str, name: str, harmful: tuple, benign: tuple, borderline: tuple):
    """Rates of refusal by group in two modes: keywords, polite, self_harm, and a style that is trained on."""

    def block(rate):
        return {"rate": rate, "ci95": [0.0, 100.0], "queries": 10, "responses": 10}

    def blocks(heard, read):
        return {"audio_text": block(heard), "text_only": block(read), "audio_only": None}

    refused_by = {"style": {}, "category": {}}
    for question_set, rates in {"harmful": harmful, "benign": benign}.items():
        keywords, polite, self_harm = (blocks(*pair) for pair in rates)
        refused_by["style"][question_set] = {
            "keywords": keywords, "polite": polite, "trained": blocks(0.0 if name == "rrs" else 100.0, 50.0),
        }  # fmt: skip
        refused_by["category"][question_set] = {"self_harm": self_harm}
    by_mode = {mode: {"orr": None, "borderline_orr": value} for mode, value in blocks(*borderline).items()}
    write_summary(
        path, run, name, (9.0, 9.0, None), 9.0, borderline[0], nsi=name == "rrs", refused_by=refused_by,
        orr_by_mode=by_mode,
    )  # fmt: skip


def test_the_worst_group_and_mode_decide(tmp_path, monkeypatch, capsys):
    """Of two seeds of `even` the mean: harmful 70 where rrs has 75 (5), rewrites 12 where vanilla has 8 (4),
    borderline 5 over: 2 beyond each of the first two. `lopsided` is better everywhere but in one group."""
    before = ((10, 40), (10, 40), (10, 40)), ((0, 8), (0, 2), (1, 2)), (5, 10)
    after = {
        "rrs": (((80, 70), (80, 75), (90, 80)), ((2, 2), (9, 2), (1, 1)), (40, 9)),
        "even": (((80, 70), (80, 68), (90, 80)), ((0, 14), (2, 0), (1, 1)), (10, 5)),
        "even-seed1": (((80, 70), (80, 72), (90, 80)), ((0, 10), (2, 0), (1, 1)), (10, 5)),
        "lopsided": (((99, 99), (99, 99), (80, 99)), ((0, 0), (0, 0), (0, 0)), (5, 5)),
    }
    for run, rates in after.items():
        write_groups(tmp_path, run, "vanilla", *before)
        write_groups(tmp_path, run, "rrs", *rates)
    runs = [tmp_path / run for run in after]
    table = worst_ranking(runs, "rrs", GROUPS)
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in table.splitlines()]
    assert rows[2:5] == [
        ["even, 2 seeds", "+5.0 polite, text-only", "+4.0 keywords, text-only", "+5.0 audio-text", "+2.0"],
        ["lopsided", "+10.0 self_harm, audio-text", "+0.0 keywords, audio-text", "+0.0 audio-text", "+7.0"],
        ["rrs", "+0.0 keywords, audio-text", "+9.0 polite, audio-text", "+35.0 audio-text", "+30.0"],
    ]
    script = runpy.run_path(str(ROOT / "benchmarks" / "research" / "balanced.py"))["main"]
    monkeypatch.setitem(script.__globals__, "LEFT_OUT", GROUPS)
    monkeypatch.setattr(sys, "argv", ["balanced.py", str(tmp_path)])
    assert script() == 0 and capsys.readouterr().out == table
    monkeypatch.setattr(sys, "argv", ["balanced.py", str(tmp_path / "rrs")])  # a run and no sweep
    assert script() == 2 and "--baseline: rrs is none of the evaluated runs" in capsys.readouterr().err
    assert worst_ranking(runs, "rrs", GROUPS, markdown=True).startswith("| Run | harmful fewer than rrs's")
    with pytest.raises(UserError, match="even, 2 seeds: was not asked questions of absent"):
        worst_ranking(runs[1:3] + runs[:1], "rrs", {"style": ("absent",)})


def test_the_ranking_follows_the_target(sweep, capsys):
    """met is at every limit; unsafe is 6 points above rrs in one mode, 3 beyond; rrs 8 - 1 and 55 - 5
    beyond."""
    lines = ranking(sweep, "rrs").splitlines()
    assert [line.split() for line in lines[2:5]] == [
        ["met", "+3.0", "+1.0", "+5.0", "0.0"],
        ["unsafe", "+6.0", "+0.0", "+0.0", "3.0"],
        ["rrs", "+0.0", "+8.0", "+55.0", "57.0"],
    ]
    assert main([*map(str, sweep), "--baseline=absent"]) == 2
    assert "absent is none of the evaluated runs" in capsys.readouterr().err
    with pytest.raises(UserError, match="holds no eval/NAME/summary.json"):
        ranking([sweep[0] / "eval"], "rrs")
