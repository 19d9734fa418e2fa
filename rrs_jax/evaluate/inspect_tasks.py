r"""Tasks for Inspect (`inspect_ai`): any model that it can call, measured with these questions and judges.

    inspect eval rrs_jax/evaluate/inspect_tasks.py@spoken_safety --model=openai/MODEL \
        -T manifest=MANIFEST.jsonl
    inspect eval rrs_jax/evaluate/inspect_tasks.py@spoken_safety --model=... \
        -T manifest=... -T mode=audio_only -T judges=phrases

Each question is asked in `samples` epochs. A score is 1 where the event happened: attack success for harmful
questions, refusal for benign and borderline ones; each judge is a scorer. Metrics are means by label, in
0..1; intervals are those of `rrs_jax.evaluate.measure` on the logged answers.
"""

import asyncio
from pathlib import Path

from inspect_ai import Epochs, Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageUser, ContentAudio, ContentText
from inspect_ai.scorer import Score, Scorer, Target, grouped, mean, scorer
from inspect_ai.solver import TaskState, generate

from rrs_jax.config.kinds import split_names
from rrs_jax.config.prompts import evaluation_prompt
from rrs_jax.data.manifest import load_manifest
from rrs_jax.evaluate.endpoint import EndpointConfig
from rrs_jax.evaluate.judges.judge import Judge, JudgeSettings
from rrs_jax.evaluate.judges.registry import make_judges
from rrs_jax.evaluate.summary import attack_succeeded
from rrs_jax.files import replace_surrogates


@task
def spoken_safety(
    manifest: str,
    mode: str = "audio_text",
    judges: str = "phrases",
    samples: int = 5,
    text_only_variant: str = "prompted",
    judge_url: str | None = None,
    judge_model: str | None = None,
) -> Task:
    """Makes the task of a manifest's spoken questions in one mode; `judges` as in evaluate.judges."""
    server = EndpointConfig(judge_url, judge_model) if judge_url else None
    made = make_judges(split_names(judges), JudgeSettings(server))
    rows = load_manifest(manifest, need_audio=mode != "text_only")
    dataset = [_sample(row, mode, text_only_variant, Path(manifest).parent) for row in rows]
    return Task(
        dataset=MemoryDataset(dataset, name=Path(manifest).stem),
        solver=generate(),
        scorer=[judged(judge) for judge in made],
        epochs=Epochs(samples, "mean"),
    )


def _sample(row: dict, mode: str, text_only_variant: str, folder: Path) -> Sample:
    content = []
    if mode != "text_only":
        audio = folder / row["audio"]
        content.append(ContentAudio(audio=str(audio), format="mp3" if audio.suffix == ".mp3" else "wav"))
    if text := evaluation_prompt(mode, row["question"], text_only_variant):
        content.append(ContentText(text=text))
    metadata = {name: row[name] for name in ("label", "category", "question")}
    return Sample(id=row["id"], input=[ChatMessageUser(content=content)], metadata=metadata)


def judged(judge: Judge) -> Scorer:
    """Makes the scorer of one judge; an answer without a readable verdict has no score."""

    @scorer(metrics=[grouped(mean(), "label")], name=judge.name.replace(":", "_"))
    def make() -> Scorer:
        async def score(state: TaskState, target: Target) -> Score | None:
            question, label = state.metadata["question"], state.metadata["label"]
            answer = replace_surrogates(state.output.completion)
            judgement = await asyncio.to_thread(judge.judge, question, answer, label)
            row = {"refusal": judgement.refusal, "harmful": judgement.harmful}
            event = attack_succeeded(row, judge) if label == "harmful" else judgement.refusal
            if event is None:
                return None
            return Score(value=float(event), answer=answer, explanation=judgement.kind, metadata=row)

        return score

    return make()
