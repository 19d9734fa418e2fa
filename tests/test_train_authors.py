"""The authors' settings against their program as its description says it, from clips to the third update."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import soundfile
import torch
import transformers

import rrs_jax
from helpers import authors_program
from helpers.authors_program import AuthorsProgram, torch_inputs
from helpers.dropout_kernels import interpret_kernels
from helpers.tensors import relative_error
from rrs_jax import equations
from rrs_jax.config.prompts import PROMPT_POOL, PROMPT_REFUSAL, PROMPT_T
from rrs_jax.config.training import OptimiserConfig
from rrs_jax.distributed.mesh import make_mesh
from rrs_jax.frozen.audio_bank import make_audio_bank
from rrs_jax.inputs.batching import collate
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.models.stack import layer_at
from rrs_jax.strategies.rrs import RRS
from rrs_jax.testing import write_qwen2_5_omni, write_qwen2_audio
from rrs_jax.train import step as step_module
from rrs_jax.train.step import Rows, TrainState, TrainStep

LORA = LoRAConfig(rank=16, alpha=4.0, targets=None, dropout=0.1)
SETTINGS = OptimiserConfig(  # a higher rate than theirs, so that float32 shows how far the weights moved
    learning_rate=2e-3, schedule="linear", clip_norm=1.0, weight_decay=1e-3, b1=0.9, b2=0.98
)
UPDATES, MICRO_BATCH, SEED = 3, 4, 5
QUESTIONS = 8
HARMFUL = np.arange(QUESTIONS) % 2 == 0
MODELS = {
    "qwen2-audio": (write_qwen2_audio, {}, transformers.Qwen2AudioForConditionalGeneration),
    "omni": (
        write_qwen2_5_omni, {"thinker": True}, transformers.Qwen2_5OmniThinkerForConditionalGeneration,
    ),
}  # fmt: skip


class Questions:
    """Eight spoken questions, as our program and theirs see them.

    Attributes:
      model: ours, with adapters at their start.
      reference: transformers'.
      ours, theirs: targets of equation 12 by either program, (8, D).
    """

    def __init__(self, kind: str, folder, clips):
        write, options, model_class = MODELS[kind]
        write(folder, **options)
        self.reference = model_class.from_pretrained(folder).eval()
        loaded = rrs_jax.load_model(folder, lora=LORA, mesh=make_mesh(devices=jax.devices()[:1]), seed=1)
        self.model, self.processor = loaded.module, loaded.processor
        self.bank = make_audio_bank(self.model, self.processor.mel, clips)
        extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
        waveforms = [soundfile.read(clip, dtype="float32")[0] for clip in clips]
        self.features = extractor(
            waveforms, sampling_rate=16_000, return_attention_mask=True, return_tensors="pt"
        )
        rows = range(QUESTIONS)
        texts = (PROMPT_T, PROMPT_REFUSAL, *PROMPT_POOL)
        self.length = max(len(self.encoded(row, text)[0]) for row in rows for text in texts) + 3
        token = self.processor.token_id("I")
        self.ours = self._our_targets(token)
        self.theirs = self._their_targets(token)

    def encoded(self, row: int, text: str):
        offsets, counts = self.bank.clips([row])
        return self.processor.encode(text, counts), offsets, counts

    def inputs(self, rows, texts):
        """Our batch of these questions, each with its text, and theirs."""
        encoded = [self.encoded(row, text) for row, text in zip(rows, texts, strict=True)]
        batch = collate(encoded, self.length, self.model.config.audio_token_id)
        features = {name: self.features[name][list(rows)] for name in self.features}
        return batch, torch_inputs(batch.input_ids, batch.lengths, features)

    def _our_targets(self, token: int) -> np.ndarray:
        states = [
            np.asarray(self.model.representations(self.inputs(range(8), [text] * 8)[0], self.bank.array))
            for text in (PROMPT_T, PROMPT_REFUSAL)
        ]
        head, ids = self.model.output_head(), np.array([token])
        vector = equations.safety_vector(
            states[1][HARMFUL], states[0][~HARMFUL], head, ids, 51, "authors", "float32"
        )
        return equations.targets(states[0], HARMFUL, np.asarray(vector.vector), "float32")

    def _their_targets(self, token: int) -> np.ndarray:
        program = AuthorsProgram(self.reference, adapters_of(self.model))
        with torch.no_grad():
            plain, refused = (
                program.states(self.inputs(range(8), [text] * 8)[1]).numpy()
                for text in (PROMPT_T, PROMPT_REFUSAL)
            )
        change = np.float32(refused[HARMFUL].mean(axis=0) - plain[~HARMFUL].mean(axis=0))
        product = (self.reference.lm_head.weight[token].detach().numpy() * change).astype(np.float16)
        change[product < 0] = 0
        assert 0 < (change == 0).sum() < len(change)
        return np.where(HARMFUL[:, None], plain + change, plain - change)


@pytest.fixture(scope="module", params=MODELS)
def questions(request, tmp_path_factory, sound_files):
    return Questions(request.param, tmp_path_factory.mktemp("model"), sound_files)


def adapters_of(model) -> dict:
    """Every A (R, in) and B (out, R), as torch lays them out."""
    return {
        (linear, letter, layer): np.asarray(getattr(model.lora.pair(linear), name)[...][layer]).T
        for linear in authors_program.LINEARS
        for letter, name in (("A", "lora_a"), ("B", "lora_b"))
        for layer in range(model.config.text.num_hidden_layers)
    }


def drawn(update: int) -> tuple[np.ndarray, list[str]]:
    """An update's questions in their order, and each one's prompt: none comes twice in a micro-batch."""
    random = np.random.default_rng(update)
    prompts = equations.draw_prompts(random, QUESTIONS, len(PROMPT_POOL), MICRO_BATCH)
    return random.permutation(QUESTIONS), [PROMPT_POOL[place] for place in prompts]


def our_rows(questions: Questions, step: TrainStep, update: int, parts: int) -> list[Rows]:
    order, texts = drawn(update)
    batch, _ = questions.inputs(order, texts)
    rows = Rows(batch, step.strategy.examples(order), HARMFUL[order], np.ones(QUESTIONS, np.float32))
    cut = np.split(np.arange(QUESTIONS), parts)
    return [step.place(jax.tree.map(lambda array: array[chosen], rows)) for chosen in cut]  # noqa: B023


def their_rows(questions: Questions, update: int, parts: int) -> list[tuple]:
    """Two micro-batches with the masks that our step draws, in one part of eight rows or in two of four."""
    order, texts = drawn(update)
    cuts = np.split(np.arange(QUESTIONS), QUESTIONS // MICRO_BATCH)
    masks = [our_masks(questions, update, part, QUESTIONS // parts) for part in range(parts)]
    whole = {place: np.concatenate([one[place] for one in masks]) for place in masks[0]}
    found = []
    for chosen in cuts:
        _, inputs = questions.inputs(order[chosen], [texts[i] for i in chosen])
        own = {place: mask[chosen] for place, mask in whole.items()}
        found.append((inputs, torch.tensor(questions.theirs[order[chosen]]), own))
    return found


def our_masks(questions: Questions, update: int, part: int, rows: int) -> dict:
    """The masks of a part, (rows, T, I) by linear and layer."""
    decoder = questions.model.language_model
    layers, released = decoder.config.num_hidden_layers, decoder.layer_class.released
    key = step_module._dropout_key(jnp.int32(SEED), jnp.int32(update), part)
    dropout = questions.model.lora.draw_dropout(key, released, (layers, rows, questions.length))
    widths = decoder.config.linears()
    return {
        (linear, layer): np.asarray(
            layer_at(dropout, layer).mask(dropout.numbers((linear,))[0], widths[linear][0])
        )
        for linear in authors_program.LINEARS
        for layer in range(layers)
    }


def moved(state: TrainState) -> TrainState:
    """A state away from PEFT's start, where B is zero and with it half of the gradients and the penalty."""
    rng = np.random.default_rng(7)
    return state.replace(
        lora=jax.tree.map(lambda x: x + jnp.asarray(rng.normal(size=x.shape) * 0.1, "float32"), state.lora)
    )


