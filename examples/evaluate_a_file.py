"""Answers the questions of a JSON-lines file and prints the rates.

    python examples/evaluate_a_file.py MODEL QUESTIONS.jsonl ANSWERS.jsonl [ADAPTER]

A line is {"question": "…", "label": "harmful", "audio": "clip.wav"}; labels: harmful, benign, borderline.
ANSWERS.jsonl keeps the answers for other judges: rrs-jax measure ANSWERS.jsonl --judges=llm:default
"""

import sys

import rrs_jax
from rrs_jax.config.prompts import PROMPT_T
from rrs_jax.data.manifest import audio_paths, load_manifest
from rrs_jax.evaluate import measure
from rrs_jax.files import write_jsonl


def main(path: str, questions: str, answers: str, adapter: str | None = None) -> None:
    rows = load_manifest(questions)
    model = rrs_jax.load_model(path, adapter=adapter)
    clips = audio_paths(questions, rows)
    responses = rrs_jax.generate(model, clips, PROMPT_T, greedy=True, max_new_tokens=32)
    answered = [row | {"response": text} for row, text in zip(rows, responses, strict=True)]
    write_jsonl(answers, answered)
    rates = measure(answered, judges=["phrases"])  # sees refusals; what is no refusal counts as answered
    for name, found, rate in (
        ("harmful questions answered", rates["modes"]["audio_text"], "asr"),
        ("benign questions refused", rates["orr"], "rate"),
        ("borderline questions refused", rates["borderline_orr"], "rate"),
    ):
        if found and found[rate] is not None:
            low, high = found["ci95"]
            print(f"{name}: {found[rate]:.0f} % (95 %: {low:.0f} to {high:.0f}) of {found['queries']}")


if __name__ == "__main__":
    if not 4 <= len(sys.argv) <= 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
