"""Files of rows: quotation marks that swallow nothing, columns of questions, bad rows listed or left out."""

import csv
import io
import json
import re

import numpy as np
import pytest

from rrs_jax.data.bad_rows import BadRow
from rrs_jax.data.csv_rows import csv_rows
from rrs_jax.data.manifest import load_manifest
from rrs_jax.data.tables import is_question_column, read_questions, read_rows, read_table
from rrs_jax.errors import UserError
from rrs_jax.evaluate.question_sets import read_question_sets


def table(rows: int, columns: int = 2) -> list[str]:
    """Lines of a CSV file without quotation marks, the header first."""
    header = ",".join(["prompt", "category", *(f"more{n}" for n in range(columns - 2))][:columns])
    return [header] + [
        ",".join([f"How do I open jar number {n}?", "x", *["y"] * 9][:columns]) for n in range(rows)
    ]


STRAY = {
    "that begins and never ends": lambda text: '"' + text,
    "around one word": lambda text: '"How" ' + text,
    "within the text": lambda text: text.replace("jar", '5" jar'),
    "at the end": lambda text: text.replace("?", '?"'),
    "around a word within": lambda text: text.replace("jar", '"jar"'),
    "in the second column": lambda text: text.replace(",x", ',"x'),
    "doubled at the start": lambda text: '""' + text,
    "three at the start": lambda text: '"""' + text,
}


@pytest.mark.parametrize("kind", STRAY)
@pytest.mark.parametrize("place", [1, 17, 40])
@pytest.mark.parametrize("columns", [2, 3])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_stray_quotation_mark_never_swallows_a_row(tmp_path, kind, place, columns, end):
    lines = table(40, columns)
    lines[place] = STRAY[kind](lines[place])
    path = tmp_path / "or-bench.csv"
    path.write_bytes((end.join(lines) + end).encode())
    others = {line.split(",")[0] for number, line in enumerate(lines) if number not in (0, place)}
    for read in (
        lambda skip: read_questions(path, skip),
        lambda skip: read_question_sets([f"or_bench:{path}"], skip),
    ):
        try:
            assert len(read(False)) == 40
        except UserError as refused:
            assert f"line {place + 1}: has a" in str(refused) and "quotation mark" in str(refused)
            kept = [row if isinstance(row, str) else row["question"] for row in read(True)]
            assert set(kept) == others and len(kept) == 39


@pytest.mark.parametrize("seed", range(30))
def test_several_stray_marks_lose_no_row_unsaid(tmp_path, capsys, seed):
    rng = np.random.default_rng(seed)
    lines = table(30)
    for place in rng.choice(np.arange(1, 31), int(rng.integers(2, 5)), replace=False):
        lines[place] = STRAY[list(STRAY)[rng.integers(len(STRAY))]](lines[place])
    path = tmp_path / "or-bench.csv"
    path.write_text("\n".join(lines) + "\n")
    try:
        found = len(read_questions(path))
    except UserError as refused:
        assert "line " in str(refused) and "quotation mark" in str(refused)
        kept, said = read_questions(path, skip_bad=True), capsys.readouterr().err
        left_out = int(re.search(r"(\d+) of \d+ rows are left out", said)[1])
        assert len(kept) + left_out == 30 or "are one row, by the quotation mark in line" in said
        return
    assert found == 30 or "are one row, by the quotation mark in line" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_csv_writers_write_is_read_as_python_reads_it(seed, delimiter):
    rng = np.random.default_rng(seed)
    letters = ["a", "b", " ", '"', ",", "\n", "'", "ä", "😀", "\u2028", ";", "\r\n", "\t"]
    fields = [["".join(rng.choice(letters, rng.integers(1, 12))) + "z" for _ in range(3)] for _ in range(12)]
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter).writerows([["one", "two", "three"], *fields])
    header, rows, _ = csv_rows("x.csv", stream.getvalue())
    assert header == ["one", "two", "three"]
    assert [[*row.values()] for _, row in rows] == fields


def test_a_long_text_is_no_fault(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f'prompt,category\n"{"word, " * 60_000}",x\nWhy?,y\n')
    assert len(read_questions(path)) == 2 and csv.field_size_limit() == 131_072


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("prompt,category\na,b,c\n", "line 2: has 3 fields where the header has 2"),
        ("prompt,prompt\na,b\n", "has the column prompt twice"),
        ('"prompt,category\na,b\n', "line 1: has a quotation mark that nothing closes"),
    ],
)
def test_other_faults_of_tables(tmp_path, text, sentence):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_questions(path)


@pytest.mark.parametrize(("text", "rows"), [
    ("prompt,category\na,b\n\n , \nc,d\n", 2), ("prompt,category\ra,b\rc,d\r", 2),
    ("prompt,category,\na,b,\n", 1), ("prompt;category\na, then;b\n", 1), ("prompt,category\na\n", 1),
    ("\ufeffprompt,category\na,b", 1),
])  # fmt: skip
def test_forms_that_spreadsheets_save(tmp_path, text, rows):
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode())
    read = list(read_table(path))
    assert len(read) == rows and {"prompt", "category"} <= set(read[0][1])


