"""Texts of others in what terminals, browsers, spreadsheets and LaTeX open."""

import csv
import io
import re

import pytest

from rrs_jax.data.show import table_1
from rrs_jax.errors import UserError, exit_status, told, visible
from rrs_jax.evaluate.judges.sheet import read_sheet, write_sheet
from rrs_jax.progress import Progress, say
from rrs_jax.report.table import markdown_rows, text_rows
from rrs_jax.web.text import csv_cell, csv_text, markdown_cell

OBEYED = [
    "\x1b[2J\x1b[1;1H", "\x1b]0;title\x07", "\x9b31m", "\b\b\b", "\rdone", "\x7f", "\u202egnp.exe",
    "\u2066x\u2069", "\x1b]8;;http://evil\x1b\\here\x1b]8;;\x1b\\", "\0", "\x85", "\u200fx",
]  # fmt: skip
FORMULAS = [
    "=1+1",
    '=HYPERLINK("http://evil")',
    "+1",
    "-1",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    " =1",
    "-",
    "=cmd|' /C calc'!A0",
]
MARKUP = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a|b", "a\nb\n\n# c", "![x](http://evil/x.png)",
    "[x](javascript:alert(1))", "</td></table>", "&lt;b&gt;", "a\r\nb",
]  # fmt: skip


@pytest.mark.parametrize("text", OBEYED)
def test_a_terminal_gets_no_character_that_it_obeys(text, capsys):
    written = f"rows.jsonl, line 3: id {text!s} is wrong"
    say(written)
    with exit_status():
        raise UserError(written)
    with Progress(1, f"reading {text}") as progress:
        progress.update(1, name=text)
    with exit_status():
        raise ValueError(written)
    print("\n".join(text_rows([["run", "rate"], [text, text]])))
    seen = capsys.readouterr()
    for shown in (seen.err, seen.out):
        assert shown.count("\n") and all(c == "\n" or c == "\t" or c.isprintable() for c in shown), shown
    assert visible(text).encode("ascii", "backslashreplace").decode() in seen.err
    assert visible(visible(text)) == visible(text)


def test_words_of_all_scripts_stay():
    for text in ("déjà vu – 学习 العربية עברית 🙂 e\u0301 zero\u200djoiner\ttab\nline", "a\u2028b"):
        assert told(text) == text


@pytest.mark.parametrize("text", [*MARKUP, *OBEYED])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_every_column_of_a_markdown_table_holds_text_alone(text, place):
    row = ["run", "rate", "category"]
    row[place] = text
    lines = markdown_rows([row, row])
    assert len(lines) == 3
    for line in (lines[0], lines[2]):
        assert line.isprintable() and not re.search(r"[<>]|!\[|\]\(", line)
        assert len(re.findall(r"(?<!\\)\|", line)) == 4
    sets = {"x": [{"label": "harmful", "question": text, "response": text}]}
    table = table_1(sets)
    assert table.count("\n") == 3 and "<" not in table


def test_cells_of_our_own_tables_stay():
    for cell in ("**58.3** 55.1–61.2", "rrs_plus", "–", "+1.2 (paper +0.84)", "llm:default@qwen"):
        assert markdown_cell(cell) == cell


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_of_a_spreadsheet_is_a_formula(tmp_path, text):
    assert not csv_cell(text).lstrip().startswith(("=", "+", "-", "@"))
    assert csv_text(csv_cell(text)) == text and csv_cell("plain 1-2") == "plain 1-2"
    row = {"set": text, "mode": "audio_text", "id": text, "sample": 0, "question": text, "response": text}
    write_sheet(tmp_path / "a.csv", [row])
    content = (tmp_path / "a.csv").read_bytes().decode("utf-8-sig")
    for cells in csv.reader(io.StringIO(content, newline="")):
        assert not any(cell.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells), cells
    (read,) = read_sheet(tmp_path / "a.csv")
    for name in ("id", "response"):  # a spreadsheet's line ends are one
        assert read[name].replace("\n", "\r") == text
