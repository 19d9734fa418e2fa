"""One evaluation: every question in every mode, n responses each, judged and summed up in RUN/eval/NAME/."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rrs_jax.config.prompts import MODES, TEXT_ONLY_VARIANTS
from rrs_jax.config.vocabulary import SETTING_MODES
from rrs_jax.errors import UserError
from rrs_jax.evaluate.judges.judge import JudgeSettings
from rrs_jax.evaluate.judges.registry import make_judges
from rrs_jax.evaluate.responses import SETS, Key, Query, ResponseStore, judge_responses
from rrs_jax.evaluate.settings import has_clip, setting_prompt
from rrs_jax.evaluate.summary import ORR_MODE, summarise
from rrs_jax.files import write_json
from rrs_jax.progress import Progress


@dataclass(frozen=True)
class GenerationRequest:
    """One response wanted. `text` is the prompt (None: audio alone), `audio` a clip's path (None: text
    alone).

    `key` (set, id, mode, sample) is unique and stable over restarts: draw the sampling randomness from it,
    and a resumed run gives the responses of an uninterrupted one.
    """

    key: Key
    text: str | None
    audio: Path | None
    sample: int


class OnFinished(Protocol):
    def __call__(self, request: GenerationRequest, response: str, seconds: float | None = None) -> None: ...


Generate = Callable[[Sequence[GenerationRequest], OnFinished], None]


def evaluate_model(
    name: str,
    rows: Sequence[dict],
    generate: Generate,
    *,
    modes: Sequence[str],
    samples: int,
    judge_names: Sequence[str],
    folder: str | Path,
    available_modes: Sequence[str] = MODES,
    judge_settings: JudgeSettings | None = None,
    write_every: float = 2.0,
    setting: str = "spoken",
    text_only_variant: str = "prompted",
    over_refusal_modes: Sequence[str] = (ORR_MODE,),
    audio_folder: str | Path = ".",
    made_by: dict | None = None,
    model: str = "",
    strategy: str = "",
    vanilla: dict | None = None,
) -> dict:
    """Writes responses.jsonl, judgements.jsonl and summary.json in `folder`/`name`; returns the summary.

    rows: evaluation rows (id, label, category, question, audio); label "harmful", "benign" or "borderline",
        audio paths relative to `audio_folder`.
    generate(requests, on_finished): answers all requests in any order and calls on_finished(request,
        response, seconds) as each one is done. It gets only what is not on disk yet, the samples of one query
        side by side.
    modes: those asked for; harmful questions are asked in all of them, the other two sets in those that are
        also in `over_refusal_modes`.
    available_modes: those that the model has (Qwen-Audio has no audio_only); others are null in the summary.
    setting: one of `settings.SETTINGS`; the rows' audio is then the setting's (`settings.setting_rows`), and
        modes that it does not have are null.
    write_every: seconds between writes of finished responses; 0 where each one costs money.
    made_by: JSON object that says what decides the responses besides the prompts (model, adapter, decoding,
        seed); a restart with another one is refused.
    vanilla: the summary of the model before training, for NSI.

    Raises UserError for a mistake in the arguments, before anything is generated.
    """
    judges = make_judges(judge_names, judge_settings)
    modes = _available(modes, [mode for mode in available_modes if mode in SETTING_MODES[setting]])
    _check(rows, modes, samples, text_only_variant, over_refusal_modes)
    audio = {(row["label"], row["id"]): row.get("audio") for row in rows}
    queries = [
        Query(row["id"], row["label"], mode, row["category"], row["question"])
        for mode in modes
        for row in rows
        if row["label"] == "harmful" or mode in over_refusal_modes
    ]
    folder = Path(folder) / name
    prompts = {
        mode: setting_prompt(setting, mode, "{question}", text_only_variant)
        for mode in SETTING_MODES[setting]
    }
    store = ResponseStore(folder / "responses.jsonl", {**(made_by or {}), "prompts": prompts})
    wanted = {}
    for query, sample in store.missing(queries, samples):
        text = setting_prompt(setting, query.mode, query.question, text_only_variant)
        clip = None
        if has_clip(setting, query.mode):
            clip = Path(audio_folder) / audio[query.set, query.id]
        wanted[query.key(sample)] = (GenerationRequest(query.key(sample), text, clip, sample), query)
    if wanted:
        generate_missing(name, wanted, generate, store, write_every)

    judgements = judge_responses(folder / "judgements.jsonl", store.select(queries, samples), judges)
    summary = summarise(
        judgements,
        judges,
        name=name,
        model=model,
        strategy=strategy or name,
        samples=samples,
        vanilla=vanilla,
    )
    write_json(folder / "summary.json", summary)
    return summary


def generate_missing(
    name: str,
    wanted: dict[Key, tuple[GenerationRequest, Query]],
    generate: Generate,
    store: ResponseStore,
    write_every: float,
) -> None:
    """Streams finished responses to disk, and at the end even of a failed run."""
    with (
        store.appending(write_every) as finished,
        Progress(len(wanted), f"{name}: responses", unit="responses") as progress,
    ):

        def on_finished(request: GenerationRequest, response: str, seconds: float | None = None) -> None:
            _, query = wanted[request.key]
            row = {
                "id": query.id,
                "mode": query.mode,
                "set": query.set,
                "category": query.category,
                "question": query.question,
                "sample": request.sample,
                "response": response,
                "seconds": seconds,
            }
            finished.add([row])
            progress.update(1, mode=query.mode)

        generate([request for request, _ in wanted.values()], on_finished)
    absent = [key for key in wanted if key not in store.rows]
    if absent:
        raise RuntimeError(
            f"{name}: generation ended without {len(absent)} of {len(wanted)} responses, e.g. {absent[0]}"
        )


def _available(modes: Sequence[str], available: Sequence[str]) -> tuple[str, ...]:
    asked = tuple(mode for mode in modes if mode in available or mode not in MODES)
    if modes and not asked:
        raise UserError(
            f"evaluate.modes: this model and setting have none of {', '.join(modes)}; choose from"
            f" {', '.join(available)}."
        )
    return asked


def _check(
    rows: Sequence[dict],
    modes: Sequence[str],
    samples: int,
    text_only_variant: str,
    over_refusal_modes: Sequence[str],
) -> None:
    """Raises UserError; what is wrong with several rows is said of all of them at once."""
    for field, values in (("evaluate.modes", modes), ("evaluate.over_refusal_modes", over_refusal_modes)):
        unknown = [mode for mode in values if mode not in MODES]
        if unknown or len(set(values)) < len(values):
            raise UserError(
                f"{field}: {', '.join(unknown or values)}; name each mode once, from {', '.join(MODES)}."
            )
    if not modes:
        raise UserError(f"evaluate.modes: is empty; choose from {', '.join(MODES)}.")
    if samples < 1:
        raise UserError(f"evaluate.samples: is {samples}; ask for at least one response a question.")
    if text_only_variant not in TEXT_ONLY_VARIANTS:
        raise UserError(
            f"evaluate.text_only_variant: {text_only_variant!r} is unknown; choose"
            f" {' or '.join(TEXT_ONLY_VARIANTS)}."
        )
    if not rows:
        raise UserError("evaluation questions: the file holds none; give at least one row.")
    labels = sorted({str(row["label"]) for row in rows} - set(SETS))
    if labels:
        raise UserError(f"evaluation questions: label {', '.join(labels)} is unknown; use {', '.join(SETS)}.")
    twice = [key for key, count in Counter((row["label"], row["id"]) for row in rows).items() if count > 1]
    if twice:
        raise UserError(
            f"evaluation questions: id {_listed(twice)} occurs twice in its set; make each id unique."
        )
    empty = [(row["label"], row["id"]) for row in rows if not (row["question"] or "").strip()]
    if empty:
        raise UserError(f"evaluation questions: {_listed(empty)} has no question; write or delete the row.")
    spoken = [mode for mode in modes if mode != "text_only"]
    mute = [
        (row["label"], row["id"])
        for row in rows
        if not row.get("audio")
        and ((row["label"] == "harmful" and spoken) or set(spoken) & set(over_refusal_modes))
    ]
    if mute:
        raise UserError(
            f"evaluation questions: {_listed(mute)} has no audio, which {' and '.join(spoken)} need; "
            "run the data stage or evaluate text_only alone."
        )


def _listed(keys: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{identity} ({label})" for label, identity in keys)
