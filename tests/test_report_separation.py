"""Figure 2 and its numbers against their definitions; when it is made, and in how many threads."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import scipy.spatial.distance

from helpers.report_runs import write_recorded, write_run
from rrs_jax.errors import UserError
from rrs_jax.files import read_jsonl
from rrs_jax.report import separation
from rrs_jax.report.figures import ALIKE, panels
from rrs_jax.weights.safetensors_io import load_file, save_file


def clusters(distance: float, pairs: int = 30, width: int = 12):
    rng = np.random.default_rng(3)
    states = rng.normal(size=(2 * pairs, width)).astype(np.float32)
    harmful = np.arange(2 * pairs) % 2 == 0
    states[harmful, 0] += distance
    return states, harmful, np.repeat(np.arange(pairs), 2)


@pytest.mark.parametrize("distance", [0.0, 2.0, 8.0])
def test_separation_against_its_definitions(distance):
    states, harmful, pairs = clusters(distance)
    numbers = separation.separation(states, harmful, pairs)
    apart = scipy.spatial.distance.cdist(states.astype(np.float64), states.astype(np.float64))
    scores = []
    for i, side in enumerate(harmful):
        own = apart[i, (harmful == side) & (np.arange(len(harmful)) != i)].mean()
        other = apart[i, harmful != side].mean()
        scores.append((other - own) / max(own, other))
    assert numbers["silhouette"] == pytest.approx(np.mean(scores), abs=1e-5)
    means = states[harmful].mean(0), states[~harmful].mean(0)
    squares = [
        np.sum((row - means[0 if side else 1]) ** 2) for row, side in zip(states, harmful, strict=True)
    ]
    assert numbers["distance"] == pytest.approx(
        np.linalg.norm(means[0] - means[1]) / np.sqrt(np.mean(squares)), rel=1e-4
    )
    low, high = {0.0: (30, 70), 2.0: (70, 95), 8.0: (95, 100)}[distance]
    assert low <= numbers["probe"] <= high


def test_the_probe_keeps_pairs_together():
    """Every question stands there twice. Split anywhere, four twins of five are learnt from and give the
    label away; pair by pair nothing does."""
    states, harmful, pairs = clusters(0.0, pairs=40, width=200)
    twice = np.concatenate([states, states])
    numbers = separation.separation(twice, np.tile(harmful, 2), np.tile(pairs, 2))
    assert numbers["probe"] < 70
    assert (
        separation.separation(twice, np.tile(harmful, 2), np.random.default_rng(0).permutation(160))["probe"]
        > 80
    )


def test_epochs_have_common_coordinates(tmp_path):
    """A state that is the same in two epochs has the same place in both; the plane of PCA is that of numpy's
    SVD."""
    rng = np.random.default_rng(0)
    states = rng.normal(size=(24, 9)).astype(np.float32) * np.arange(9, 0, -1)
    moved = states.copy()
    moved[12:] += 5
    labels, pairs = np.array(["harmful", "benign"] * 12), np.arange(24) // 2
    recorded = separation.Recorded({0: states, 4: moved}, [str(i) for i in range(24)], labels, pairs)
    figure = separation.make_figure(recorded)
    assert figure.pca[0][:12] == figure.pca[4][:12] and figure.pca[0][12:] != figure.pca[4][12:]
    together = np.concatenate([states, moved]).astype(np.float64)
    together -= together.mean(0)
    plane = together @ np.linalg.svd(together, full_matrices=False)[2][:2].T
    found = np.array(figure.pca[0] + figure.pca[4], float)
    for axis in (0, 1):
        assert abs(np.corrcoef(found[:, axis], plane[:, axis])[0, 1]) > 0.9999
    spans = np.ptp(found, axis=0) / np.ptp(plane, axis=0)
    assert spans[0] == pytest.approx(spans[1], rel=0.01)  # one scale for both directions
    assert {*figure.tsne} == {0, 4} and np.array(figure.tsne[0]).shape == (24, 2)


def degenerate(kind: str) -> np.ndarray:
    states = clusters(4.0)[0]
    return {
        "alike": np.ones_like(states),
        "zero": np.zeros_like(states),
        "alike but for rounding": np.ones_like(states) + states * np.float32(1e-9),
        "huge": states * np.float32(1e30),
        "largest": np.where(states > 0, np.float32(3e38), np.float32(-3e38)),
        "one huge": np.where(np.arange(len(states))[:, None] == 7, np.float32(1e30), states),
        "tiny": states * np.float32(1e-35),
        "two points": np.repeat(np.eye(2, states.shape[1], dtype=np.float32), len(states) // 2, 0),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["alike", "zero", "alike but for rounding", "huge", "largest", "one huge", "tiny", "two points"]
)
def test_degenerate_states_are_drawn_as_far_as_they_can_be(kind):
    """t-SNE of points without spread would end the process by a signal."""
    states, harmful, pairs = degenerate(kind), *clusters(4.0)[1:]
    labels = np.where(harmful, "harmful", "benign")
    with np.errstate(all="raise", under="ignore"):
        recorded = separation.Recorded({0: states, 1: states}, [str(i) for i in pairs], labels, pairs)
    figure = separation.make_figure(recorded)
    drawn = np.array([*figure.tsne.values(), *figure.pca.values()])
    assert drawn.min() >= 0 and drawn.max() <= separation.GRID and 0 <= figure.explained <= 1 + 1e-6
    alike = kind in ("alike", "zero", "alike but for rounding")
    assert (np.ptp(drawn) == 0) == alike == (ALIKE in panels(figure, "rrs"))
    for value in figure.numbers[0].values():
        assert value is None or np.isfinite(value)
    if kind in ("huge", "tiny"):  # scale changes nothing
        usual = separation.separation(clusters(4.0)[0], harmful, pairs)
        assert figure.numbers[0] == pytest.approx(usual, rel=1e-3)


def test_recorded_states_that_are_not_finite_are_named(tmp_path):
    names = ("id", "label", "pair_id", "category")
    rows = [dict.fromkeys(names, f"{i}") | {"label": "benign"} for i in range(8)]
    write_recorded(tmp_path, rows, [0, 1], 1, np.random.default_rng(0))
    path = tmp_path / "epochs" / "1" / "representations.safetensors"
    arrays, metadata = load_file(path)
    arrays["states"][3, 2] = np.inf
    save_file(path, arrays, metadata)
    with pytest.raises(
        UserError, match=r"epochs/1/representations\.safetensors: holds NaN or infinite numbers"
    ):
        separation.read_recorded(tmp_path)


def test_figure_2_is_made_again_only_for_other_states(tmp_path, capsys):
    folder = write_run(tmp_path / "run", pairs=4, evaluated=())
    first = separation.figures([folder])[folder]
    kept = folder / "report" / "figure2.json"
    before = kept.stat().st_mtime_ns
    capsys.readouterr()
    assert separation.figures([folder])[folder] == first and kept.stat().st_mtime_ns == before
    assert capsys.readouterr().err == ""  # no progress of nothing
    rows = read_jsonl(folder / "data" / "eval" / "manifest.jsonl")
    write_recorded(folder, rows, (4,), 4, np.random.default_rng(9))
    assert separation.figures([folder])[folder] != first and kept.stat().st_mtime_ns != before


THREADS = """
import sys
from pathlib import Path
from threadpoolctl import threadpool_info
from rrs_jax.errors import UserError
from rrs_jax.report import separation

