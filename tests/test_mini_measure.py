"""The commands `measure` and `separability` on a small random model, and the probes on planted states."""

import json

import numpy as np
import pytest

from rrs_jax.data.starter import StarterChoice, choose_rows
from rrs_jax.mini import measure, separability
from rrs_jax.testing import write_qwen2_audio

LAYERS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_qwen2_audio(folder, num_hidden_layers=LAYERS)
    return folder


def edits(expected: list[str], found: list[str]) -> int:
    """Levenshtein's distance of two lists of words, by its recursion."""
    row = list(range(len(found) + 1))
    for i, word in enumerate(expected, start=1):
        above, row = row, [i]
        for j, other in enumerate(found, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (word != other)))
    return row[-1]


def words(text: str) -> list[str]:
    return "".join(c.lower() if c.isalnum() or c in "'’-" else " " for c in text).split()


def test_measure_takes_a_folder_and_states_intervals(model, tmp_path, capsys):
    arguments = [f"--model={model}", "--questions=5", f"--out={tmp_path / 'measures.json'}"]
    assert measure.main(arguments) == 0
    found = json.loads((tmp_path / "measures.json").read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert (found["model"], found["questions"], len(found["examples"])) == (str(model), 5, 5)
    benign = [row["question"] for row in choose_rows(StarterChoice("eval")) if row["label"] == "benign"]
    assert [row["question"] for row in found["examples"]] == benign[:5]
    for name, (low, high) in found["ci95"].items():
        assert low <= found[name] <= high, name
    assert found["ci95"].keys() == found.keys() - {"model", "dtype", "questions", "ci95", "examples"}


def test_word_errors_are_edits_over_words(monkeypatch):
    """Of three questions: one right, one with a word of five wrong, one with two of eight left out."""
    questions = ["How do I bake bread?", "How do I fix bikes?", "What is the best way to the sea?"]
    repeats = [questions[0], "How do I fix pikes?", "What is the way to the sea?"[:-5] + "?"]

    class Processor:
        @staticmethod
        def decode(tokens):
            return tokens

    generated = iter([["a b", "c", "d"], repeats, ["a b", "x", "d"]])
    monkeypatch.setattr(measure, "generate", lambda heard, prompts: next(generated))
    scores = {"all": (np.array([1, 2, 3]), np.array([4, 4, 4])), "likelihood": np.array([1.0, 2.0, 3.0])}
    scores["first_five"] = scores["all"]
    monkeypatch.setattr(measure, "_score", lambda heard, clips, answers: scores)
    found = measure.measure(measure.HeardModel(None, Processor, None), questions)
    wrong = sum(edits(words(a), words(b)) for a, b in zip(questions, repeats, strict=True))
    assert wrong == 3 and found["word_errors"] == round(100 * wrong / 18, 1)
    assert found["agreement"] == 50.0 and found["answer_f1"] == round(100 * 2 / 3, 1)
    low, high = found["ci95"]["word_errors"]
    assert low < found["word_errors"] < high


def test_an_interval_is_over_questions_and_not_over_words():
    """Words of a question that are all right or all wrong tell no more than one word of each."""
    right = np.tile([1, 0], 50)
    share, one = measure.share_with_interval(right, np.ones(100))
    many_share, many = measure.share_with_interval(20 * right, np.full(100, 20))
    assert share == many_share == 50.0 and one == many
    half = 1.96 * (0.5 / 10) * 100
    assert abs(one[0] - (50 - half)) < 1.5 and abs(one[1] - (50 + half)) < 1.5


def test_separability_takes_a_folder_and_splits(model, tmp_path):
    out = tmp_path / "shares.json"
    arguments = [f"--model={model}", "--splits=train,eval", "--pairs_per_category=1", f"--out={out}"]
    assert separability.main(arguments) == 0
    found = json.loads(out.read_text())
    assert found["pairs"] == 28
    for kind in ("spoken", "written"):
        for place in ("last_token", "question_mean"):
            shares = found[f"{kind}_{place}"]
            assert list(shares["by_layer"]) == ["3", str(LAYERS)]
            best = shares["best_layer"]
            assert best["right"] == max(shares["by_layer"].values()) == shares["by_layer"][str(best["layer"])]
            low, high = shares["chosen_inside"]["ci95"]
            assert low <= shares["chosen_inside"]["right"] <= high


def test_the_last_layer_is_probed_too():
    assert separability.probed_layers(24) == [3, 6, 9, 12, 15, 18, 21, 24]
    assert separability.probed_layers(28)[-2:] == [27, 28]


def test_a_probe_chosen_inside_finds_its_layer_and_does_not_flatter():
    rng = np.random.default_rng(0)
    harmful, pairs = np.tile([True, False], 100), [f"pair-{i // 2}" for i in range(200)]
    noise = rng.normal(size=(200, 12, 30)).astype(np.float32)
    told = noise.copy()
    told[:, 5] += np.where(harmful, 3.0, -3.0)[:, None] * (np.arange(30) == 4)
    assert separability.chosen_inside(told, harmful, pairs).mean() > 0.95
    best = max(separability.probe_accuracy(noise[:, layer], harmful, pairs) for layer in range(12))
    inside = separability.chosen_inside(noise, harmful, pairs).mean()
    assert best > 0.54 and abs(inside - 0.5) < best - 0.5 + 0.05
    shares = separability.probe_shares(told, harmful, pairs, range(1, 13))
    assert shares["best_layer"]["layer"] == 6
    assert shares["chosen_inside"]["ci95"][0] > 90


def test_a_probe_of_some_pairs_is_asked_others():
    """Two layers tell the first 60 pairs; of the others one tells the opposite, and the other nothing."""
    rng = np.random.default_rng(1)
    harmful, pairs = np.tile([True, False], 100), [f"pair-{i // 2}" for i in range(200)]
    train = np.arange(200) < 120
    signs, features = np.where(harmful, 1.0, -1.0), rng.normal(size=(200, 2, 30))
    features[:, 0, 4] += np.where(train, 4 * signs, -4 * signs)
    features[train, 1, 7] += 2 * signs[train]
    right = separability.told_right(features, harmful, pairs, train, ~train)
    assert right.shape == (80,) and right.mean() < 0.1
    alone = separability.told_right(features[:, 1:], harmful, pairs, train, ~train)
    assert 0.35 < alone.mean() < 0.65
    counts = separability.counts_by_pair(right, pairs[120:])
    assert (
        list(counts) == sorted(set(pairs[120:])) and sum(told for told, _ in counts.values()) == right.sum()
    )
    assert separability.share_over_pairs(counts)["right"] == round(100 * right.mean(), 1)


@pytest.mark.parametrize(
    ("command", "flag", "complaint"),
    [
        (measure, "--questions=421", "argument --questions: is 421, give a whole number from 1 to 420"),
        (measure, "--dtype=int8", "argument --dtype: is 'int8', give one of float32, bfloat16"),
        (separability, "--splits=test", "argument --splits: is ('test',), give one or more of train, eval"),
    ],
)
def test_a_wrong_flag_is_told_with_what_to_give(command, flag, complaint, capsys):
    with pytest.raises(SystemExit):
        command.main([flag])
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("command", [measure, separability])
def test_a_model_that_is_not_there_is_one_sentence(command, capsys):
    assert command.main(["--model=./nowhere"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("model.path: ./nowhere is no folder") and error.count("\n") == 1
