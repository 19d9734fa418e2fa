"""The authors' states: what is read, what is measured where the answer is known, the table and the page."""

import re
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from helpers.authors_files import line_of, write_questions, write_states
from rrs_jax import safety_vector
from rrs_jax.errors import UserError
from rrs_jax.files import read_json
from rrs_jax.report.authors_state_files import DELTA, AuthorsStates, read_states, read_vector
from rrs_jax.report.authors_states import main, measure_apart, measure_delta

PLACES = "park lake farm shop port mill inn zoo pub gym".split()
THINGS = "box jar cup pen map key hat rug".split()
# No two places or things make nearly the same question: at least two of five words differ.
QUESTIONS = [(f"Break {a} {b} {a}s {b}s", f"Mend {a} {b} {a}s {b}s") for a in PLACES for b in THINGS]
PAIRS = [("animal_abuse", f"audio_{i:05d}", *texts) for i, texts in enumerate(QUESTIONS)]
PATHS = [pair[1] for pair in PAIRS]
FEATURES = 24


def random_states(paths=PATHS, shift=0.0, seed=0):
    """Rewrites at random, harmful questions `shift` further along one feature, refused ones elsewhere."""
    rng = np.random.default_rng(seed)
    benign = rng.normal(size=(len(paths), FEATURES)).astype(np.float32)
    harmful = (benign + 0.1 * rng.normal(size=benign.shape)).astype(np.float32)
    harmful[:, 3] += np.float32(shift)
    refusal = (harmful + rng.normal(size=FEATURES)).astype(np.float32)
    kinds = {"harmful": harmful, "refusal": refusal, "benign": benign}
    return {kind: dict(zip(paths, array, strict=True)) for kind, array in kinds.items()}


@pytest.fixture
def clone(tmp_path):
    return write_questions(tmp_path / "clone", PAIRS, spoken=())


def loaded(states, **changes):
    arrays = {kind: np.stack(list(members.values())) for kind, members in states.items()}
    count = len(arrays["harmful"])
    facts = dict(
        paths=PATHS[:count], categories=["c"] * count, rows=np.ones(count, int), groups=np.arange(count)
    )
    return AuthorsStates(**facts | dict(delta=None, remarks=[]) | arrays | changes)


# Reading


def test_states_are_read_in_the_questions_order(clone):
    states = random_states()
    write_states(clone, states, np.arange(FEATURES) / 8)
    found = read_states(clone)
    assert found.paths == PATHS and found.remarks == []
    for kind in ("harmful", "refusal", "benign"):
        np.testing.assert_array_equal(getattr(found, kind), np.stack(list(states[kind].values())))
        assert getattr(found, kind).dtype == np.float32
    np.testing.assert_array_equal(found.delta, np.arange(FEATURES, dtype=np.float32) / 8)
    assert set(found.categories) == {"animal_abuse"} and found.rows.tolist() == [1] * len(PATHS)
    assert len(set(found.groups.tolist())) == len(PATHS)


def test_what_is_missing_or_strange_is_left_out_and_said(tmp_path):
    pairs = [*PAIRS[:6], ("self_harm", PATHS[2], *QUESTIONS[2])]  # one path in two rows
    clone = write_questions(tmp_path / "clone", pairs, spoken=())
    write_states(clone, random_states(PATHS[:9]), None)
    (clone / "omni_audio_harmful_rp" / "with_prompt" / f"{PATHS[1]}.csv").unlink()
    (clone / "omni_audio_benign_rp" / f"B_{PATHS[4]}.csv").unlink()
    found = read_states(clone)
    assert found.paths == [PATHS[i] for i in (0, 2, 3, 5)]
    assert found.rows.tolist() == [1, 2, 1, 1] and set(found.categories) == {"animal_abuse"}
    assert found.remarks == [
        f"2 of 6 paths lack a state and are left out: {PATHS[1]}, {PATHS[4]}",
        f"9 files of states belong to no question and are not read, B_{PATHS[6]}.csv first",
        f"{DELTA} is not there, so nothing is compared with the authors' ΔV",
    ]


