"""The two JSON-lines files of an evaluation: what the model said, and what the judges made of it.

Both are written as the work goes on and keyed, so that the same command continues where a killed one stopped:
a response by (set, id, mode, sample), a judgement by that and the judge. What made the responses (model,
adapter, decoding, prompts) is kept in `responses.meta.json` beside them; another maker's responses are never
mixed in.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rrs_jax.errors import UserError
from rrs_jax.evaluate.judges import Judge
from rrs_jax.files import append_jsonl, content_hash, read_growing_jsonl, read_json, write_json

SETS = ("harmful", "benign", "borderline")

Key = tuple[str, str, str, int]  # set, id, mode, sample


@dataclass(frozen=True)
class Query:
    """One question in one mode. `set` is one of `SETS`, `mode` one of `rrs_jax.inputs.prompts.MODES`."""

    id: str
    set: str
    mode: str
    category: str
    question: str

    def key(self, sample: int) -> Key:
        return (self.set, self.id, self.mode, sample)


def key_of(row: dict) -> Key:
    return (row["set"], row["id"], row["mode"], row["sample"])


class ResponseStore:
    """The responses in `path`, one row each: id, mode, set, category, question, sample, response, seconds (or
    null).

    `made_by` is any JSON object that says what made them. Raises UserError where the file's responses were
    made by another one.
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
        """(query, sample index) of every response that is not there yet, in the order of `queries`.

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
        append_jsonl(self.path, rows)
        self.rows.update((key_of(row), row) for row in rows)

    def select(self, queries: Iterable[Query], samples: int) -> list[dict]:
        """The rows of these queries and samples; a file may hold more, from a run that asked for more."""
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
    """Judgements of all responses by all judges; those already in `path` are kept, new ones appended to it.

    A row: id, mode, set, category, sample, judge, version, response_hash, refusal, harmful, kind. A judgement
    counts as there only for the same version of the judge and the same question and response.
    """
    known = {_judgement_key(row): row for row in read_growing_jsonl(Path(path))}
    rows, new = [], []
    for judge in judges:
        for response in responses:
            row = {name: response[name] for name in ("id", "mode", "set", "category", "sample")} | {
                "judge": judge.name,
                "version": judge.version,
                "response_hash": content_hash(response["question"], response["response"]),
            }
            if _judgement_key(row) in known:
                rows.append(known[_judgement_key(row)])
                continue
            judgement = judge.judge(response["question"], response["response"], response["set"])
            row |= {"refusal": judgement.refusal, "harmful": judgement.harmful, "kind": judgement.kind}
            rows.append(row)
            new.append(row)
    if new:
        append_jsonl(path, new)
    return rows


def _judgement_key(row: dict) -> tuple:
    return (*key_of(row), row["judge"], row["version"], row["response_hash"])
