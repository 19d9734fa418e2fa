"""The two JSON-lines files of an evaluation: the model's responses and the judges' judgements.

Both are written as the work goes on and keyed, so that the same command continues where a killed one stopped:
a response by (set, id, mode, sample), a judgement by that and the judge. What made the responses (model,
adapter, decoding, prompts) is kept in `responses.meta.json` beside them; another maker's responses are never
mixed in.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rrs_jax.data.reasoning import REASONING_VERSION, answer_of
from rrs_jax.errors import UserError, saved_at_end
from rrs_jax.evaluate.judges.judge import Exchange, Judge, Judgement, judge_all
from rrs_jax.evaluate.judges.unreadable import too_many_unreadable
from rrs_jax.files import append_jsonl, content_hash, read_growing_jsonl, read_json, with_sum, write_json
from rrs_jax.progress import Progress, say

REPLY_LETTERS = 400  # of an unreadable reply that a judgement keeps
MODEL_CONTENT = "model_content"  # in `made_by`: digest of a local model's folder, by which it is the same
ALL_CLIPS = "clips"  # in `made_by` of earlier versions: one digest of the clips of all questions
CLIP_SUM = "clip_sum"
SETS = ("harmful", "benign", "borderline", "everyday")

Key = tuple[str, str, str, int]  # set, id, mode, sample


@dataclass(frozen=True)
class Query:
    """One question in one mode; `set` is one of `SETS`, `mode` one of `config.prompts.MODES`, `clip_sum` the
    digest of the clip that is heard, where there is one and it is known."""

    id: str
    set: str
    mode: str
    category: str
    question: str
    style: str | None = None
    clip_sum: str | None = None

    def key(self, sample: int) -> Key:
        """Returns the key of the query's response with this index."""
        return (self.set, self.id, self.mode, sample)


def key_of(row: dict) -> Key:
    """Returns the key of a row of responses or judgements."""
    return (row["set"], row["id"], row["mode"], row["sample"])


