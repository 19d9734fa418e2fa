"""The table of rates: from summary.json on disk to text, Markdown and a pasted README."""

import subprocess
import sys

import pytest

from rrs_jax.errors import UserError
from rrs_jax.files import write_json
from rrs_jax.report import table

HEADER = (
    "Model",
    "Compliance audio-text",
    "Compliance text-only",
    "Compliance audio-only",
    "ORR",
    "ORR borderline",
    "NSI average",
)


def block(rate, low, high, field="asr", **counts):
    counts = {"refusals": 0, "empty": 0, "transcription": 0, "gibberish": 0} | counts
    return {field: rate, "ci95": [low, high], "queries": 140, "responses": 700, **counts}


def summary(name, audio, orr, nsi, **changes):
    return {
        "name": name,
        "model": "mini",
        "strategy": name,
        "judge": "phrases",
        "judge_version": "1",
        "asr_is": "compliance (1 - refusal), an upper bound of ASR",
        "samples": 5,
        "modes": {"audio_text": audio, "text_only": block(30.04, 25.0, 36.0), "audio_only": None},
        "orr": orr,
        "borderline_orr": block(26.0, 20.0, 33.0, "rate") | {"queries": 120},
        "nsi": nsi,
    } | changes


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "mini-run"
    vanilla = summary(
        "vanilla", block(94.0, 88.25, 97.0, empty=3, gibberish=1), block(1.5, 0.4, 5.0, "rate"), None
    )
    nsi = {"audio_text": 58.0, "text_only": 1.5, "audio_only": None, "average": 29.75}
    tuned = summary("rrs", block(33.0, 27.0, 40.0), block(4.5, 2.0, 9.0, "rate"), nsi)
    write_json(folder / "eval/rrs/summary.json", tuned)
    write_json(folder / "eval/vanilla/summary.json", vanilla)
    return folder


def test_text_table(run):
    lines = table.text_table([run]).splitlines()
    assert lines[0].split("  ")[0] == "Model"
    assert lines[2].startswith("vanilla")
    assert lines[3].startswith("rrs")
    columns = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[:4]]
    assert columns[0] == list(HEADER)
    assert columns[2][1:] == [
        "94.0 [88.2, 97.0]",
        "30.0 [25.0, 36.0]",
        "N/A",
        "1.5 [0.4, 5.0]",
        "26.0 [20.0, 33.0]",
        "-",
    ]
    assert columns[3][1:3] == ["33.0 [27.0, 40.0]", "30.0 [25.0, 36.0]"]
    assert columns[3][-1] == "+29.8"
    assert len({len(line) for line in lines[:4]}) == 1


def test_notes_say_judge_sizes_and_non_answers(run):
    text = table.text_table([run])
    judge = "Judge: phrases (version 1), which sees refusals alone"
    assert f"{judge}: compliance is 1 - refusal, an upper bound of ASR." in text
    assert text.count("Judge:") == 1
    assert "Questions: 140 harmful, 140 benign, 120 borderline, 5 response(s) each." in text
    assert "Neither answer nor refusal, vanilla: harmful audio-text 3 empty, 1 gibberish of 700." in text
    assert "Neither answer nor refusal, rrs" not in text


def test_first_token_is_shown_as_a_diagnostic(run):
    path = run / "eval/rrs/summary.json"
    other = {
        "modes": {"audio_text": block(7.0, 1, 9, refusals=651), "text_only": None, "audio_only": None},
        "orr": block(1.0, 0, 2, "rate", refusals=7),
        "borderline_orr": None,
    }
    nsi = {"average": 1.0}
    changed = summary("rrs", block(33.0, 27.0, 40.0), None, nsi, other_judges={"first_token": other})
    write_json(path, changed)
    expected = "Begin with the refusal token (diagnostic), rrs: harmful audio-text 93.0 %, benign 1.0 %."
    assert expected in table.text_table([run])


def test_over_refusal_in_other_modes_stands_below_the_table(run):
    path = run / "eval/rrs/summary.json"
    refused = {
        "audio_text": {"orr": block(4.5, 2, 9, "rate"), "borderline_orr": block(50, 40, 60, "rate")},
        "text_only": {"orr": None, "borderline_orr": None},
        "audio_only": {"orr": block(23.8, 17, 31, "rate"), "borderline_orr": block(77.8, 70, 85, "rate")},
    }
    assert "Refused in other modes" not in table.text_table([run])
    write_json(path, summary("rrs", block(33.0, 27.0, 40.0), None, {"average": 1.0}, orr_by_mode=refused))
    expected = (
        "Refused in other modes, rrs: audio-only benign 23.8 [17.0, 31.0], borderline 77.8 [70.0, 85.0]."
    )
    assert expected in table.text_table([run]).splitlines()