def make_figure(recorded):
    print(sorted({(library["user_api"], library["num_threads"]) for library in threadpool_info()}))
    raise UserError("seen")

separation.make_figure = make_figure
try:
    separation.figures([Path(sys.argv[1])])
except UserError:
    pass
"""


def test_a_figure_has_one_thread_also_where_it_is_a_programs_first(tmp_path):
    """Libraries that are loaded after the limit is set do not heed it."""
    folder = write_run(tmp_path / "run", pairs=4, evaluated=())
    counts = {"OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "3"}
    done = subprocess.run(
        [sys.executable, "-c", THREADS, str(folder)], env=os.environ | counts, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[('blas', 1), ('openmp', 1)]", done.stdout + done.stderr


def test_figures_are_made_while_others_run(tmp_path, monkeypatch):
    """A figure that waits at the end is left to the pages, one that is begun is waited for; a fault is none
    of the sweep's."""
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()
    made = []

    def keep(run):
        begun.set()
        go_on.wait(60)
        made.append(run)
        if run == "bad":
            raise UserError("no figure")
        if run == "good":
            done.set()

    monkeypatch.setattr(separation, "keep_figure", keep)
    with separation.figures_meanwhile(1) as make:
        make("bad")
        make("waiting")
        assert begun.wait(60)
        threading.Timer(0.2, go_on.set).start()
    assert made == ["bad"]
    with separation.figures_meanwhile(1) as make:
        make("bad")
        make("good")
        assert done.wait(60)
