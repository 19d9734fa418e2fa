"""The figures of a bridge along its training, for `bridge_curve.py`, which says what each one is."""

import argparse
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from rrs_jax.config.prompts import PROMPT_T, written_prompt
from rrs_jax.data.questions import changed_words
from rrs_jax.data.speech import speak_all
from rrs_jax.data.starter import StarterChoice, choose_rows
from rrs_jax.data.voices import draw_voice
from rrs_jax.evaluate.judges.judge import Phrases
from rrs_jax.frozen.audio_bank import empty_audio_bank, make_audio_bank
from rrs_jax.mini.bridge_losses import state_cosines
from rrs_jax.mini.heard_model import HeardModel
from rrs_jax.mini.measure import REPEAT, generate, harmless_questions, share_with_interval
from rrs_jax.mini.separability import (
    chosen_inside,
    counts_by_pair,
    hidden_features,
    probed_layers,
    share_over_pairs,
)
from rrs_jax.mini.train_bridge import Material


def compare(heard: np.ndarray, read: np.ndarray) -> dict[str, list[float]]:
    """Compares states (places, N, D), of which 2 i and 2 i + 1 are twins.

    Returns for each place `told`, `told_of_all`, `kept` and `apart` of `bridge_curve.py`.
    """
    cosines = np.asarray(state_cosines(jnp.asarray(heard), jnp.asarray(read)))
    own = np.arange(cosines.shape[1])
    told = cosines[:, own, own] > cosines[:, own, own ^ 1]
    spread = read.std(1, keepdims=True) + 1e-6
    of_heard, of_read = ((states[:, ::2] - states[:, 1::2]) / spread for states in (heard, read))
    squares = (of_read**2).sum((1, 2))
    random = (
        own.size * read.shape[-1]
    )  # of as many pairs: two of them differ by twice the variance, which is 1
    measures = {
        "told": 100 * told.mean(1),
        "told_of_all": 100 * (cosines.argmax(-1) == own).mean(1),
        "kept": (of_heard * of_read).sum((1, 2)) / squares,
        "apart": squares / random,
    }
    return {name: np.round(values.astype(float), 3).tolist() for name, values in measures.items()}


