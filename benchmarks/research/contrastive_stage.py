"""Whether a contrastive stage below RRS teaches a model to hear twins apart: the first test, before any rate.

    python benchmarks/research/contrastive_stage.py --model=small --dtype=bfloat16 --out=contrastive.jsonl

RRS moves apart what the states tell apart, and `small` hears a harmful question and its rewrite, which differ
in one to three words, apart at 75 % where it reads them at 91 %. DCR (arXiv 2603.03323) trains the layers up
to ℓ with the Circle loss (Sun et al. 2020) before it aligns the model, on written questions. Here adapters on
the layers below ℓ, half of the decoder, learn it on spoken twins beside t: batches of eight twins of the
starter set's training pairs, and the read copies of the same 16 questions. For a heard question and cosines s
of states behind ℓ at the prompt's last token, each less its kind's mean in the batch, the loss is

    log[1 + Σ_neg e^{γ [s+m]₊ (s-m)} · Σ_pos e^{-γ [1+m-s]₊ (s-1+m)}],   [·]₊ constant in the derivative

    positives    heard questions of the same label, and its own read copy
    negatives    heard questions of the other label, its twin first: its cosine is the highest

Negatives count by how alike they are (`twin_share`: the twin's part), positives by how unlike, so that a read
copy has next to no part (`copy_share`) until all questions of a label are alike. With `--copies=apart` it has
a summand of its own, the same logarithm with the read copy as the only positive.

Measured before and after, heard and read, behind ℓ, every third layer above it and the last one, on the 280
pairs of `eval` and `check` that nothing was trained on: the share that a linear probe tells right
(`rrs_jax.mini.separability`), cross-validated within these pairs (`unseen`) and fitted on the training pairs
(`carried`). `seen` is the probe cross-validated within the training pairs, behind ℓ. Rises are paired by
pair, with 95 % intervals over pairs. `--out` gets a JSON line before training and one a seed. The rate is one
at which the mini's loss on 28 training pairs fell from 63 to 36 in 24 steps.

Predictions, written down before any run on `small`, in points, means of three seeds:

1. The stage learns its own pairs: `seen`, heard, is at least 95 %, and the loss falls by more than half.
2. On unseen pairs heard, the cross-validated probe behind ℓ rises by fewer than 3, since 280 pairs teach the
   words and not the hearing; its interval holds 0. Behind the layers above it changes by fewer than 3 too.
3. The probe fitted on training pairs does not gain from it either: between 4 fewer and 3 more.
4. Read, the unseen probe behind ℓ changes by fewer than 3.
5. In the first steps a twin has 50 to 95 % of its negatives' weight, in the last ones less; a read copy has
   less than 1 % of the positives' in the first.
6. With `--copies=apart` 1 to 4 hold all the same.

Kept, and then tried below RRS with `lora.layers`=ℓ, if behind ℓ the heard probe rises on unseen pairs by at
least 3 with an interval above 0 and the read one falls by at most 2. Else dropped: no rate is measured.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from rrs_jax.config.kinds import choice, integer, number, with_home
from rrs_jax.config.prompts import PROMPT_T, evaluation_prompt
from rrs_jax.data.starter import StarterChoice, choose_rows
from rrs_jax.distributed.mesh import mesh_of
from rrs_jax.equations import weight_change
from rrs_jax.errors import UserError, exit_status
from rrs_jax.evaluate.compare import paired_block
from rrs_jax.files import append_jsonl
from rrs_jax.frozen.extraction import extract_all
from rrs_jax.inputs.batching import bucket_lengths, collate
from rrs_jax.mini import separability
from rrs_jax.mini.heard_model import HeardModel, command_parser, load_heard
from rrs_jax.models.lora import LoRAConfig, LoRAParam
from rrs_jax.models.stack import compiler_options
from rrs_jax.progress import Progress
from rrs_jax.run.context import with_lora

TWINS = 8  # pairs in a batch
KINDS = ("heard", "read")
SPLITS = ("train", "eval", "check")  # the first is trained on
Counts = dict[str, tuple[int, int]]  # of each pair's questions: told right, and all
EXTRACTED = 32  # prompts at once
FEW = 10  # first and last steps whose mean is told
TOLD = ("loss", "twin_share", "copy_share")
TINY = 1e-12  # squared length below which a state has no direction


class Questions(NamedTuple):
    """Questions with encoded prompts by kind (each N), labels bool (N,), and the names of their pairs."""

    prompts: dict[str, list]
    harmful: np.ndarray
    pairs: list[str]


class Masks(NamedTuple):
    """Which of heard and then read questions count for each heard one, bool (N, 2N): positives are those
    `alike` in label and its read copy; the twin is one of the negatives."""

    alike: np.ndarray
    copies: np.ndarray
    negatives: np.ndarray
    twins: np.ndarray


def masks(harmful: np.ndarray, pairs: Sequence[str]) -> Masks:
    """Returns the masks of N questions with labels bool (N,)."""
    same, itself = harmful[:, None] == harmful, np.eye(len(harmful), dtype=bool)
    twin = (np.array(pairs)[:, None] == np.array(pairs)) & ~same
    none = np.zeros_like(itself)
    halves = (same & ~itself, none), (none, itself), (~same, none), (twin, none)
    return Masks(*(np.concatenate(half, axis=1) for half in halves))


def twin_batches(pairs: Sequence[str], steps: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Yields for each step the places of eight pairs' questions in `pairs`, int (16,), twins side by side.

    A pass takes each pair once, in random order; those that fill no batch wait for the next pass.
    """
    places = defaultdict(list)
    for place, pair in enumerate(pairs):
        places[pair].append(place)
    twins = np.array(list(places.values()))
    count = len(twins) // TWINS
    for step in range(steps):
        if step % count == 0:
            order = random.permutation(len(twins))
        start = step % count * TWINS
        yield twins[order[start : start + TWINS]].ravel()


