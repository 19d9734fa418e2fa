"""Measures how well a small model hears.

    python -m rrs_jax.mini.measure --model=small --questions=300 --out=measures.json

The model is `mini`, `small`, a Hugging Face folder or a hub id. The questions are the harmless ones of the
starter set, which no bridge is trained on. The written question's own greedy answer is the reference for what
is heard:

- `agreement`, `agreement_first_five`: percent of the answer's tokens that come first when the question is
  heard, teacher-forced; `shuffled_*` the same with another question's clip.
- `likelihood_ratio`: percent of answers likelier with their own clip than with another's.
- `word_errors`: percent of words wrong when the model repeats the question.
- `answer_f1`: mean word F1, in percent, between the answers to the heard and to the written question.

`ci95` has each measure's 95 % interval over questions.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rrs_jax.config.kinds import integer
from rrs_jax.data.questions import changed_words
from rrs_jax.data.starter import StarterChoice, choose_rows
from rrs_jax.evaluate.rates import bootstrap, interval
from rrs_jax.generate import Generator, Prompt, SamplingConfig
from rrs_jax.inputs.batching import collate
from rrs_jax.mini.heard_model import BATCH, HeardModel, command_parser, load_heard, run_command

ANSWER_TOKENS = 48
REPEAT = "Repeat the question in the audio."
ANSWER = "Answer the question in the audio."


def measure(heard: HeardModel, questions: Sequence[str]) -> dict:
    """Returns the measures of the module's docstring, rounded to 0.1; clip i of the bank is question i."""
    everything = range(len(questions))
    written = generate(heard, [(question, []) for question in questions])
    repeated = generate(heard, [(REPEAT, [i]) for i in everything])
    answered = generate(heard, [(ANSWER, [i]) for i in everything])
    own = _score(heard, everything, written)
    other = _score(heard, np.roll(everything, 1), written)
    read, repeats, answers = (
        [heard.processor.decode(tokens) for tokens in group] for group in (written, repeated, answered)
    )
    one = np.ones(len(questions))
    wrong = [changed_words(question, text) for question, text in zip(questions, repeats, strict=True)]
    f1 = [word_f1(text.split(), answer.split()) for text, answer in zip(read, answers, strict=True)]
    counts = {  # of each question: what is counted, out of how many
        "agreement": own["all"],
        "agreement_first_five": own["first_five"],
        "shuffled_agreement": other["all"],
        "shuffled_agreement_first_five": other["first_five"],
        "likelihood_ratio": (own["likelihood"] > other["likelihood"], one),
        "word_errors": (wrong, [len(question.split()) for question in questions]),
        "answer_f1": (f1, one),
    }
    found = {name: share_with_interval(*map(np.asarray, pair)) for name, pair in counts.items()}
    examples = zip(questions[:6], repeats, answers, strict=False)
    return {
        "questions": len(questions),
        **{name: share for name, (share, _) in found.items()},
        "ci95": {name: ci95 for name, (_, ci95) in found.items()},
        "examples": [dict(zip(("question", "repeated", "answer"), row, strict=True)) for row in examples],
    }


def share_with_interval(found: np.ndarray, total: np.ndarray) -> tuple[float, list[float]]:
    """Returns sum(found) / sum(total) over questions and its 95 % interval, in percent rounded to 0.1."""
    asked = total > 0
    # An answer may have more wrong words than its question has words, which Wilson's interval does not know.
    bounds = interval if np.all(found <= total) else bootstrap
    low, high = bounds(found[asked].astype(np.float64), total[asked].astype(np.float64), seed=0)
    return _percent(found.sum() / total.sum()), [_percent(low), _percent(high)]


def word_f1(expected: list[str], found: list[str]) -> float:
    """Returns the F1 of two lists of words, 0 to 1."""
    common = sum((Counter(expected) & Counter(found)).values())
    return 2 * common / (len(expected) + len(found)) if common else 0.0