def test_targets(questions):
    assert relative_error(questions.ours, questions.theirs) < 1e-4


@pytest.mark.parametrize(
    "parts, remat, unroll, in_kernels",
    [
        (1, "dots", False, False),
        (2, "none", False, False),
        (1, "full", True, False),
        (2, "dots", False, True),
    ],
)
def test_loss_penalty_and_every_gradient(questions, monkeypatch, parts, remat, unroll, in_kernels):
    """With plain gradient descent of rate 1 our step's update is the gradient; also with the products that a
    GPU computes in kernels."""
    used = interpret_kernels(monkeypatch) if in_kernels else []
    sgd = optax.masked(optax.sgd(1.0), {"base": False, "lora": True})
    monkeypatch.setattr("rrs_jax.train.step.make_optimiser", lambda *_: sgd)
    config = OptimiserConfig(remat=remat, unroll=unroll)
    strategy, mesh = RRS(questions.ours, "mean"), make_mesh(devices=jax.devices()[:1])
    step = TrainStep(questions.model, strategy, config, mesh, 1, SEED)
    state = moved(step.init()).replace(step=jnp.int32(2))
    before = adapters_of(step.model(state))
    state, metrics, _ = step(state, questions.bank.array, our_rows(questions, step, 2, parts))
    after = adapters_of(step.model(state))
    assert bool(used) == in_kernels

    program = AuthorsProgram(questions.reference, before)
    loss, penalty, gradients = program.gradients(their_rows(questions, 2, parts))
    assert float(metrics.loss) == pytest.approx(loss, rel=1e-4)
    assert float(metrics.penalty) == pytest.approx(penalty, rel=1e-4)
    for key, gradient in gradients.items():
        assert relative_error(before[key] - after[key], gradient) < 1e-4, key
    unmasked = [(inputs, targets, {}) for inputs, targets, _ in their_rows(questions, 2, parts)]
    without = AuthorsProgram(questions.reference, before).gradients(unmasked)[2]
    data = ("down_proj", "A", 1), ("v_proj", "A", 0)
    assert all(relative_error(without[key], gradients[key]) > 1e-3 for key in data)  # the masks do something