def centred_cosines(heard: jax.Array, read: jax.Array) -> jax.Array:
    """Cosines of N heard with N heard and then N read states, (N, 2N), each less its kind's mean; both
    (N, D)."""
    states = jnp.concatenate([states - states.mean(axis=0) for states in (heard, read)])
    states *= jax.lax.rsqrt(jnp.sum(states**2, axis=1, keepdims=True) + TINY)
    return jnp.einsum("nd,md->nm", states[: len(heard)], states, precision="highest")


def circle_loss(cosines: jax.Array, which: Masks, gamma: float, margin: float, apart: bool = False):
    """Each anchor's loss, its twin's share of the negatives' sum, and its read copy's of the positives', each
    (N,), of cosines (N, 2N).

    apart: a summand for the read copy alone, in place of its term among the positives.
    """
    far, near = jax.lax.stop_gradient((jax.nn.relu(1 + margin - cosines), jax.nn.relu(cosines + margin)))
    push = jnp.where(which.negatives, gamma * near * (cosines - margin), -jnp.inf)
    pull, positives = -gamma * far * (cosines - 1 + margin), which.alike | which.copies
    loss = 0.0
    for group in (which.alike, which.copies) if apart else (positives,):
        pulled = jax.nn.logsumexp(jnp.where(group, pull, -jnp.inf), axis=1)
        loss += jax.nn.softplus(jax.nn.logsumexp(push, axis=1) + pulled)
    twin = jnp.sum(jax.nn.softmax(push, axis=1), axis=1, where=which.twins)
    pull = jnp.where(positives, pull, -jnp.inf)
    return loss, twin, jnp.sum(jax.nn.softmax(pull, axis=1), axis=1, where=which.copies)


