"""Every other loss against the same written down in torch with PEFT, float64: tokens, hinge, kept samples,
positions."""

import numpy as np
import pytest
import torch

from helpers.clip_prompts import prompts, torch_inputs
from helpers.dense_step import compare
from rrs_jax.config import default_config
from rrs_jax.config.prompts import PROMPT_POOL
from rrs_jax.strategies import rrs
from rrs_jax.strategies.extracted import Extracted
from rrs_jax.strategies.rrs import RRS
from rrs_jax.strategies.samples import Samples
from rrs_jax.strategies.sft import SFT
from rrs_jax.strategies.variants.hinge import Hinged
from rrs_jax.strategies.variants.keep import Kept
from rrs_jax.strategies.variants.positions import SeveralPositions
from rrs_jax.strategies.variants.variant import Wrapper
from rrs_jax.strategies.variants.weights import Weighted

TOKENS = (40, 7, 99)  # refusal tokens
LABELS = ("harmful", "benign", "harmful", "benign")
SAMPLES = Samples([{"label": label, "pair_id": i // 2, "category": "a"} for i, label in enumerate(LABELS)])
TAILS = [[11, 12], [13], [], [14, 15]]


@pytest.fixture
def asked():
    return prompts(np.random.default_rng(5))


def with_tails(rows, tails):
    return [[*row, *tail] for row, tail in zip(rows, tails, strict=True)]


def draw(*shape):
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def log_odds(logits):
    """Returns the log-odds of any refusal token against all others."""
    chance = torch.softmax(logits, -1)[list(TOKENS)].sum()
    return torch.log(chance) - torch.log1p(-chance)


def frozen_states(reference, rows, clips) -> np.ndarray:
    """Final states of transformers at each row's last token, (4, 48)."""
    with torch.no_grad():
        states = reference(**torch_inputs(rows, clips, "right"), output_hidden_states=True).hidden_states[-1]
    return np.stack([states[r, len(row) - 1].numpy() for r, row in enumerate(rows)])


class Drawn(Wrapper):
    """A step in which the four samples drew these prompts of the pool."""

    def __init__(self, inner, drawn):
        super().__init__(inner)
        self.drawn = np.array(drawn)

    def examples(self, indices, prompts=None, tails=None):
        return super().examples(indices, self.drawn[indices], tails)


def test_kept_samples_have_their_own_state_under_the_prompt_drawn(
    reference, folder, clips, monkeypatch, asked
):
    rows, row_clips = asked
    targets, kept = draw(4, 48), draw(2, 3, 48) + 1
    weights, drawn = np.ones((4, 3), np.float32), np.array([1, 2.5, 1, 4], np.float32)
    weights[np.arange(4), [1, 0, 2, 1]] = drawn  # under the prompts that the samples draw
    place = np.array([[-1, -1, -1], [0, 1, 2], [-1, -1, -1], [3, 4, 5]], np.int32)
    strategy = Drawn(Weighted(Kept(RRS(targets), kept.reshape(6, 48), place), weights), [1, 0, 2, 1])
    wanted = torch.tensor(np.stack([targets[0], kept[0, 0], targets[2], kept[1, 1]]), dtype=torch.float64)

    def expected(hidden, _):
        last = torch.stack([hidden[r, len(row) - 1] for r, row in enumerate(rows)])
        return ((last - wanted) ** 2).sum(1) * torch.tensor(drawn)

    compare(strategy, expected, rows, row_clips, reference, folder, clips, monkeypatch)


def test_a_written_question_keeps_the_state_of_the_frozen_model(reference, folder, clips, monkeypatch, asked):
    """Row 2 has no clip: a harmful question in writing. Its target is transformers' own state, so that the
    adapters alone make its loss and gradients; the heard rows move."""
    rows, row_clips = asked
    frozen = frozen_states(reference, rows, clips)
    config = default_config()
    config.train.kept_text_share = 0.5
    bare = len(PROMPT_POOL)
    staying = np.zeros((4, 2, 48), np.float32)
    staying[2, 0] = frozen[2]
    arrays = {"harmful": frozen[::2], "harmful_refusal": frozen[::2], "benign": frozen[1::2]}
    arrays |= {"safety_vector": draw(48), "head_row": draw(48), "staying": staying}
    built = rrs.build(Extracted(arrays, {}), SAMPLES, config)
    moved = frozen + np.array([1, -1, 0, -1])[:, None] * draw(48)
    wanted = torch.tensor(moved, dtype=torch.float64)

    def expected(hidden, _):
        last = torch.stack([hidden[r, len(row) - 1] for r, row in enumerate(rows)])
        return ((last - wanted) ** 2).sum(1)

    strategy = Drawn(built, [3, 0, bare, 1])
    compare(strategy, expected, rows, row_clips, reference, folder, clips, monkeypatch)


def test_own_amounts_and_overlap_weights(reference, folder, clips, monkeypatch, asked):
    """From the frozen model's states to losses and gradients, by torch in float64."""
    rows, row_clips = asked
    frozen = frozen_states(reference, rows, clips)
    frozen[3] = 0.8 * frozen[0] + 0.2 * frozen[3]  # alike, of two pairs
    refused, vector = frozen[::2] + draw(2, 48), draw(48)
    config = default_config()
    config.rrs.amount, config.rrs.overlap_weight = "own", 0.5
    arrays = {"harmful": frozen[::2], "harmful_refusal": refused, "benign": frozen[1::2]}
    built = rrs.build(Extracted(arrays | {"safety_vector": vector, "head_row": vector}, {}), SAMPLES, config)

    states, unit = torch.tensor(frozen).double(), torch.tensor(vector).double()
    unit = unit / unit.norm()
    high = (torch.tensor(refused).double() @ unit).mean()  # the median of two
    low = torch.quantile(states[1::2] @ unit, 0.95)
    along = states @ unit
    steps = [torch.relu(high - along[0]), -torch.relu(along[1] - low)]
    steps += [torch.relu(high - along[2]), -torch.relu(along[3] - low)]
    assert [float(step) != 0 for step in steps].count(True) >= 2
    wanted = states + torch.stack(steps)[:, None] * unit
    centred = states - states.mean(0)
    likeness = [torch.cosine_similarity(centred[i], centred[j], dim=0) for i, j in ((0, 3), (2, 1))]
    weights = torch.ones(4, dtype=torch.float64)
    weights[[0, 2]] = 1 - 0.5 * torch.relu(torch.stack(likeness))
    assert weights[0] < 0.9

    def expected(hidden, _):
        last = torch.stack([hidden[r, len(row) - 1] for r, row in enumerate(rows)])
        return ((last - wanted) ** 2).sum(1) * weights

    strategy = Drawn(built, [3, 0, 2, 1])
    compare(strategy, expected, rows, row_clips, reference, folder, clips, monkeypatch)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_hinge(reference, folder, clips, monkeypatch, asked, reduction):
    """One hinged row above its margin, and one far below, of which nothing is left."""
    rows, row_clips = asked
    targets, scale = draw(4, 48), np.array([0, 1.7, 0, 0.6], np.float32)
    for margin, vanishes in ((30.0, False), (-30.0, True)):
        strategy = Hinged(RRS(targets, reduction), TOKENS, margin, scale)
        seen = []

        def expected(hidden, head, margin=margin, seen=seen):
            losses = []
            for r, row in enumerate(rows):
                state = hidden[r, len(row) - 1]
                squares = (state - torch.tensor(targets[r], dtype=torch.float64)) ** 2
                loss = squares.sum() if reduction == "sum" else squares.mean()
                if scale[r]:
                    pull = torch.relu(log_odds(head @ state) + margin) * float(scale[r])
                    loss = pull**2 / (1 if reduction == "sum" else 48)
                    seen.append(loss.item() == 0)
                losses.append(loss)
            return torch.stack(losses)

        compare(strategy, expected, rows, row_clips, reference, folder, clips, monkeypatch)
        assert seen == [vanishes, vanishes]


def test_several_positions(reference, folder, clips, monkeypatch, asked):
    """Tails of unequal length, one of them empty; the first position of one row is hinged."""
    rows, row_clips = asked
    whole = with_tails(rows, TAILS)
    targets = draw(4, 3, 48)
    real = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]], bool)
    scale = np.array([0, 1.1, 0, 0], np.float32)
    several = SeveralPositions(RRS(targets, "mean"), [[tail] for tail in TAILS], real)
    strategy = Hinged(several, TOKENS, 4.0, scale)

    def expected(hidden, head):
        losses = []
        for r, row in enumerate(rows):
            each = []
            for k in range(1 + len(TAILS[r])):
                state = hidden[r, len(row) - 1 + k]
                loss = ((state - torch.tensor(targets[r, k], dtype=torch.float64)) ** 2).mean()
                if r == 1 and k == 0:
                    loss = (torch.relu(log_odds(head @ state) + 4.0) * 1.1) ** 2 / 48
                each.append(loss)
            losses.append(torch.stack(each).mean())
        return torch.stack(losses)

    compare(strategy, expected, whole, row_clips, reference, folder, clips, monkeypatch)


@pytest.mark.parametrize(
    "answers",
    [
        [[40], [5], [99], [7]],
        [[40, 41, 42], [5, 6], [7], [8, 9, 10, 11]],
        [list(range(30, 50)), [5, 6], [7, 1, 2], list(range(60, 77))],  # more than a chunk of positions
    ],
)
def test_cross_entropy_on_the_answer_alone(reference, folder, clips, monkeypatch, asked, answers):
    """Prefills of unequal length before the answers are not learned."""
    rows, row_clips = asked
    prefills = [[], [21], [], [22, 23, 24]]
    strategy = SFT(answers, [[prefill] for prefill in prefills])
    whole = with_tails(rows, [tails[0] for tails in strategy.tails])
    assert [len(row) for row in whole] == [
        len(row) + len(prefill) + len(answer) - 1
        for row, prefill, answer in zip(rows, prefills, answers, strict=True)
    ]

    def expected(hidden, head):
        losses = []
        for r, row in enumerate(rows):
            first = len(row) + len(prefills[r]) - 1
            logits = hidden[r, first : first + len(answers[r])] @ head.T
            losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(answers[r])))
        return torch.stack(losses)

    compare(strategy, expected, whole, row_clips, reference, folder, clips, monkeypatch)
