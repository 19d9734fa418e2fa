"""The authors' states of Qwen2.5-Omni-7B, read from a clone of their repository `YangHao97/RRS`.

    FOLDER/omni_audio_harmful_rp/PATH.csv               a harmful question under the prompt t
    FOLDER/omni_audio_harmful_rp/with_prompt/PATH.csv   the same under the refusal prompt
    FOLDER/omni_audio_benign_rp/B_PATH.csv              its rewrite under t
    FOLDER/omni_train_data/delta_weight_top51_rp_wp.csv their ΔV, 0 at the features that they do not keep

Each file is one line of comma-separated numbers, the last hidden state at the last input token. PATH, the
texts and the categories are those of FOLDER/data (`rrs_jax.data.authors_questions`).
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rrs_jax.data.authors_questions import AuthorsPair, read_authors
from rrs_jax.data.authors_split import text_groups
from rrs_jax.errors import UserError
from rrs_jax.progress import Progress

FOLDERS = {
    "harmful": ("omni_audio_harmful_rp", ""),
    "refusal": ("omni_audio_harmful_rp/with_prompt", ""),
    "benign": ("omni_audio_benign_rp", "B_"),
}
DELTA = "omni_train_data/delta_weight_top51_rp_wp.csv"
MAX_BYTES = 1 << 20  # of one file; 3,584 numbers take 34 KB
MAX_LISTED = 20


@dataclasses.dataclass(frozen=True)
class AuthorsStates:
    """States of N questions, one for every path that has all three files; all arrays float32.

    Attributes:
      paths, categories: of the harmful question, N each; of a path in several rows the first row's.
      rows: in how many rows of the question files each path stands, int (N,).
      groups: int (N,), equal where questions are, or nearly are, the same.
      harmful, refusal, benign: (N, D), the harmful question under t and under the refusal prompt, and its
        rewrite under t.
      delta: (D,), the authors' ΔV; None where its file is not there.
      remarks: sentences about what is missing.
    """

    paths: list[str]
    categories: list[str]
    rows: np.ndarray
    groups: np.ndarray
    harmful: np.ndarray
    refusal: np.ndarray
    benign: np.ndarray
    delta: np.ndarray | None
    remarks: list[str]


def read_states(folder: str | Path) -> AuthorsStates:
    """Reads the states of every question that has them.

    Raises UserError that names each file with something wrong in it, and where no question has states.
    """
    folder = Path(folder)
    pairs = read_authors(folder).pairs
    first = {}
    for place, pair in enumerate(pairs):
        first.setdefault(pair.path, place)
    files = {path: _files(folder, path) for path in first}
    paths = [path for path in first if all(file.is_file() for file in files[path].values())]
    if not paths:
        raise UserError(
            f"{folder}: no question has its states in {', '.join(name for name, _ in FOLDERS.values())};"
            " give a whole clone of the authors' repository."
        )
    wanted = [files[path][kind] for kind in FOLDERS for path in paths]
    delta_file = [file for file in [folder / DELTA] if file.is_file()]
    vectors = _read_all([*wanted, *delta_file])
    states = np.stack(vectors[: len(wanted)]).reshape(len(FOLDERS), len(paths), -1)
    groups = text_groups(pairs)
    counts = Counter(pair.path for pair in pairs)
    return AuthorsStates(
        paths=paths,
        categories=[pairs[first[path]].category for path in paths],
        rows=np.array([counts[path] for path in paths]),
        groups=np.array([groups[first[path]] for path in paths]),
        **dict(zip(FOLDERS, states, strict=True)),
        delta=vectors[-1] if delta_file else None,
        remarks=_remarks(folder, pairs, paths, files, bool(delta_file)),
    )


def read_vector(path: Path) -> np.ndarray:
    """Reads one line of numbers with commas between as float32 (D,). Raises ValueError that says what is
    wrong."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"has {size} bytes, more than the {MAX_BYTES} of any state")
    try:
        text = path.read_bytes().decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError("is no text") from error
    if not text:
        raise ValueError("is empty")
    if lines := len(text.splitlines()) - 1:
        raise ValueError(f"has {lines + 1} lines, not one")
    numbers = []
    for place, entry in enumerate(text.split(","), start=1):
        try:
            numbers.append(float(entry))
        except ValueError as error:
            raise ValueError(f"entry {place} is {entry[:20]!r}, no number") from error
    vector = np.array(numbers).astype(np.float32)
    if strange := np.flatnonzero(~np.isfinite(vector)).tolist():
        raise ValueError(f"entry {strange[0] + 1} is {numbers[strange[0]]:g}, not finite")
    return vector


def _files(folder: Path, path: str) -> dict[str, Path]:
    return {kind: folder / place / f"{prefix}{path}.csv" for kind, (place, prefix) in FOLDERS.items()}


def _read_all(files: Sequence[Path]) -> list[np.ndarray]:
    """The vectors of the files, all of one length. Raises UserError that lists every file at fault."""
    vectors, faults = [], []
    with np.errstate(over="ignore"), Progress(len(files), "reading", unit="states") as progress:
        for file in files:
            try:
                vectors.append(read_vector(file))
            except ValueError as fault:
                faults.append(f"{file} {fault}")
            except OSError as error:
                faults.append(f"{file} cannot be read ({error.strerror})")
            progress.update()
    if not faults:
        (common, _), *others = Counter(map(len, vectors)).most_common()
        if others:
            faults = [
                f"{file} has {len(vector)} numbers where others have {common}"
                for file, vector in zip(files, vectors, strict=True)
                if len(vector) != common
            ]
    if faults:
        more = [f"  and {len(faults) - MAX_LISTED} more"] if len(faults) > MAX_LISTED else []
        listed = "\n".join([f"  {fault}" for fault in faults[:MAX_LISTED]] + more)
        raise UserError(f"{len(faults)} files of states to fetch again or delete:\n{listed}")
    return vectors


def _remarks(
    folder: Path, pairs: Sequence[AuthorsPair], paths: list[str], files: dict, has_delta: bool
) -> list[str]:
    remarks = []
    if absent := sorted(set(files) - set(paths)):
        named = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        remarks.append(f"{len(absent)} of {len(files)} paths lack a state and are left out: {named}")
    known = {file for places in files.values() for file in places.values()}
    found = {file for place, _ in FOLDERS.values() for file in (folder / place).glob("*.csv")}
    if strange := sorted(found - known):
        remarks.append(
            f"{len(strange)} files of states belong to no question and are not read, {strange[0].name} first"
        )
    if not has_delta:
        remarks.append(f"{DELTA} is not there, so nothing is compared with the authors' ΔV")
    return remarks