def test_near_questions_are_one_group(tmp_path):
    near = (PAIRS[0][2].upper() + "!", "An other question of five words")
    clone = write_questions(tmp_path / "clone", [*PAIRS[:4], ("c", "audio_9", *near)], spoken=())
    write_states(clone, random_states([*PATHS[:4], "audio_9"]), None)
    groups = read_states(clone).groups
    assert groups[4] == groups[0] and len(set(groups.tolist())) == 4


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"1.0,2.0\n3.0,4.0\n", "has 2 lines, not one"),
        (b"1.0,two,3.0\n", "entry 2 is 'two', no number"),
        (b"1.0,2.0,\n", "entry 3 is '', no number"),
        (b"1.0;2.0;3.0", "entry 1 is '1.0;2.0;3.0', no number"),
        (b"1.0,nan,3.0", "entry 2 is nan, not finite"),
        (b"1.0,2.0,1e60", "entry 3 is 1e+60, not finite"),
        (b"\xff\xfe\x00", "is no text"),
        (b"1.0," * (1 << 19), "has 2097152 bytes, more than the 1048576 of any state"),
        (line_of(np.ones(5)).encode(), "has 5 numbers where others have 24"),
    ],
)
def test_files_at_fault_are_said(clone, content, sentence):
    write_states(clone, random_states(), None)
    for name in (PATHS[7], PATHS[8]):
        (clone / "omni_audio_harmful_rp" / f"{name}.csv").write_bytes(content)
    with pytest.raises(UserError, match="2 files of states to fetch again or delete") as error:
        read_states(clone)
    assert f"{PATHS[7]}.csv {sentence}" in str(error.value)


@pytest.mark.parametrize("content", ["1.5,-2.0,3e2", "1.5,-2.0,3e2\r\n", "\ufeff 1.5, -2.0 ,300\n\n"])
def test_one_line_however_it_ends(tmp_path, content):
    (tmp_path / "a.csv").write_text(content, newline="")
    np.testing.assert_array_equal(read_vector(tmp_path / "a.csv"), np.array([1.5, -2, 300], np.float32))


def test_a_clone_without_states_is_said(clone):
    with pytest.raises(
        UserError, match="no question has its states in omni_audio_harmful_rp, .*; give a whole"
    ):
        read_states(clone)


# Measures


def test_questions_that_differ_everywhere_are_told_apart():
    states = loaded(random_states(shift=30.0))
    found = measure_apart(states.harmful, states.benign, states)
    assert found.probe.rate == found.in_order.rate == 100 and found.probe.queries == len(PATHS)
    assert found.by_category == {"c": (len(PATHS), 100, 100)}
    every = np.concatenate([states.harmful, states.benign])
    means = states.harmful.mean(0), states.benign.mean(0)
    own = np.concatenate([states.harmful - means[0], states.benign - means[1]])
    spread = np.sqrt((own**2).sum() / len(every))
    assert found.distance == pytest.approx(np.linalg.norm(means[0] - means[1]) / spread, rel=1e-5)


def test_pairs_may_be_in_order_where_no_line_parts_all():
    """A question is 3 from its rewrite along a feature in which the pairs are 100 apart."""
    states = random_states(shift=3.0)
    far = 50 * np.random.default_rng(1).normal(size=len(PATHS)).astype(np.float32)
    for kind in ("harmful", "benign"):
        for vector, distance in zip(states[kind].values(), far, strict=True):
            vector[:] = np.where(np.arange(FEATURES) == 3, vector + distance, 0)
    states = loaded(states)
    found = measure_apart(states.harmful, states.benign, states)
    assert found.in_order.rate == 100 and found.probe.rate < 65


def test_noise_is_not_told_apart():
    states = loaded(random_states(), harmful=np.random.default_rng(5).normal(size=(len(PATHS), FEATURES)))
    found = measure_apart(states.harmful, states.benign, states)
    assert 35 < found.probe.rate < 65 and found.probe.ci95[0] < 50 < found.probe.ci95[1]


