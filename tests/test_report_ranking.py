"""The ranking of a sweep's runs by the target, seeds averaged."""

import pytest

from helpers.summaries import write_summary
from rrs_jax.errors import UserError
from rrs_jax.report.ranking import main, ranking


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
