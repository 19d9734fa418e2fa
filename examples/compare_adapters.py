"""Says by how much two adapters differ in what they refuse, question by question.

    python examples/compare_adapters.py MODEL QUESTIONS.jsonl FIRST_ADAPTER SECOND_ADAPTER

QUESTIONS.jsonl is as for evaluate_a_file.py.
"""

import sys

import rrs_jax
from rrs_jax.config.prompts import PROMPT_T
from rrs_jax.data.manifest import audio_paths, load_manifest
from rrs_jax.evaluate import make_judges
from rrs_jax.evaluate.compare import paired_block


def refused(path: str, adapter: str, rows: list[dict], clips: list) -> dict[str, tuple[int, int]]:
    """Returns by each question's id (refusals, answers)."""
    model = rrs_jax.load_model(path, adapter=adapter)
    answers = rrs_jax.generate(model, clips, PROMPT_T, greedy=True, max_new_tokens=32)
    (judge,) = make_judges(["phrases"])
    asked = zip(rows, answers, strict=True)
    return {row["id"]: (judge.judge(row["question"], text, row["label"]).refusal, 1) for row, text in asked}


def main(path: str, questions: str, first: str, second: str) -> None:
    rows = load_manifest(questions)
    clips = audio_paths(questions, rows)
    a, b = (refused(path, adapter, rows, clips) for adapter in (first, second))
    for label in sorted({row["label"] for row in rows}):
        ids = [row["id"] for row in rows if row["label"] == label]
        found = paired_block({name: a[name] for name in ids}, {name: b[name] for name in ids})
        (before, after), (low, high) = found["rates"], found["ci95"]
        print(f"{label}: {before:.0f} and {after:.0f} % refused, difference {low:.0f} to {high:.0f} (95 %)")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