class Figures:
    """The figures of a line, of a bridge or of the decoder that reads.

    Attributes:
      twins: harmful question, rewrite, harmful question, ...
      copies: everyday question, copy, question, ...
    """

    def __init__(self, material: Material, held: Sequence[tuple[str, str]], asked: argparse.Namespace):
        rows = choose_rows(StarterChoice("train", asked.pairs_per_category))
        self.processor, self.bridge, self.batch_size = material.processor, material.bridge, asked.rows_at_once
        self.twins, self.pairs = [row["question"] for row in rows], [row["pair_id"] for row in rows]
        self.harmful = np.array([row["label"] == "harmful" for row in rows])
        self.copies = [text for pair in held for text in pair]
        self.harmless = harmless_questions()[: asked.questions]
        spoken = [*self.twins, *self.copies, *self.harmless]
        self.clips = [path for path, _ in speak_all([(text, draw_voice(text, 0)) for text in spoken])]
        self.model = self.bridge.model(self.bridge.base, self.bridge.initial)  # reads as every other one
        self.layers = probed_layers(self.model.config.text.num_hidden_layers)
        self.silent = HeardModel(self.model, self.processor, empty_audio_bank(self.model))
        self.read = self._states(self.silent, self._written(self.silent, [*self.twins, *self.copies]))

    def answers_read(self) -> list[str]:
        """Returns the answers to the twins that are read."""
        return self._answers(self.silent, [(written_prompt(text, PROMPT_T), []) for text in self.twins])

    def of_reading(self, answers: Sequence[str]) -> dict[str, object]:
        """Returns the figures of the decoder that reads, from what `answers_read` returns."""
        read = self.read[: len(self.twins)]
        probes = {"probe": self._probe(read[:, 0]), "probe_clip": self._probe(read[:, 1])}
        return {"step": 0} | probes | {"refused": self._refused(answers)}

    def hear(self, trainable: nnx.State) -> dict[str, object]:
        """Returns what `of_hearing` takes, which works on the host."""
        model = self.bridge.model(self.bridge.base, trainable)
        bank = make_audio_bank(model, self.processor.mel, self.clips, batch_size=self.batch_size)
        heard, paired = HeardModel(model, self.processor, bank), len(self.twins) + len(self.copies)
        repeated = [*range(len(self.twins)), *range(paired, len(self.clips))]
        asked = [(REPEAT, [i]) for i in repeated] + [(PROMPT_T, [i]) for i in range(len(self.twins))]
        texts = self._answers(heard, asked)
        repeats, answers = texts[: len(repeated)], texts[len(repeated) :]
        prompts = [heard.prompt(PROMPT_T, [i]) for i in range(paired)]
        states = self._states(heard, prompts + self._written(heard, repeats[: len(self.twins)]))
        return {
            "repeats": repeats,
            "answers": answers,
            "states": states[:paired],
            "transcripts": states[paired:],
        }

    def of_hearing(self, repeats, answers, states: np.ndarray, transcripts: np.ndarray) -> dict[str, object]:
        """Returns the figures of a bridge, from what `hear` returns."""
        said = [*self.twins, *self.harmless]
        wrong = np.array([changed_words(text, repeat) for text, repeat in zip(said, repeats, strict=True)])
        words = np.array([len(text.split()) for text in said])
        count = len(self.twins)
        faultless = np.repeat(wrong[:count].reshape(-1, 2).sum(1) == 0, 2)
        right = chosen_inside(states[:count, 0], self.harmful, self.pairs)
        faultless_counts = counts_by_pair(right[faultless], np.array(self.pairs)[faultless].tolist())

        def layers(chosen: slice) -> dict[str, object]:
            return compare(*(array[chosen, 0].swapaxes(0, 1) for array in (states, self.read)))

        return {
            "words_wrong": _share(wrong[count:], words[count:]),
            "twins_words_wrong": _share(wrong[:count], words[:count]),
            "probe": share_over_pairs(counts_by_pair(right, self.pairs)),
            "probe_clip": self._probe(states[:count, 1]),
            "probe_transcript": self._probe(transcripts[:, 0]),
            "probe_right_words": share_over_pairs(faultless_counts) if faultless_counts else None,
            "pairs_with_right_words": len(faultless_counts),
            "layers": self.layers,
            "twins": layers(slice(count)),
            "copies": layers(slice(count, None)),
            "refused": self._refused(answers),
        }

    def _probe(self, features: np.ndarray) -> dict[str, object]:
        right = chosen_inside(features, self.harmful, self.pairs)
        return share_over_pairs(counts_by_pair(right, self.pairs))

    def _states(self, heard: HeardModel, prompts: list) -> np.ndarray:
        bank, token = heard.bank.array, self.processor.audio_token_id
        return hidden_features(heard.model, prompts, bank, token, self.batch_size)

    @staticmethod
    def _written(heard: HeardModel, texts: Sequence[str]) -> list:
        return [heard.prompt(written_prompt(text, PROMPT_T)) for text in texts]

    def _answers(self, heard: HeardModel, prompts: list[tuple[str, list[int]]]) -> list[str]:
        return [self.processor.decode(tokens) for tokens in generate(heard, prompts, self.batch_size)]

    def _refused(self, answers: Sequence[str]) -> dict[str, float]:
        judge, labels = Phrases(), np.where(self.harmful, "harmful", "benign")
        asked = zip(self.twins, answers, labels, strict=True)
        refused = np.array([judge.judge(*one).refusal for one in asked])
        shares = {"harmful": refused[self.harmful], "rewrites": refused[~self.harmful]}
        return {name: round(100 * float(chosen.mean()), 1) for name, chosen in shares.items()}


def table(lines: Sequence[dict]) -> str:
    """Returns Markdown of the lines; `told` and `kept` behind the layer in the middle."""
    head = ("row", "steps", "words wrong", "probe", "over the clip", "transcript", "right words",
            "twins told", "kept", "copies told", "kept", "refused", "rewrites")  # fmt: skip
    rows = [head, ("---", *["---:"] * (len(head) - 1))]
    for line in lines:
        cells: list[object] = [f"`{line['row']}`", line["step"], line.get("words_wrong", {}).get("percent")]
        for probe in ("probe", "probe_clip", "probe_transcript", "probe_right_words"):
            cells.append((line.get(probe) or {}).get("right"))
        for pairs in ("twins", "copies"):
            for name, digits in (("told", 1), ("kept", 2)):
                behind = line.get(pairs, {}).get(name)
                cells.append(behind and round(behind[len(behind) // 2], digits))
        rows.append((*cells, *line["refused"].values()))
    return "\n".join(f"| {' | '.join('' if c is None else str(c) for c in row)} |" for row in rows)


def _share(found: np.ndarray, total: np.ndarray) -> dict[str, object]:
    return dict(zip(("percent", "ci95"), share_with_interval(found, total), strict=True))