def make_step(graphdef, options: argparse.Namespace):
    """Returns the jitted step from adapters, moments, frozen weights, bank, batches by kind and masks to
    adapters, moments and (loss, twin's share, copy's share)."""
    settings, behind = (options.gamma, options.margin, options.copies == "apart"), (options.layer - 1,)

    def loss_of(lora, base, bank, batches, which):
        model = nnx.merge(graphdef, lora, base)
        # Behind the last layer that is computed: the adapters of those above it get no gradient and stay 0.
        states = (model.layer_states(batches[kind], bank, behind, remat="dots")[:, 0] for kind in KINDS)
        told = jnp.stack(circle_loss(centred_cosines(*states), which, *settings)).mean(axis=1)
        return told[0] + options.penalty * weight_change(model.lora.pairs()), told

    def step(lora, moments, base, bank, batches, which):
        gradient, told = jax.grad(loss_of, has_aux=True)(lora, base, bank, batches, which)
        updates, moments = optax.adam(options.rate).update(gradient, moments)
        return optax.apply_updates(lora, updates), moments, told

    return jax.jit(step, donate_argnums=(0, 1), compiler_options=compiler_options())


def train(model: nnx.Module, bank: jax.Array, known: Questions, step, options, seed: int) -> np.ndarray:
    """Trains the model's adapters in place; returns each step's loss and shares, float32 (steps, 3)."""
    _, lora, base = nnx.split(model, LoRAParam, ...)
    moments, told = optax.adam(options.rate).init(lora), []
    lengths = {kind: max(len(ids) for ids, _, _ in rows) for kind, rows in known.prompts.items()}
    audio = model.config.audio_token_id
    with Progress(options.steps, f"contrastive stage, seed {seed}", "steps") as progress:
        for chosen in twin_batches(known.pairs, options.steps, np.random.default_rng(seed)):
            rows = {kind: [known.prompts[kind][i] for i in chosen] for kind in KINDS}
            batches = {kind: collate(rows[kind], lengths[kind], audio) for kind in KINDS}
            which = masks(known.harmful[chosen], [known.pairs[i] for i in chosen])
            lora, moments, numbers = step(lora, moments, base, bank, batches, which)
            told.append(numbers)
            progress.update(1)
    nnx.update(model, lora)
    return np.array(told)


def measure(
    model: nnx.Module, bank: jax.Array, known: Questions, unseen: Questions, layers: Sequence[int]
) -> dict[str, Counts]:
    """Returns what probes tell right of each pair, by kind, way and layer such as `heard unseen 14`."""
    harmful, pairs = np.append(known.harmful, unseen.harmful), known.pairs + unseen.pairs
    old, jobs = np.arange(len(pairs)) < len(known.pairs), {}
    inside, behind = separability.chosen_inside, tuple(layer - 1 for layer in layers)
    with ThreadPoolExecutor() as pool:  # a probe keeps one core busy
        for kind in KINDS:
            prompts = known.prompts[kind] + unseen.prompts[kind]
            buckets = bucket_lengths([len(ids) for ids, _, _ in prompts], 2)
            states = extract_all(model, prompts, bank, batch_size=EXTRACTED, buckets=buckets, layers=behind)
            for place, layer in enumerate(layers):
                new = states[~old, place : place + 1], unseen.harmful, unseen.pairs
                every = states[:, place : place + 1], harmful, pairs, old, ~old
                jobs[f"{kind} unseen {layer}"] = pool.submit(inside, *new), unseen.pairs
                jobs[f"{kind} carried {layer}"] = pool.submit(separability.told_right, *every), unseen.pairs
            own = states[old, :1], known.harmful, known.pairs
            jobs[f"{kind} seen {layers[0]}"] = pool.submit(inside, *own), known.pairs
        return {key: separability.counts_by_pair(job.result(), of) for key, (job, of) in jobs.items()}


def rise(before: Counts, seeds: Sequence[Counts]) -> dict[str, object]:
    """Returns the `points` gained, paired by pair with `ci95`; the seeds' counts are added up."""
    after = {pair: tuple(np.sum([counts[pair] for counts in seeds], axis=0)) for pair in before}
    block = paired_block(before, after)
    return {"points": round(block["difference"], 1), "ci95": [round(bound, 1) for bound in block["ci95"]]}


def table(before: dict, seeds: Sequence[dict]) -> Iterator[str]:
    """Yields the lines of a table of what `measure` found before and, the mean of the seeds, after."""
    yield f"{'probe':16}{'before':>8}{'after':>8}{'rise':>8} [95 %]"
    for name, counts in before.items():
        found = [counts, *(seed[name] for seed in seeds)]
        first, *after = (separability.share_over_pairs(counts)["right"] for counts in found)
        gained = rise(counts, found[1:])
        yield f"{name:16}{first:8.1f}{np.mean(after):8.1f}{gained['points']:+8.1f} {gained['ci95']}"