def test_three_updates(questions):
    """AdamW with their betas and decay, the linear course, and clipping, which acts; two micro-batches.

    An update divides each gradient by its own size, so that one which is nearly 0 counts as much as all
    others: those below a ten-thousandth of their matrix's largest are left out.
    """
    strategy, mesh = RRS(questions.ours, "mean"), make_mesh(devices=jax.devices()[:1])
    step = TrainStep(questions.model, strategy, SETTINGS, mesh, UPDATES, SEED)
    state = moved(step.init())
    start = adapters_of(step.model(state))
    program, clear = AuthorsProgram(questions.reference, start), {key: True for key in start}
    program.start(SETTINGS.learning_rate, UPDATES)
    for update in range(UPDATES):
        state, metrics, _ = step(state, questions.bank.array, our_rows(questions, step, update, 2))
        loss, penalty, gradients = program.gradients(their_rows(questions, update, 2))
        norm = program.update()
        assert norm > authors_program.CLIP
        assert float(metrics.loss) == pytest.approx(loss, rel=1e-4)
        assert float(metrics.penalty) == pytest.approx(penalty, rel=1e-4)
        assert float(metrics.grad_norm) == pytest.approx(norm, rel=1e-4)
        now = adapters_of(step.model(state))
        for key, gradient in gradients.items():
            clear[key] &= abs(gradient) > 1e-4 * abs(gradient).max()
            assert clear[key].mean() > 0.99
            expected = program.parameters[key].detach().numpy() - start[key]
            found = now[key] - start[key]
            assert relative_error(found[clear[key]], expected[clear[key]]) < 1e-4, (update, key)