def generate(
    heard: HeardModel, prompts: list[tuple[str, list[int]]], batch_size: int = 2 * BATCH
) -> list[list[int]]:
    """Returns the tokens of each prompt's greedy answer, ANSWER_TOKENS at most; a prompt is a text and its
    clips."""
    sampling = SamplingConfig(max_new_tokens=ANSWER_TOKENS, greedy=True)
    stops = heard.processor.eos_token_ids
    generator = Generator(heard.model, sampling, eos_token_ids=stops, batch_size=batch_size)
    answers: dict[int, list[int]] = {}
    requests = [Prompt(key=key, row=heard.prompt(*prompt)) for key, prompt in enumerate(prompts)]
    generator.generate(requests, heard.bank.array, answers.__setitem__)
    return [answers[key] for key in range(len(prompts))]


def _score(heard: HeardModel, clips: Sequence[int], answers: list[list[int]]) -> dict:
    """Returns agreement and mean log-likelihood of the written answers behind the heard questions.

    `all` and `first_five` are, question by question, the tokens that come first and all tokens.
    """
    graphdef, state = nnx.split(heard.model)

    @jax.jit
    def score(state, array, batch, positions, targets):
        model = nnx.merge(graphdef, state)
        hidden = jnp.take_along_axis(model.hidden_states(batch, array), positions[..., None], axis=1)
        logits = model.logits(hidden)
        return (
            logits.argmax(-1) == targets,
            jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0],
        )

    prompts = [heard.prompt(ANSWER, [int(clip)]) for clip in clips]
    length = -(-max(len(ids) for ids, _, _ in prompts) // 8) * 8 + ANSWER_TOKENS
    mask = np.array([[n < len(answer) for n in range(ANSWER_TOKENS)] for answer in answers])
    targets = np.array([(answer + [0] * ANSWER_TOKENS)[:ANSWER_TOKENS] for answer in answers], np.int32)
    starts = np.array([len(ids) for ids, _, _ in prompts])
    positions = (starts[:, None] - 1 + np.arange(ANSWER_TOKENS)).astype(np.int32)
    rows = [([*ids, *answer], *clip) for (ids, *clip), answer in zip(prompts, answers, strict=True)]
    hits, likelihoods = np.zeros(mask.shape, bool), np.zeros(mask.shape)
    for start in range(0, len(rows), BATCH):
        chosen = np.minimum(np.arange(start, start + BATCH), len(rows) - 1)
        batch = collate([rows[i] for i in chosen], length, heard.processor.audio_token_id)
        hits[chosen], likelihoods[chosen] = score(
            state, heard.bank.array, batch, positions[chosen], targets[chosen]
        )
    hits &= mask
    return {
        "all": (hits.sum(1), mask.sum(1)),
        "first_five": (hits[:, :5].sum(1), mask[:, :5].sum(1)),
        "likelihood": (likelihoods * mask).sum(1) / np.maximum(mask.sum(1), 1),
    }


def _percent(share: float) -> float:
    return round(100 * float(share), 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after one sentence on standard error for a user's mistake."""
    parser = command_parser("measure", "How well a small model hears.")
    questions = integer(1, len(harmless_questions()))
    parser.add_argument(
        "--questions",
        type=questions.argument,
        default=60,
        help=f"starter questions to ask, {questions.wants}",
    )
    return run_command(parser, figures, arguments)


def figures(options: argparse.Namespace) -> dict:
    """Returns the measures of the model that was asked for."""
    questions = harmless_questions()[: options.questions]
    return measure(load_heard(options, questions), questions)


def harmless_questions() -> list[str]:
    """Returns the starter set's 420 harmless rewrites, those for evaluation first."""
    rows = [*choose_rows(StarterChoice("eval")), *choose_rows(StarterChoice("train"))]
    return [row["question"] for row in rows if row["label"] == "benign"]


if __name__ == "__main__":
    sys.exit(main())
