"""Measures how well the mini hears: `python -m rrs_jax.mini.measure --questions=60 --out=measures.json`.

The questions are the harmless ones of the starter set, which no bridge is trained on. The written question's
own greedy answer is the reference for what is heard:

- `agreement`, `agreement_first_five`: percent of the answer's tokens that come first when the question is
  heard, teacher-forced; `shuffled_*` the same with another question's clip.
- `likelihood_ratio`: percent of answers likelier with their own clip than with another's.
- `word_errors`: percent of words wrong when the model repeats the question.
- `answer_f1`: mean word F1, in percent, between the answers to the heard and to the written question.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rrs_jax.config.kinds import with_home
from rrs_jax.data.questions import changed_words
from rrs_jax.data.speech import speak_all
from rrs_jax.data.starter import StarterChoice, choose_rows
from rrs_jax.data.voices import draw_voice
from rrs_jax.errors import exit_status
from rrs_jax.files import write_json
from rrs_jax.frozen.audio_bank import AudioBank, make_audio_bank
from rrs_jax.generate import Generator, Prompt, SamplingConfig
from rrs_jax.inputs.batching import collate
from rrs_jax.inputs.processor import Processor
from rrs_jax.mini.model import ensure_model
from rrs_jax.weights.load import load_weights

ANSWER_TOKENS = 48
BATCH = 8
REPEAT = "Repeat the question in the audio."
ANSWER = "Answer the question in the audio."


def measure(model: nnx.Module, processor: Processor, questions: Sequence[str], bank: AudioBank) -> dict:
    """Returns the measures of the module's docstring, rounded to 0.1; clip i of the bank is question i."""
    everything = range(len(questions))
    written = _generate(model, processor, bank, [(question, []) for question in questions])
    repeated = _generate(model, processor, bank, [(REPEAT, [i]) for i in everything])
    answered = _generate(model, processor, bank, [(ANSWER, [i]) for i in everything])
    own = _score(model, processor, bank, everything, written)
    other = _score(model, processor, bank, np.roll(everything, 1), written)
    texts = [[processor.decode(tokens) for tokens in group] for group in (written, repeated, answered)]
    errors = sum(changed_words(question, text) for question, text in zip(questions, texts[1], strict=True))
    f1 = [word_f1(heard.split(), read.split()) for read, heard in zip(texts[0], texts[2], strict=True)]
    return {
        "questions": len(questions),
        "agreement": _percent(own["all"]),
        "agreement_first_five": _percent(own["first_five"]),
        "shuffled_agreement": _percent(other["all"]),
        "shuffled_agreement_first_five": _percent(other["first_five"]),
        "likelihood_ratio": _percent(np.mean(own["likelihood"] > other["likelihood"])),
        "word_errors": _percent(errors / sum(len(question.split()) for question in questions)),
        "answer_f1": _percent(np.mean(f1)),
        "examples": [
            {"question": question, "repeated": repeated, "answer": answer}
            for question, repeated, answer in zip(questions[:6], texts[1], texts[2], strict=False)
        ],
    }


def load_mini(questions: Sequence[str], dtype: str) -> tuple[nnx.Module, Processor, AudioBank]:
    """Loads the mini in `dtype` and encodes the questions' speech; clip i of the bank is question i."""
    folder = ensure_model("mini")
    processor = Processor.from_folder(folder)
    model = load_weights(folder, dtype=jnp.dtype(dtype))
    clips = speak_all([(question, draw_voice(question, 0)) for question in questions])
    return model, processor, make_audio_bank(model, processor.mel, [p for p, _ in clips], batch_size=BATCH)


def word_f1(expected: list[str], found: list[str]) -> float:
    """Returns the F1 of two lists of words, 0 to 1."""
    common = sum((Counter(expected) & Counter(found)).values())
    return 2 * common / (len(expected) + len(found)) if common else 0.0