@pytest.mark.parametrize("name", [
    "question", "Question", "prompt", "Goal", "forbidden_prompt", "redteam_query", "jailbreak_query",
    "Behavior", "benign_prompt", "userPrompt", "instruction", "Forbidden Question", "text", "turns",
    "prompts", "harmful-goal",
])  # fmt: skip
def test_columns_of_questions(tmp_path, name):
    assert is_question_column(name)
    path = tmp_path / "a.csv"
    stream = io.StringIO()
    csv.writer(stream).writerows([["category", name, "source"], ["x", "Why so?", "s"], ["y", "7", "s"]])
    path.write_text(stream.getvalue())
    assert read_questions(path) == ["Why so?", "7"]
    (tmp_path / "a.jsonl").write_text(json.dumps({"category": "x", name: ["One?", "Two?"]}) + "\n")
    assert read_questions(tmp_path / "a.jsonl") == ["One?", "Two?"]


@pytest.mark.parametrize(
    "name", ["category", "prompt_type", "query_id", "source", "Target", "context", "type", "id"]
)
def test_columns_of_other_things(name):
    assert not is_question_column(name)


def test_conversations_are_excluded_by_their_questions_and_rows_without_one_are_counted(tmp_path, capsys):
    turns = [{"role": "user", "content": "<audio>Why so?"}, {"role": "assistant", "content": "Because."}]
    rows = [
        {"messages": turns},
        {"category": "x"},
        {"question": None},
        {"conversations": [{"from": "human", "value": "How?"}]},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_questions(tmp_path / "a.jsonl") == ["Why so?", "How?"]
    assert "2 of 4 rows have no question (line 2, line 3)" in capsys.readouterr().err


BAD_LINES = (
    "{",
    "[1]",
    '"text"',
    '{"question": "Half \\ud83d?", "label": "benign"}',
    "3" * 5_000,
    "[" * 100_000,
)


@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_rows_are_an_error_or_left_out_counted_and_listed(tmp_path, capsys, line):
    good = [json.dumps({"id": str(n), "question": f"Why {n}?", "label": "benign"}) for n in range(3)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([good[0], line, *good[1:]]) + "\n")
    readers = {
        "manifest": lambda **options: load_manifest(path, need_audio=False, **options),
        "set": lambda **options: read_question_sets([f"jsonl:{path}"], **options),
        "exclude": lambda **options: read_questions(path, **options),
    }
    for read in readers.values():
        with pytest.raises(UserError, match=r"a.jsonl, line 2: "):
            read()
        assert len(read(skip_bad=True)) == 3
        said = capsys.readouterr().err
        assert "1 of 4 rows are left out (data.bad_rows=skip):" in said and "line 2: " in said
    assert [isinstance(row, BadRow) for _, row in read_rows(path)] == [False, True, False, False]


def test_a_file_of_bad_rows_alone_is_an_error_whatever_is_asked(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("{\n[\n")
    for read in (load_manifest, lambda path, skip_bad: read_question_sets([f"jsonl:{path}"], skip_bad)):
        with pytest.raises(UserError, match="holds no"):
            read(path, skip_bad=True)


def test_fifty_faults_are_listed_and_the_others_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("{\n" * 53)
    with pytest.raises(UserError) as refused:
        load_manifest(path)
    lines = str(refused.value).splitlines()
    assert lines[0].endswith("53 faults to mend:") and len(lines) == 52 and lines[-1] == "  and 3 more"


def test_figstep_numbers_that_are_none_are_faults(tmp_path):
    path = tmp_path / "safebench.csv"
    path.write_text("category_id,task_id,category_name,question\n1,x,Theft,Why?\n2,3,Theft,How?\n")
    with pytest.raises(UserError, match="line 2: task_id is no whole number"):
        read_question_sets([f"figstep:{path}"])
    assert [row["id"] for row in read_question_sets([f"figstep:{path}"], skip_bad=True)] == ["figstep-02-03"]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "json", "tsv"])
def test_published_sets_in_other_files_than_csv(tmp_path, suffix):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"prompt": ["How do I kill time?"], "type": ["homonyms"], "label": ["safe"]})
    path = tmp_path / f"xstest.{suffix}"
    if suffix == "parquet":
        frame.to_parquet(path)
    elif suffix == "tsv":
        frame.to_csv(path, sep="\t", index=False)
    else:
        frame.to_json(path, orient="records", lines=suffix == "jsonl")
    (row,) = read_question_sets([f"xstest:{path}"])
    assert (row["label"], row["category"], row["question"]) == (
        "borderline",
        "homonyms",
        "How do I kill time?",
    )
