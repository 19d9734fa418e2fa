"""The two JSON-lines files of an evaluation: the model's responses and the judges' judgements.

Both are written as the work goes on and keyed, so that the same command continues where a killed one stopped:
a response by (set, id, mode, sample), a judgement by that and the judge. What made the responses (model,
adapter, decoding, prompts) is kept in `responses.meta.json` beside them; another maker's responses are never
mixed in.
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rrs_jax.errors import UserError
from rrs_jax.evaluate.judges.judge import Exchange, Judge, Judgement, judge_all
from rrs_jax.files import append_jsonl, content_hash, read_growing_jsonl, read_json, write_json
from rrs_jax.progress import Progress

SETS = ("harmful", "benign", "borderline")

Key = tuple[str, str, str, int]  # set, id, mode, sample


@dataclass(frozen=True)
class Query:
    """One question in one mode; `set` is one of `SETS`, `mode` one of `config.prompts.MODES`."""

    id: str
    set: str
    mode: str
    category: str
    question: str

    def key(self, sample: int) -> Key:
        """Returns the key of the query's response with this index."""
        return (self.set, self.id, self.mode, sample)


def key_of(row: dict) -> Key:
    """Returns the key of a row of responses or judgements."""
    return (row["set"], row["id"], row["mode"], row["sample"])


class ResponseStore:
    """The responses in the file `path`.

    A row has id, mode, set, category, question, sample, response and seconds (or null). `made_by` is any JSON
    object that says what makes them. Raises UserError where the file's responses were made by another one.
    """

    def __init__(self, path: str | Path, made_by: dict):
        self.path = Path(path)
        self.meta_path = self.path.with_suffix(".meta.json")
        made_by = json.loads(json.dumps(made_by))
        self.rows: dict[Key, dict] = {key_of(row): row for row in read_growing_jsonl(self.path)}
        if self.rows:
            self._check_maker(made_by)
        else:
            write_json(self.meta_path, {"hash": content_hash(made_by), "made_by": made_by})

    def missing(self, queries: Iterable[Query], samples: int) -> list[tuple[Query, int]]:
        """Returns (query, sample index) of every response that is not there yet, in the order of `queries`.

        Raises UserError where a stored response answers another question under the same id.
        """
        wanted = [(query, sample) for query in queries for sample in range(samples)]
        changed = sorted(
            {
                query.id
                for query, sample in wanted
                if query.key(sample) in self.rows
                and self.rows[query.key(sample)]["question"] != query.question
            }
        )
        if changed:
            raise UserError(
                f"{self.path}: holds answers to other questions under the same id ({', '.join(changed)}); "
                f"choose another run_dir or delete {self.path.parent}."
            )
        return [(query, sample) for query, sample in wanted if query.key(sample) not in self.rows]

    def append(self, rows: Sequence[dict]) -> None:
        """Writes finished rows."""
        with self.appending() as finished:
            finished.add(rows)

    def appending(self, every: float = 2.0) -> "AppendedRows":
        """Returns where rows go as they are finished; written every so many seconds."""
        return AppendedRows(self.path, every, lambda row: self.rows.__setitem__(key_of(row), row))

    def select(self, queries: Iterable[Query], samples: int) -> list[dict]:
        """Returns the rows of these queries and samples.

        The file may hold more, from a run that asked for more.
        """
        keys = [query.key(sample) for query in queries for sample in range(samples)]
        return [self.rows[key] for key in keys if key in self.rows]

    def _check_maker(self, made_by: dict) -> None:
        if not self.meta_path.exists():
            raise UserError(
                f"{self.meta_path}: is missing, so nothing says what made {self.path.name}; "
                f"choose another run_dir or delete {self.path.parent}."
            )
        before = read_json(self.meta_path).get("made_by", {})
        fields = sorted(name for name in before | made_by if before.get(name) != made_by.get(name))
        if fields:
            raise UserError(
                f"{self.path}: was made with other settings ({', '.join(fields)}); "
                f"choose another run_dir or delete {self.path.parent}."
            )


def judge_responses(path: str | Path, responses: Sequence[dict], judges: Sequence[Judge]) -> list[dict]:
    """Returns the judgements of all responses by all judges; those already in `path` are kept, new ones
    appended.

    A row has id, mode, set, category, sample, judge, version, response_hash, refusal, harmful, kind, and
    score where the judge gives one. A judgement is kept only for the same version of the judge and the same
    question and response. Equal responses to one question are judged once. Finished judgements are on disk
    even when a judge fails or the program is interrupted.
    """
    path = Path(path)
    known = {_judgement_key(row): row for row in read_growing_jsonl(path)}
    return [row for judge in judges for row in _judge_with(judge, path, responses, known)]


def _judge_with(judge: Judge, path: Path, responses: Sequence[dict], known: dict[tuple, dict]) -> list[dict]:
    rows: list[dict] = []
    alike: dict[tuple, list[dict]] = {}  # rows without a judgement, by what the judge would see
    exchanges: list[Exchange] = []
    for response in responses:
        row = {name: response[name] for name in ("id", "mode", "set", "category", "sample")} | {
            "judge": judge.name,
            "version": judge.version,
            "response_hash": content_hash(response["question"], response["response"]),
        }
        row = known.get(_judgement_key(row), row)
        rows.append(row)
        if "kind" not in row:
            key = (row["response_hash"], row["set"])
            if key not in alike:
                exchanges.append(Exchange(response["question"], response["response"], response["set"]))
            alike.setdefault(key, []).append(row)
    waiting = list(alike.values())
    with (
        AppendedRows(path) as finished,
        Progress(len(exchanges), f"judge {judge.name} reads the answers", unit="answers") as progress,
    ):

        def on_judged(index: int, judgement: Judgement) -> None:
            score = {} if judgement.score is None else {"score": judgement.score}
            for row in waiting[index]:
                row |= {
                    "refusal": judgement.refusal,
                    "harmful": judgement.harmful,
                    "kind": judgement.kind,
                } | score
            finished.add(waiting[index])
            progress.update(1)

        if exchanges:
            judge_all(judge, exchanges, on_judged)
    absent = sum("kind" not in row for row in rows)
    if absent:
        raise RuntimeError(f"judge {judge.name}: ended without {absent} of {len(rows)} judgements")
    return rows


class AppendedRows:
    """Appends rows to a file every `every` seconds, and at the end even of work that fails."""

    def __init__(self, path: Path, every: float = 2.0, on_added: Callable[[dict], None] = lambda row: None):
        self.path, self.every, self.on_added = path, every, on_added
        self.rows: list[dict] = []
        self.last = time.monotonic()

    def __enter__(self) -> "AppendedRows":
        return self

    def add(self, rows: Iterable[dict]) -> None:
        """Takes finished rows; writes them where it is time."""
        for row in rows:
            self.rows.append(row)
            self.on_added(row)
        if time.monotonic() - self.last >= self.every:
            self._write()

    def __exit__(self, *exception) -> None:
        self._write()

    def _write(self) -> None:
        if self.rows:
            append_jsonl(self.path, self.rows)
        self.rows, self.last = [], time.monotonic()


def _judgement_key(row: dict) -> tuple:
    return (*key_of(row), row["judge"], row["version"], row["response_hash"])