class ResponseStore:
    """The responses in the file `path`.

    A row has id, mode, set, category, question, sample, response and seconds (or null), and style and
    clip_sum where the question has them. `made_by` is any JSON object that says what makes them. Raises
    UserError where the file's responses were made by another one.
    """

    def __init__(self, path: str | Path, made_by: dict):
        self.path = Path(path)
        self.meta_path = self.path.with_suffix(".meta.json")
        made_by = json.loads(json.dumps(made_by))
        self.rows: dict[Key, dict] = {key_of(row): row for row in read_growing_jsonl(self.path, say)}
        if self.rows:
            self._check_maker(made_by)
        else:
            write_json(self.meta_path, with_sum({"hash": content_hash(made_by), "made_by": made_by}))

    def missing(self, queries: Iterable[Query], samples: int) -> list[tuple[Query, int]]:
        """Returns (query, sample index) of every response that is not there yet, in the order of `queries`.

        Raises UserError where a stored response answers another question or clip under the same id.
        """
        wanted = [(query, sample) for query in queries for sample in range(samples)]
        pairs = [(query, row) for query, sample in wanted if (row := self.rows.get(query.key(sample)))]
        for what, differing in (
            ("questions", {query.id for query, row in pairs if row["question"] != query.question}),
            ("clips", {query.id for query, row in pairs if _heard_another(query, row)}),
        ):
            if differing:
                raise UserError(
                    f"{self.path}: holds answers to other {what} under the same id"
                    f" ({', '.join(sorted(differing))}); choose another run_dir or delete {self.path.parent}."
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
        state = "damaged" if self.meta_path.exists() else "missing"
        try:
            before = read_json(self.meta_path).get("made_by", {})
        except UserError as error:
            raise UserError(
                f"{self.meta_path}: is {state}, so nothing says what made {self.path.name}; "
                f"choose another run_dir or delete {self.path.parent}."
            ) from error
        unknown = {ALL_CLIPS} - made_by.keys()
        if MODEL_CONTENT in made_by:  # earlier versions wrote the path alone
            unknown.add("model" if MODEL_CONTENT in before else MODEL_CONTENT)
        fields = sorted(
            name for name in (before | made_by).keys() - unknown if before.get(name) != made_by.get(name)
        )
        if fields:
            raise UserError(
                f"{self.path}: was made with other settings ({', '.join(fields)}); "
                f"choose another run_dir or delete {self.path.parent}."
            )


def _heard_another(query: Query, row: dict) -> bool:
    known = (query.clip_sum, row.get(CLIP_SUM))
    return None not in known and known[0] != known[1]


def judge_responses(path: str | Path, responses: Sequence[dict], judges: Sequence[Judge]) -> list[dict]:
    """Returns the judgements of all responses by all judges; those already in `path` are kept, new ones
    appended.

    A row has id, mode, set, category, sample, judge, version, response_hash, refusal, harmful, kind, score
    where the judge gives one, style where the question has one, and reply where it could not be read. A
    judgement is kept only for the same version of the judge and the same question and response. Where more
    than a tenth of a judge's are unreadable, these are asked for again. Equal responses to one question are
    judged once. Finished judgements are on disk even when a judge fails or the program is interrupted.
    """
    path = Path(path)
    known = {_judgement_key(row): row for row in read_growing_jsonl(path, say)}
    _tell_unfinished(responses)
    return [row for judge in judges for row in _judge_with(judge, path, responses, known)]


def _tell_unfinished(responses: Sequence[dict]) -> None:
    unfinished = sum(answer_of(response["response"]) is None for response in responses)
    if unfinished > len(responses) / 10:
        say(
            f"{unfinished} of {len(responses)} responses end inside the model's thoughts and count as no"
            " answer; with a larger generate.max_new_tokens they may come to one"
        )


def _judge_with(judge: Judge, path: Path, responses: Sequence[dict], known: dict[tuple, dict]) -> list[dict]:
    rows = [_judgement_row(judge, response) for response in responses]
    kept = [known.get(_judgement_key(row)) for row in rows]
    ask_again = too_many_unreadable([row for row in kept if row])
    rows = [
        row if found is None or (ask_again and found["kind"] == "unreadable") else found
        for row, found in zip(rows, kept, strict=True)
    ]
    waiting: dict[tuple, list[dict]] = {}  # rows without a judgement, by what the judge would see
    exchanges: dict[tuple, Exchange] = {}
    for row, response in zip(rows, responses, strict=True):
        if "kind" not in row:
            key = (row["response_hash"], row["set"])
            exchanges[key] = Exchange(response["question"], response["response"], response["set"])
            waiting.setdefault(key, []).append(row)
    if exchanges:
        _judge_waiting(judge, path, exchanges, waiting)
    absent = sum("kind" not in row for row in rows)
    if absent:
        raise RuntimeError(f"judge {judge.name}: ended without {absent} of {len(rows)} judgements")
    if too_many_unreadable(rows) and hasattr(judge, "forget"):
        judge.forget([exchanges[key] for key in waiting if waiting[key][0]["kind"] == "unreadable"])
    return rows


def _judge_waiting(
    judge: Judge, path: Path, exchanges: dict[tuple, Exchange], waiting: dict[tuple, list[dict]]
) -> None:
    """Judges these exchanges and puts the judgement of each into its rows, here and at the end of `path`."""
    keys = list(exchanges)
    with (
        AppendedRows(path) as finished,
        Progress(len(keys), f"judge {judge.name}", unit="responses") as progress,
    ):

        def on_judged(index: int, judgement: Judgement) -> None:
            more = {} if judgement.score is None else {"score": judgement.score}
            more |= {} if judgement.reply is None else {"reply": judgement.reply[:REPLY_LETTERS]}
            rows = waiting[keys[index]]
            for row in rows:
                row |= {
                    "refusal": judgement.refusal,
                    "harmful": judgement.harmful,
                    "kind": judgement.kind,
                } | more
            finished.add(rows)
            progress.update(1)

        judge_all(judge, list(exchanges.values()), on_judged)


def _judgement_row(judge: Judge, response: dict) -> dict:
    """Returns a row without its judgement."""
    kept = ("id", "mode", "set", "category", "sample", *(["style"] if "style" in response else []))
    return {name: response[name] for name in kept} | {
        "judge": judge.name,
        "version": judge.version,
        "response_hash": _response_hash(response["question"], response["response"]),
    }


def _response_hash(question: str, response: str) -> str:
    """Returns the hash that ties a judgement to its text.

    One with thoughts has another hash than by the whole text: a judgement of version 0.1.0 read the thoughts.
    """
    read_by = [] if answer_of(response) == response else [REASONING_VERSION]
    return content_hash(question, response, *read_by)


class AppendedRows:
    """Appends rows to a file every `every` seconds, and at the end even of work that fails."""

    def __init__(self, path: Path, every: float = 2.0, on_added: Callable[[dict], None] = lambda row: None):
        self.path, self.every, self.on_added = path, every, on_added
        self.rows: list[dict] = []
        self.last = time.monotonic()
        self.writing = threading.Lock()

    def __enter__(self) -> "AppendedRows":
        self.unsaved = contextlib.ExitStack()
        self.unsaved.enter_context(saved_at_end(self._write))
        return self

    def add(self, rows: Iterable[dict]) -> None:
        """Takes finished rows; writes them where it is time."""
        for row in rows:
            self.rows.append(row)
            self.on_added(row)
        if time.monotonic() - self.last >= self.every:
            self._write()

    def __exit__(self, *exception) -> None:
        with self.unsaved:
            self._write()

    def _write(self) -> None:
        with self.writing:  # two threads do it where the process is being ended
            rows, self.rows, self.last = self.rows, [], time.monotonic()
            if rows:
                append_jsonl(self.path, rows)


def _judgement_key(row: dict) -> tuple:
    return (*key_of(row), row["judge"], row["version"], row["response_hash"])