def test_markdown_table(run):
    lines = table.markdown_table([run]).splitlines()
    assert lines[0] == "| " + " | ".join(HEADER) + " |"
    assert lines[1].count("---") == len(HEADER)
    assert lines[3].startswith("| rrs | 33.0 [27.0, 40.0] | 30.0 [25.0, 36.0] | N/A | 4.5 [2.0, 9.0] |")
    assert lines[4] == ""


def test_rates_of_harm_are_called_asr(run):
    path = run / "eval/rrs/summary.json"
    write_json(
        path, summary("rrs", block(5, 1, 9), None, None, judge="llm:default", asr_is="harmful responses")
    )
    assert "| ASR or compliance audio-text |" in table.markdown_table([run])
    (run / "eval/vanilla/summary.json").unlink()
    assert "| ASR audio-text |" in table.markdown_table([run])


def test_helpfulness_stands_in_a_note(run):
    groups = {
        name: {"hs": score}
        for name, score in (("speech", 7.184), ("sound", 6.5), ("music", 6.0), ("mixed", None))
    }
    write_json(
        run / "eval/rrs/air_bench/summary.json",
        {"groups": groups, "hs": None, "judge": "gpt", "unparsed": 2, "empty": 1},
    )
    expected = (
        "AIR-Bench chat, helpfulness, rrs: speech 7.18, sound 6.50, music 6.00, mixed N/A, mean N/A "
        "(judge gpt, 2 unparsed, 1 empty)."
    )
    assert expected in table.text_table([run])


def test_missing_over_rejection_is_na_not_zero(run):
    write_json(run / "eval/rrs/summary.json", summary("rrs", None, None, None))
    cells = table.markdown_table([run]).splitlines()[3].split(" | ")
    assert cells[1] == cells[4] == "N/A"


def test_several_runs_are_told_apart(run, tmp_path):
    other = tmp_path / "other"
    write_json(other / "eval/rrs/summary.json", summary("rrs", block(5, 1, 9), block(2, 1, 3, "rate"), None))
    names = [line.split(" | ")[0] for line in table.markdown_table([run, other]).splitlines()[2:5]]
    assert names == ["| mini-run: vanilla", "| mini-run: rrs", "| other: rrs"]


def test_paste_replaces_only_its_own_table(tmp_path):
    readme = tmp_path / "README.md"
    before = (
        "# T\n<!-- table:a -->\nold\n<!-- /table -->\ntext\n<!-- table:b -->\nkeep\n<!-- /table -->\nend\n"
    )
    readme.write_text(before)
    table.paste(readme, "a", "| new |\n")
    expected = before.replace("old\n", "| new |\n")
    assert readme.read_text() == expected
    table.paste(readme, "a", "| new |\n")
    assert readme.read_text() == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", r"holds <!-- table:a --> 0 times; write it once"),
        ("<!-- table:a -->x<!-- /table --><!-- table:a -->", r"holds <!-- table:a --> 2 times"),
        ("<!-- table:a -->", r"has no <!-- /table --> after it"),
        ("<!-- table:a --> <!-- table:b --> <!-- /table -->", r"has no <!-- /table --> after it"),
    ],
)
def test_paste_without_its_markers(tmp_path, text, message):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(UserError, match=message):
        table.paste(readme, "a", "new")
    assert readme.read_text() == text


def test_paste_into_no_file(tmp_path):
    with pytest.raises(UserError, match=r"README\.md: cannot be read"):
        table.paste(tmp_path / "README.md", "a", "new")


def test_a_run_without_evaluation(tmp_path):
    with pytest.raises(UserError, match=r"holds no eval/NAME/summary\.json; run the evaluate stage"):
        table.text_table([tmp_path])


def test_a_summary_that_lacks_fields(run):
    write_json(run / "eval/rrs/summary.json", {"judge": "phrases", "modes": {}})
    with pytest.raises(UserError, match=r"rrs/summary\.json: has no orr, borderline_orr, nsi"):
        table.text_table([run])


def test_command_line(run, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- table:mini -->\n<!-- /table -->\n")
    command = [sys.executable, "-m", "rrs_jax.report.table"]
    pasted = subprocess.run(
        [*command, str(run), "--paste", str(readme), "--name", "mini"], capture_output=True
    )
    assert pasted.returncode == 0
    assert readme.read_text() == f"a\n<!-- table:mini -->\n{table.markdown_table([run])}<!-- /table -->\n"
    failed = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert failed.stderr.count("\n") == 1
    assert "Traceback" not in failed.stderr


def test_main_prints_the_text_table(run, capsys):
    assert table.main([str(run)]) == 0
    assert capsys.readouterr().out == table.text_table([run])
    assert table.main([str(run), "--markdown"]) == 0
    assert capsys.readouterr().out == table.markdown_table([run])