def _generate(
    model, processor: Processor, bank: AudioBank, prompts: list[tuple[str, list[int]]]
) -> list[list[int]]:
    sampling = SamplingConfig(max_new_tokens=ANSWER_TOKENS, greedy=True)
    generator = Generator(model, sampling, eos_token_ids=processor.eos_token_ids, batch_size=2 * BATCH)
    answers: dict[int, list[int]] = {}
    requests = []
    for key, (text, clips) in enumerate(prompts):
        offsets, counts = bank.clips(clips)
        requests.append(Prompt(key=key, row=(processor.encode(text, counts), offsets, counts)))
    generator.generate(requests, bank.array, answers.__setitem__)
    return [answers[key] for key in range(len(prompts))]


def _score(
    model, processor: Processor, bank: AudioBank, clips: Sequence[int], answers: list[list[int]]
) -> dict:
    """Returns agreement and mean log-likelihood of the written answers behind the heard questions."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def score(state, array, batch, positions, targets):
        model = nnx.merge(graphdef, state)
        hidden = jnp.take_along_axis(model.hidden_states(batch, array), positions[..., None], axis=1)
        logits = model.logits(hidden)
        return (
            logits.argmax(-1) == targets,
            jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0],
        )

    prompts = []
    for clip in clips:
        offsets, counts = bank.clips([int(clip)])
        prompts.append((processor.encode(ANSWER, counts), offsets, counts))
    length = -(-max(len(ids) for ids, _, _ in prompts) // 8) * 8 + ANSWER_TOKENS
    mask = np.array([[n < len(answer) for n in range(ANSWER_TOKENS)] for answer in answers])
    targets = np.array([(answer + [0] * ANSWER_TOKENS)[:ANSWER_TOKENS] for answer in answers], np.int32)
    starts = np.array([len(ids) for ids, _, _ in prompts])
    positions = (starts[:, None] - 1 + np.arange(ANSWER_TOKENS)).astype(np.int32)
    rows = [([*ids, *answer], *clip) for (ids, *clip), answer in zip(prompts, answers, strict=True)]
    hits, likelihoods = np.zeros(mask.shape, bool), np.zeros(mask.shape)
    for start in range(0, len(rows), BATCH):
        chosen = np.minimum(np.arange(start, start + BATCH), len(rows) - 1)
        batch = collate([rows[i] for i in chosen], length, processor.audio_token_id)
        hits[chosen], likelihoods[chosen] = score(
            state, bank.array, batch, positions[chosen], targets[chosen]
        )
    return {
        "all": hits[mask].mean(),
        "first_five": hits[:, :5][mask[:, :5]].mean(),
        "likelihood": (likelihoods * mask).sum(1) / np.maximum(mask.sum(1), 1),
    }


def _percent(share: float) -> float:
    return round(100 * float(share), 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after one sentence on standard error for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m rrs_jax.mini.measure", description="How well the mini hears."
    )
    add = parser.add_argument
    add("--questions", type=int, default=60, help="starter questions to ask")
    add("--out", metavar="FILE", help="JSON file for the measures")
    add("--measure_dtype", default="float32", help="number type of the weights: float32 or bfloat16")
    options = parser.parse_args(with_home(arguments))
    with exit_status() as status:
        run(options)
    return status.code


def run(options: argparse.Namespace) -> None:
    """Prints the measures, and writes them where that is asked for."""
    rows = [row for row in choose_rows(StarterChoice("eval")) if row["label"] == "benign"]
    rows += [row for row in choose_rows(StarterChoice("train")) if row["label"] == "benign"]
    questions = [row["question"] for row in rows][: options.questions]
    model, processor, bank = load_mini(questions, options.measure_dtype)
    measures = measure(model, processor, questions, bank)
    print(json.dumps(measures, indent=2))
    if options.out:
        write_json(Path(options.out), measures)


if __name__ == "__main__":
    sys.exit(main())
