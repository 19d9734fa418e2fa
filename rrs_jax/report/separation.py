"""Figure 2 of the paper: representations of harmful and benign questions over the epochs, in the plane and as
numbers.

All epochs of a run are embedded together, so that the panels have common coordinates.
"""

import contextlib
import dataclasses
import json
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from rrs_jax.distributed.machine import cores
from rrs_jax.errors import UserError
from rrs_jax.files import content_hash, read_json, with_sum, write_atomic
from rrs_jax.progress import Progress
from rrs_jax.weights.safetensors_io import load_file

DIMENSIONS = 50  # principal components that t-SNE is given
MOST_POINTS = 3000  # over all epochs; t-SNE takes about a minute on two cores for them
FOLDS = 5
GRID = 1000  # coordinates are whole numbers from 0 to this
VERSION = 3  # of what is kept in figure2.json


@dataclasses.dataclass(frozen=True)
class Recorded:
    """The states that a run recorded.

    Attributes:
      states: by epoch, each float32 (N, D).
      ids, labels, pairs: of the N questions.
    """

    states: dict[int, np.ndarray]
    ids: list[str]
    labels: np.ndarray
    pairs: np.ndarray


@dataclasses.dataclass(frozen=True)
class Figure2:
    """Figure 2 of one run.

    Attributes:
      tsne, pca: by epoch, int (N, 2), from 0 to GRID.
      ids, labels: of the N questions.
      explained: share of the variance in PCA's two directions, 0 to 1.
      numbers: what `separation` returns, by epoch.
    """

    tsne: dict[int, list]
    pca: dict[int, list]
    ids: list[str]
    labels: list[str]
    explained: float
    numbers: dict[int, dict]


def read_recorded(run: Path) -> Recorded | None:
    """Reads RUN/epochs; None where it holds nothing.

    Raises UserError where epochs have different questions.
    """
    states, first = {}, None
    for path in sorted(
        run.glob("epochs/*/representations.safetensors"), key=lambda path: int(path.parent.name)
    ):
        arrays, metadata = load_file(path, f"delete {path.parent.parent} and train again")
        questions = {name: json.loads(metadata[name]) for name in ("ids", "labels", "pairs")}
        if first not in (None, questions):
            raise UserError(
                f"{path}: has other questions than the epochs before; delete {path.parent.parent} and train"
                " again."
            )
        first = questions
        states[int(path.parent.name)] = arrays["states"].astype(np.float32)
        if not np.isfinite(states[int(path.parent.name)]).all():
            raise UserError(f"{path}: holds NaN or infinite numbers; delete it and train again.")
    if not states:
        return None
    return Recorded(states, first["ids"], np.array(first["labels"]), np.array(first["pairs"]))


