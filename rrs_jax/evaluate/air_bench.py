"""AIR-Bench chat (Yang et al. 2024): helpfulness on questions about speech, sound, music and mixtures.

A judge scores each answer and a reference answer from 1 to 10, in both orders. The mean over the four groups
is the helpfulness score (HS) of the paper's table 3.

The data root holds `Chat_meta.json` and the audio in folders `TASK_DATASET`. RUN/eval/NAME/air_bench gets
responses.jsonl, judgements.jsonl and summary.json; the same command continues where a killed one stopped.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rrs_jax.data.reasoning import answer_of
from rrs_jax.data.verdicts import find_verdict
from rrs_jax.errors import UserError
from rrs_jax.evaluate.air_bench_items import cut_clips
from rrs_jax.evaluate.air_bench_scores import ORDERS, summarise_scores
from rrs_jax.evaluate.endpoint import Endpoint
from rrs_jax.evaluate.engine import Engine, GenerationRequest, OnFinished
from rrs_jax.evaluate.judges.unreadable import MOST_UNREADABLE, advice, shown_reply, unreadable_sentence
from rrs_jax.evaluate.plan import Target
from rrs_jax.evaluate.responses import AppendedRows, Query, ResponseStore
from rrs_jax.evaluate.run import generate_missing
from rrs_jax.files import content_hash, read_growing_jsonl, with_sum, write_json
from rrs_jax.progress import Progress, say

ASKED = {"temperature": 1.0, "max_tokens": 1024}  # of the published judge
TRIAL = {"meta_info": "A dog barks twice.", "question": "How often does the dog bark?", "answer_gt": "Twice."}
# Two scores, the whole of a line.
SCORES = re.compile(r"^\W*([1-9]|10)(?:\s*[,;/|]\s*|\s+)([1-9]|10)\W*$")
DRAWS = 3  # judgements drawn before one counts as unparsed
CLIPS_AT_ONCE = 256  # clips whose embeddings are in memory together

PROMPT_VERSION = "1"
# The published prompt's order and scale, in our own sentences.
PROMPT = """\
You check answers to questions about audio, and you are fair and exact. You cannot hear the audio; here is a \
detailed description of it.

[Description of the audio]
{meta_info}

[Question]
{question}