def questions(heard: HeardModel, rows: list[dict], first: int) -> Questions:
    """Returns the questions of manifest rows, whose clips begin at the bank's number `first`."""
    prompts = {
        "heard": [heard.prompt(PROMPT_T, [first + place]) for place in range(len(rows))],
        "read": [heard.prompt(evaluation_prompt("text_only", row["question"], "prompted")) for row in rows],
    }
    harmful = np.array([row["label"] == "harmful" for row in rows])
    return Questions(prompts, harmful, [row["pair_id"] for row in rows])


def run(options: argparse.Namespace) -> None:
    """Measures, trains and measures again for each seed; prints the table. Raises UserError."""
    of_split = [choose_rows(StarterChoice(split, options.pairs_per_category)) for split in SPLITS]
    rows, count = sum(of_split, []), len(of_split[0])
    heard = load_heard(options, [row["question"] for row in rows])
    depth, bank = heard.model.config.text.num_hidden_layers, heard.bank.array
    options.layer = depth // 2 if options.layer is None else options.layer
    if options.layer > depth:
        raise UserError(f"--layer: is {options.layer}, the decoder has {depth} layers; give at most {depth}.")
    known, unseen = questions(heard, rows[:count], 0), questions(heard, rows[count:], count)
    layers = sorted({*range(options.layer, depth + 1, 3), depth})
    settings = vars(options) | {"pairs": count // 2, "unseen_pairs": len(rows[count:]) // 2}

    def record(found: dict, seed: int | None, more: dict) -> None:
        probes = {key: separability.share_over_pairs(counts) for key, counts in found.items()}
        if options.out:
            append_jsonl(options.out, [settings | {"seed": seed, "probes": probes} | more])

    models = [with_lora(heard.model, LoRAConfig(), mesh_of(heard.model), i) for i in range(options.seeds)]
    step = make_step(nnx.split(models[0], LoRAParam, ...)[0], options)
    before, after = measure(models[0], bank, known, unseen, layers), []
    record(before, None, {})
    for seed, model in enumerate(models):
        numbers = train(model, bank, known, step, options, seed)
        after.append(measure(model, bank, known, unseen, layers))
        ends = np.stack([numbers[:FEW].mean(axis=0), numbers[-FEW:].mean(axis=0)], axis=1)
        ends = dict(zip(TOLD, ends.astype(float).round(3).tolist(), strict=True))
        print(f"seed {seed}, first and last steps: {ends}")
        rises = {key: rise(before[key], [after[-1][key]]) for key in before}
        record(after[-1], seed, ends | {"rises": rises})
    print("\n".join(table(before, after)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after one sentence on standard error for a user's mistake."""
    parser = command_parser("contrastive_stage", "The heard-twin probe before and after a contrastive stage.")
    parser.prog = Path(__file__).name
    for name, kind, default, what in (
        ("layer", integer(1), None, "layers with adapters, behind which states are compared (default: half)"),
        ("steps", integer(1), 200, "updates, of eight pairs each"),
        ("seeds", integer(1), 3, "trainings, of other batches and adapters"),
        ("rate", number(0, above=True), 5e-4, "Adam's rate"),
        ("gamma", number(0, above=True), 32.0, "scale of the loss's exponents"),
        ("margin", number(0, 1), 0.25, "m of the loss"),
        ("penalty", number(0), 0.0, "weight of the penalty of equation 13"),
        ("pairs_per_category", integer(1), None, "pairs of each of the 14 categories and each split"),
    ):
        parser.add_argument(f"--{name}", type=kind.argument, default=default, help=what)
    copies = choice("together", "apart")
    parser.add_argument("--copies", type=copies.argument, default="together", help=copies.wants)
    options = parser.parse_args(with_home(arguments))
    with exit_status() as status:
        run(options)
    return status.code


if __name__ == "__main__":
    sys.exit(main())