def separation(states: np.ndarray, harmful: np.ndarray, pairs: np.ndarray) -> dict[str, float | None]:
    """Measures how far harmful and benign questions are apart; `harmful` bool (N,), `states` (N, D).

    Returns silhouette (mean, -1 to 1), probe (accuracy of a linear classifier in percent, cross-validated
    with the questions of a pair on the same side) and distance (`distance_of_means`); None where there are
    too few questions.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import silhouette_score
    from sklearn.model_selection import GroupKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    sizes = harmful.sum(), (~harmful).sum()
    if min(sizes) < 2 or are_alike(states):
        return {"silhouette": None, "probe": None, "distance": None}
    states = _moderate(states)
    folds = min(FOLDS, len(set(pairs)))
    probe = None
    if folds > 1 and min(sizes) >= folds:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        probe = 100 * float(
            np.mean(cross_val_score(classifier, states, harmful, groups=pairs, cv=GroupKFold(folds)))
        )
    return {
        "silhouette": float(silhouette_score(states, harmful)),
        "probe": probe,
        "distance": distance_of_means(states, harmful),
    }


def distance_of_means(states: np.ndarray, harmful: np.ndarray) -> float | None:
    """Returns the distance of the means of harmful and benign questions; bool (N,), `states` (N, D).

    The unit is the root of the mean squared distance of a question from its own mean. None without a spread.
    """
    means = [states[side].mean(0, dtype=np.float64) for side in (harmful, ~harmful)]
    own = np.where(harmful[:, None], *means)
    spread = np.sqrt(np.mean(np.sum((states - own) ** 2, axis=1)))
    return float(np.linalg.norm(means[0] - means[1]) / spread) if spread > 0 else None


def are_alike(states: np.ndarray) -> bool:
    """Returns True where the rows, (N, D), do not differ, or by less than float32 tells apart."""
    moderate = _moderate(states).astype(np.float64)
    return not moderate.std(0).max() > 1e-7 * np.abs(moderate).max()


def _moderate(states: np.ndarray) -> np.ndarray:
    """Returns the states, scaled by a power of two where float32 could not hold sums of their squares."""
    largest = float(np.abs(states).max())
    return states if not largest or 1e-9 < largest < 1e9 else np.ldexp(states, -int(np.log2(largest)))


def make_figure(recorded: Recorded, seed: int = 0) -> Figure2:
    """Embeds the states and measures their separation.

    The numbers are of all harmful and benign questions; of very many questions the panels show the first of
    each label.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    epochs = list(recorded.states)
    shown = _shown(recorded.labels, MOST_POINTS // len(epochs))
    together = _moderate(np.concatenate([states[shown] for states in recorded.states.values()]))
    components = min(DIMENSIONS, *together.shape)
    pca = PCA(components, random_state=seed)
    reduced = pca.fit_transform(together)
    flat = np.pad(reduced[:, :2], ((0, 0), (0, 2 - reduced[:, :2].shape[1])))
    moved = flat
    if len(together) > 6 and not are_alike(reduced):  # t-SNE's program would not survive that
        perplexity = min(30.0, (len(together) - 1) / 3)
        moved = TSNE(2, init="pca", perplexity=perplexity, random_state=seed).fit_transform(reduced)
    harmful, sides = recorded.labels == "harmful", np.isin(recorded.labels, ("harmful", "benign"))
    return Figure2(
        tsne=_on_grid(moved, epochs),
        pca=_on_grid(flat, epochs),
        ids=[recorded.ids[i] for i in shown],
        labels=[str(recorded.labels[i]) for i in shown],
        explained=float(np.nan_to_num(pca.explained_variance_ratio_[:2].sum())),
        numbers={
            epoch: separation(states[sides], harmful[sides], recorded.pairs[sides])
            for epoch, states in recorded.states.items()
        },
    )


def figures(runs: Sequence[Path]) -> dict[Path, Figure2]:
    """Returns the figures of the runs that recorded something; several at a time are made."""
    found = {run: figure for run in runs if (figure := kept_figure(run)) is not None}
    wanted = [run for run in runs if run not in found and read_recorded(run) is not None]
    if wanted:
        progress = Progress(len(wanted), "drawing figure 2", "runs")
        with ThreadPoolExecutor(cores()) as pool, progress:
            for run, figure in zip(wanted, pool.map(keep_figure, wanted), strict=True):
                found[run] = figure
                progress.update(1)
    return found


def kept_figure(run: Path) -> Figure2 | None:
    """Reads RUN/report/figure2.json; None where it is not of what the run recorded."""
    path, recorded = run / "report" / "figure2.json", read_recorded(run)
    if recorded is None or not path.is_file():
        return None
    try:
        values = read_json(path)
    except UserError:
        return None  # a damaged one is drawn again
    if values.pop("key", None) != _key(recorded):
        return None
    for name in ("tsne", "pca", "numbers"):  # JSON makes texts of the epochs
        values[name] = {int(epoch): value for epoch, value in values[name].items()}
    return Figure2(**values)


def keep_figure(run: Path) -> Figure2 | None:
    """Returns the run's figure, which is made and kept where it is missing; None where the run recorded
    nothing."""
    kept, recorded = kept_figure(run), read_recorded(run)
    if kept is not None or recorded is None:
        return kept
    from sklearn import linear_model, manifold  # noqa: F401 (what is limited below has to be loaded by then)
    from threadpoolctl import threadpool_limits

    with threadpool_limits(
        1
    ):  # t-SNE's own threads wait for each other longer than they save on a busy machine
        figure = make_figure(recorded)
    values = {"key": _key(recorded)} | dataclasses.asdict(figure)
    text = json.dumps(with_sum(values), separators=(",", ":"))
    write_atomic(run / "report" / "figure2.json", text)
    return figure


def _key(recorded: Recorded) -> str:
    return content_hash(
        VERSION, *(states.tobytes() for states in recorded.states.values()), recorded.labels.tolist()
    )


@contextlib.contextmanager
def figures_meanwhile(threads: int) -> Iterator[Callable[[Path], None]]:
    """Yields a function that takes a run which is done, whose figure one of the threads then makes and
    keeps.

    Figures that are begun at the end are waited for, the others left to `figures`. An interruption waits for
    none.
    """
    waiting = queue.SimpleQueue()

    def take() -> None:
        while (run := waiting.get()) is not None:
            with contextlib.suppress(UserError):  # which the page then says in the figure's place
                keep_figure(run)

    takers = [threading.Thread(target=take, daemon=True) for _ in range(threads)]
    for thread in takers:
        thread.start()
    yield waiting.put
    while not waiting.empty():
        with contextlib.suppress(queue.Empty):
            waiting.get_nowait()
    for _ in takers:
        waiting.put(None)
    for thread in takers:
        thread.join()


def _shown(labels: np.ndarray, most: int) -> np.ndarray:
    """Returns the places of at most `most` questions, as many of each label."""
    names = sorted(set(labels))
    return np.sort(
        np.concatenate([np.flatnonzero(labels == name)[: max(1, most // len(names))] for name in names])
    )


def _on_grid(points: np.ndarray, epochs: Sequence[int]) -> dict[int, list]:
    """Puts points on one grid for both axes and all epochs."""
    low, high = points.min(0), points.max(0)
    scale = GRID / max(float((high - low).max()), 1e-9)
    whole = np.rint((points - (low + high) / 2) * scale + GRID / 2).astype(int)
    return {epoch: part.tolist() for epoch, part in zip(epochs, np.split(whole, len(epochs)), strict=True)}
