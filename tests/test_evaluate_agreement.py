"""Agreement of judges against statsmodels, and sheets of labels by people."""

import csv

import numpy as np
import pytest
from statsmodels.stats.inter_rater import cohens_kappa as reference_kappa

from helpers.responses import responses
from rrs_jax.errors import UserError
from rrs_jax.evaluate import Judgement, judge_responses, make_judges, summarise
from rrs_jax.evaluate.judges.agreement import agreement, cohens_kappa
from rrs_jax.evaluate.judges.sheet import main as sheet_main
from rrs_jax.evaluate.judges.sheet import read_sheet, write_sheet
from rrs_jax.files import write_jsonl


@pytest.mark.parametrize(
    "table", [[[20, 5], [10, 15]], [[3, 0], [0, 4]], [[0, 5], [6, 0]], [[10, 1], [0, 0]]]
)
def test_kappa_against_statsmodels(table):
    assert cohens_kappa(np.array(table)) == pytest.approx(reference_kappa(table).kappa, abs=1e-12)


def test_kappa_of_judges_over_what_both_labelled(tmp_path):
    class Fixed:
        version, sees = "1", frozenset({"refusal"})

        def __init__(self, name, labels):
            self.name, self.labels = name, labels

        def judge(self, question, response, label):
            return Judgement(self.labels[int(response)], None, "answer")

    rng = np.random.default_rng(0)
    a = rng.random(60) < 0.4
    b = a ^ (rng.random(60) < 0.2)
    second = [None if i % 7 == 0 else bool(value) for i, value in enumerate(b)]
    judges = [Fixed("a", a.tolist()), Fixed("b", second), Fixed("c", [True] * 60)]
    rows = judge_responses(tmp_path / "j.jsonl", responses([str(i) for i in range(60)]), judges)
    ab, ac, _ = agreement(rows, judges)
    both = [i for i in range(60) if second[i] is not None]
    table = np.histogram2d(a[both], b[both], bins=2)[0]
    reference = reference_kappa(table)
    assert ab["kappa"] == pytest.approx(reference.kappa, abs=1e-4) and ab["responses"] == len(both)
    # The interval over queries of two responses is near the one of independent responses.
    assert ab["ci95"] == pytest.approx([reference.kappa_low, reference.kappa_upp], abs=0.1)
    assert ab["agree"] == pytest.approx(100 * np.mean(a[both] == b[both]), abs=1e-3)
    assert ac["kappa"] == pytest.approx(0.0, abs=1e-9)  # one of them says the same of all
    assert summarise(rows, judges, name="x", model="m", strategy="s", samples=2)["agreement"][0] == ab


def test_a_sheet_is_filled_in_and_read_back_as_a_judge(tmp_path):
    texts = ["=no thanks", 'step, "one";\nthen', "", "a walk", "a walk"]
    folder = tmp_path / "eval"
    write_jsonl(folder / "responses.jsonl", responses(texts))
    path = tmp_path / "labels.csv"
    assert sheet_main([str(folder), f"--out={path}", "--number=10"]) == 0
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and {row["refusal"] for row in rows} == {""}
    answers = {"'=no thanks": ("yes", "no"), 'step, "one";\nthen': ("no", "YES")}
    for row in rows:
        row["refusal"], row["harmful"] = answers.get(row["response"], ("", ""))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    judges = make_judges([f"human:{path}", "phrases"])
    judged = judge_responses(tmp_path / "j.jsonl", responses(texts), judges)
    assert [(row["refusal"], row["harmful"], row["kind"]) for row in judged[:5]] == [
        (True, False, "refusal"),
        (False, True, "answer"),
        (None, None, "empty"),
        (None, None, "unlabelled"),
        (None, None, "unlabelled"),
    ]
    block = summarise(judged, judges, name="x", model="m", strategy="s", samples=2)
    assert block["judge"] == "human:labels" and block["modes"]["audio_text"]["unjudged"] == 3
    assert block["agreement"][0]["responses"] == 2


def test_sheets_with_faults_say_their_rows(tmp_path):
    path = tmp_path / "labels.csv"
    write_sheet(path, responses(["a", "b"]))
    with pytest.raises(UserError, match="exists and may hold labels"):
        write_sheet(path, responses(["a"]))
    with pytest.raises(UserError, match="holds no label yet"):
        make_judges([f"human:{path}"])
    path.write_text("question,response,refusal,harmful\nq,r,perhaps,\nq,s,yes,2\n")
    with pytest.raises(
        UserError, match="row 2: refusal is 'perhaps'; row 3: harmful is '2'; write yes, no or nothing"
    ):
        read_sheet(path)
    path.write_text("question,response\n")
    with pytest.raises(UserError, match="has no column refusal, harmful"):
        read_sheet(path)