[Start of assistant 1's answer]
{first}
[End of assistant 1's answer]

[Start of assistant 2's answer]
{second}
[End of assistant 2's answer]

Rate how helpful, relevant, accurate and complete each answer is, given the question and the description. \
Each assistant gets one whole number from 1 to 10; higher is better. Write a single line that holds only the \
two numbers, assistant 1's first, with a space between them."""


def air_bench(
    engine: Engine, items: Sequence[dict], judge: Endpoint, target: Target, max_seconds: float = 30.0
) -> dict:
    """Answers the items, has the answers judged and writes the summary of one model; returns the summary.

    Args:
      items: as `air_bench_items.read_meta` returns them. Clips longer than `max_seconds`, which the models do
        not hear to the end, are cut there and counted. Items with an empty answer are left out, as by the
        published script, and counted.
      target: the files lie in the folder air_bench below the target's.
    """
    folder = target.path / "air_bench"
    clips, cut = cut_clips(items, folder / "cut", max_seconds)
    responses = _responses(engine, items, clips, target)
    judgements = judge_answers(folder / "judgements.jsonl", items, responses, judge)
    summary = summarise_scores(items, responses, judgements) | {
        "name": target.name,
        "judge": judge.config.model,
        "prompt_version": PROMPT_VERSION,
        "cut": cut,
    }
    write_json(folder / "summary.json", with_sum(summary))
    return summary


def _responses(
    engine: Engine, items: Sequence[dict], clips: dict[str, Path], target: Target
) -> dict[str, str]:
    """Returns the answer to each item by id; those that are not on disk are generated.

    It is what follows the model's thoughts, and empty where these do not end.
    """
    path = target.path / "air_bench" / "responses.jsonl"
    store = ResponseStore(path, {**engine.made_by, "benchmark": "AIR-Bench chat"})
    queries = [
        Query(item["id"], "air_bench", "audio_text", item["task_name"], item["question"]) for item in items
    ]
    missing = {}
    for query, sample in store.missing(queries, 1):
        request = GenerationRequest(query.key(sample), query.question, clips[query.id], sample)
        missing[request.key] = (request, query)

    def in_parts(requests: Sequence[GenerationRequest], on_finished: OnFinished) -> None:
        for start in range(0, len(requests), CLIPS_AT_ONCE):
            engine.generate(requests[start : start + CLIPS_AT_ONCE], on_finished)

    if missing:
        generate_missing(f"{target.name}: AIR-Bench", missing, replace(engine, generate=in_parts), store)
    return {row["id"]: (answer_of(row["response"]) or "").strip() for row in store.select(queries, 1)}


def judge_answers(
    path: Path, items: Sequence[dict], responses: dict[str, str], judge: Endpoint
) -> list[dict]:
    """Scores every answer in both orders; returns one row for each item and order.

    A row has id, task, order, judge, hash, and the scores `reference` and `model`, both null where no verdict
    could be parsed. Rows in `path` are kept for the same judge, prompt, question and answer. Empty answers
    have no row.

    Raises UserError, when all is asked, where more than a tenth of the verdicts could not be parsed; the next
    call asks for these again.
    """
    rows, prompts = [], {}
    for item in items:
        for order in ORDERS if responses[item["id"]] else ():
            prompt = judge_prompt(item, responses[item["id"]], order)
            row = {
                "id": item["id"],
                "task": item["task_name"],
                "order": order,
                "judge": judge.config.model,
                "hash": content_hash(PROMPT_VERSION, prompt),
            }
            rows.append(row)
            prompts[_judgement_key(row)] = prompt
    known = {_judgement_key(row): row for row in read_growing_jsonl(path, say)}
    kept = [row for row in rows if _judgement_key(row) in known]
    unparsed = [row for row in kept if known[_judgement_key(row)]["model"] is None]
    for row in kept:
        if row not in unparsed or len(unparsed) <= MOST_UNREADABLE * len(kept):
            row |= known[_judgement_key(row)]
    replies = _ask_all(path, [row for row in rows if "model" not in row], prompts, judge)
    unparsed = [row for row in rows if row["model"] is None]
    if len(unparsed) > MOST_UNREADABLE * len(rows):
        for row in unparsed:
            _forget(prompts[_judgement_key(row)], judge)
        example = replies[_judgement_key(unparsed[0])]
        said = unreadable_sentence(len(unparsed), len(rows), example)
        raise UserError(
            f"AIR-Bench, judge {judge.config.model}: {said} The other verdicts are kept, and the same command"
            " asks for these alone."
        )
    return rows


def _ask_all(
    path: Path, rows: Sequence[dict], prompts: dict[tuple, str], judge: Endpoint
) -> dict[tuple, str]:
    """Has the scores put into these rows, here and at the end of `path`; returns the replies."""
    replies: dict[tuple, str] = {}
    keys = [_judgement_key(row) for row in rows]
    with AppendedRows(path) as finished, Progress(len(rows), "AIR-Bench judgements") as progress:

        def on_reply(index: int, reply: str) -> None:
            row, replies[keys[index]] = rows[index], reply
            first, second = parse_scores(reply) or (None, None)
            swapped = row["order"] == "model_first"
            row |= {"reference": second, "model": first} if swapped else {"reference": first, "model": second}
            finished.add([row])
            progress.update(1)

        judge.ask_all([partial(_ask_for_scores, prompts[key]) for key in keys], on_reply)
    return replies


def try_judge(judge: Endpoint) -> None:
    """Has the judge score one trivial answer, unless it has done so within a day.

    Raises UserError where it cannot be asked, or where its scores cannot be read.
    """
    prompt = judge_prompt(TRIAL, "Two.", "reference_first")

    def ask() -> None:
        reply = _ask_for_scores(prompt, Endpoint(judge.config, None))
        if not parse_scores(reply):
            raise UserError(
                f"AIR-Bench, judge {judge.config.model}: its verdict on a trivial answer cannot be read:"
                f" {shown_reply(reply)}; nothing else was asked. {advice(reply)}"
            )

    judge.try_out(ask, [prompt, ASKED])


def _ask_for_scores(prompt: str, judge: Endpoint) -> str:
    """Returns the judge's first reply that can be parsed, or its last one."""
    for draw in range(DRAWS):
        reply = judge.ask([{"role": "user", "content": prompt}], draw=draw, **ASKED)
        if parse_scores(reply):
            break
    return reply


def _forget(prompt: str, judge: Endpoint) -> None:
    """Has the replies to a prompt asked for anew the next time."""
    for draw in range(DRAWS):
        judge.forget([{"role": "user", "content": prompt}], draw=draw, **ASKED)


def _judgement_key(row: dict) -> tuple:
    return row["id"], row["order"], row["judge"], row["hash"]


def judge_prompt(item: dict, answer: str, order: str) -> str:
    """Returns the judge's prompt; `order` is one of `ORDERS`."""
    reference = str(item["answer_gt"])
    first, second = (reference, answer) if order == "reference_first" else (answer, reference)
    texts = {
        "meta_info": str(item["meta_info"]),
        "question": item["question"],
        "first": first,
        "second": second,
    }
    return re.sub(r"\{(meta_info|question|first|second)\}", lambda match: texts[match[1]], PROMPT)


def parse_scores(reply: str) -> tuple[int, int] | None:
    """Returns the two whole numbers, 1 to 10, that stand alone on one of the reply's lines.

    They may stand behind the judge's thoughts and a preface, or with a comma between. None for anything else,
    and where several lines give different ones.
    """
    match = find_verdict(reply, SCORES)
    return None if match is None else (int(match[1]), int(match[2]))