def test_no_probe_has_seen_a_question_that_is_nearly_the_same():
    """A feature of its own tells each text's two states apart: who has seen the text is always right."""
    own = np.repeat(np.eye(FEATURES, dtype=np.float32), 3, axis=0)[:60]
    states = loaded({kind: dict(zip(PATHS, own, strict=False)) for kind in ("harmful", "refusal", "benign")})
    by_text, by_path = replace(states, groups=np.arange(60) // 3), states
    assert measure_apart(own, -own, by_path).probe.rate == 100
    seen = measure_apart(own, -own, by_text)
    assert seen.probe.rate < 60 and seen.probe.queries == 20


def test_delta_is_that_of_the_equations():
    """Beside the authors' rule: features of which the head's row raises the refusal token's logit."""
    states = loaded(random_states())
    head_row = np.random.default_rng(2).normal(size=FEATURES).astype(np.float32)
    vector = safety_vector(states.refusal, states.benign, head_row, "positive")
    found = measure_delta(replace(states, delta=np.asarray(vector.vector)))
    assert found.kept == vector.selected.sum() == round(vector.positive_share * FEATURES)
    assert found.norm == pytest.approx(np.linalg.norm(vector.delta_mean), rel=1e-5)
    assert found.their_norm == pytest.approx(found.kept_norm, rel=1e-5)
    assert found.kept_norm == pytest.approx(np.linalg.norm(vector.vector), rel=1e-5)
    assert found.cosine == pytest.approx(1, abs=1e-6) and found.difference < 1e-5
    assert found.positive == pytest.approx(100 * (vector.delta_mean > 0).mean())
    assert measure_delta(states).kept is None and measure_delta(states).norm == found.norm


def test_delta_by_path_and_by_row():
    states = loaded(random_states(), rows=np.r_[np.full(20, 3), np.ones(len(PATHS) - 20)])
    twice = np.repeat(np.arange(len(PATHS)), states.rows.astype(int))
    theirs = states.refusal[twice].mean(0) - states.benign[twice].mean(0)
    found = measure_delta(replace(states, delta=theirs))
    assert found.difference_by_row < 1e-5 < 1e-3 < found.difference
    off = measure_delta(replace(states, delta=theirs * 1.25))
    assert off.difference_by_row == pytest.approx(0.25, rel=1e-4) and off.their_norm > found.their_norm


def test_signs_that_hang_on_single_questions_are_counted():
    """Feature 0 goes up for every second question and down for the others, the rest up for all."""
    states = loaded(random_states())
    refusal = states.benign + 5
    refusal[::2, 0] -= 10
    found = measure_delta(replace(states, refusal=refusal))
    assert found.sign_stable == pytest.approx(100 * (FEATURES - 1) / FEATURES)
    with pytest.raises(UserError, match="is 0 at every feature, or the states do not change there"):
        measure_delta(replace(states, refusal=states.benign, delta=np.ones(FEATURES, np.float32)))


# The command


def test_the_command_prints_a_table_and_writes_a_page(clone, tmp_path, capsys):
    states = random_states(shift=30.0)
    arrays = loaded(states)
    vector = safety_vector(arrays.refusal, arrays.benign, np.ones(FEATURES, np.float32), "positive")
    write_states(clone, states, np.asarray(vector.vector))
    out = tmp_path / "out"
    assert main([str(clone), f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    facts = dict(
        re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in printed.splitlines() if "  " in line
    )
    assert facts["questions with states, every path once"] == "80"
    assert facts["under t: told apart by a linear probe"].startswith("100.0 % (9")
    kept = int(vector.selected.sum())
    assert facts["features that the authors keep, which raise the refusal token's logit"] == (
        f"{kept} ({100 * kept / FEATURES:.1f} %); top_m=51 keeps 12"
    )
    assert re.split(r"\s{2,}", facts["animal_abuse"]) == ["80", "100.0", "100.0"]
    assert str(out / "index.html") in printed
    page = (out / "index.html").read_text()
    drawn = re.findall(r'class="points (\w+)" d="([^"]*)"', page)
    assert [(label, path.count("M")) for label, path in drawn] == [("benign", 80), ("harmful", 80)] * 2
    numbers = read_json(out / "numbers.json")
    assert numbers["apart"]["under t"]["probe"]["rate"] == 100 and numbers["delta"]["kept"] == kept
    labels = np.repeat([1, 0], 80)
    expected = silhouette_score(np.concatenate([arrays.harmful, arrays.benign]), labels)
    assert numbers["figure2"]["silhouette"] == pytest.approx(expected)
    assert numbers["figure2"]["distance"] == numbers["apart"]["under t"]["distance"]


def test_without_the_authors_delta_the_page_says_so(clone, tmp_path, capsys):
    write_states(clone, random_states(), None)
    assert main([str(clone), f"--out={tmp_path / 'out'}"]) == 0
    said = capsys.readouterr()
    assert f"{clone}: {DELTA} is not there" in said.err and "the authors keep" not in said.out
    assert "authors&#x27; ΔV" in (tmp_path / "out" / "index.html").read_text()


def test_mistakes_end_with_a_sentence(clone, tmp_path, capsys):
    assert main([str(tmp_path / "none")]) == 2
    assert "none: has no data/harmful.json" in capsys.readouterr().err
    assert main([str(clone)]) == 2
    assert "no question has its states" in capsys.readouterr().err
    one = write_questions(tmp_path / "one", PAIRS[:1], spoken=())
    write_states(one, random_states(PATHS[:1]), None)
    assert main([str(one)]) == 2
    assert "all questions are nearly the same" in capsys.readouterr().err
