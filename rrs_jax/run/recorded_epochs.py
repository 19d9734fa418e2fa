"""A run's model on its way: adapters kept after some epochs, and what they make of the evaluation questions.

    RUN/epochs/N/adapter.safetensors           LoRA arrays, float32, after epoch N; none for 0, the model
    before training RUN/epochs/N/representations.safetensors   `states` (questions, D), float16; metadata:
    ids, labels, pairs, categories

Figure 2 of the paper shows questions in audio-text mode without saying which; these are the evaluation
questions under the prompt t, so that no question seen in training separates by having been learnt.
"""

import json
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from rrs_jax.config.prompts import PROMPT_T
from rrs_jax.config.strategy_table import STRATEGY_TABLE
from rrs_jax.distributed import processes
from rrs_jax.distributed.mesh import fetch, put
from rrs_jax.errors import Damaged, UserError
from rrs_jax.files import atomic_path, content_hash
from rrs_jax.frozen.extraction import extract_all
from rrs_jax.inputs.batching import bucket_lengths
from rrs_jax.models.flops import decoder_flops, program_price
from rrs_jax.models.lora import LoRAParam
from rrs_jax.progress import Progress, say
from rrs_jax.run.context import RunContext
from rrs_jax.train.checkpoints import named_leaves
from rrs_jax.weights.safetensors_io import load_file, save_file


def recorded_epochs(config: ConfigDict) -> list[int]:
    """Those of figure 2, ascending; none for a strategy without adapters."""
    if not STRATEGY_TABLE[config.strategy].trains:
        return []
    last, asked = config.train.epochs, config.report.representation_epochs
    if asked in (None, "ends"):
        return sorted({0, last} if asked else {*range(0, last, 2), last})
    return sorted(map(int, asked))


def evaluated_epochs(config: ConfigDict) -> list[int]:
    """Those of `evaluate.epochs` that are not evaluated anyway, ascending."""
    if not STRATEGY_TABLE[config.strategy].trains or config.endpoint.url:
        return []
    return sorted({int(epoch) for epoch in config.evaluate.epochs} - {config.train.epochs})


def keep_adapter(context: RunContext, epoch: int, lora: nnx.State) -> None:
    """Writes the adapters after an epoch where one of the two lists has it."""
    if epoch in {*recorded_epochs(context.config), *evaluated_epochs(context.config)}:
        arrays = {name: np.asarray(array) for name, array in jax.device_get(named_leaves(lora)).items()}
        with atomic_path(_adapter_file(context, epoch)) as temporary:
            save_file(temporary, arrays, {"epoch": str(epoch)})


def model_after(context: RunContext, epoch: int) -> nnx.Module:
    """A model of its own that shares the frozen arrays. Raises UserError where the adapters were not kept."""
    if epoch == 0:
        return context.load_model()
    path = _adapter_file(context, epoch)
    if not path.is_file():
        kept = sorted(int(found.parent.name) for found in context.folder.epochs.glob("*/adapter.safetensors"))
        raise UserError(
            f"evaluate.epochs: the adapters after epoch {epoch} were not kept; choose among those that were"
            f" ({', '.join(map(str, kept)) or 'none'}), or train in another --config.run_dir with"
            f" evaluate.epochs={epoch}."
        )
    arrays, _ = load_file(path, "train in another --config.run_dir")
    model = context.fresh_adapters()
    state = nnx.state(model, LoRAParam)
    leaves = [put(arrays[name], leaf.sharding) for name, leaf in named_leaves(state).items()]
    nnx.update(model, jax.tree.unflatten(jax.tree.structure(state), leaves))
    return model


def adapter_hash(adapters: nnx.Module | nnx.State) -> str:
    """Hash of the adapters' arrays, of a model or by themselves."""
    leaves = fetch([leaf[...] for _, leaf in nnx.to_flat_state(nnx.state(adapters, LoRAParam))])
    return content_hash(*(leaf.tobytes() for leaf in leaves))


def record_representations(context: RunContext) -> None:
    """Writes the states of the epochs that have none yet, or damaged ones. One that was asked for only after
    the training had passed it is told and left out."""
    epochs = recorded_epochs(context.config)
    processes.by_first(lambda: _remove_damaged(context))
    missing = processes.by_first(
        lambda: [epoch for epoch in epochs if not _states_file(context, epoch).is_file()]
    )
    kept = processes.by_first(lambda: [epoch for epoch in missing if _adapter_file(context, epoch).is_file()])
    for epoch in missing:
        if epoch and epoch not in kept:
            say(
                f"report.representation_epochs: the adapters after epoch {epoch} were not kept; figure 2 goes"
                " without it"
            )
            continue
        _record(context, epoch)


def keep_again(context: RunContext, lora: nnx.State) -> None:
    """Writes the adapters after the last epoch, `lora`, where they are missing or damaged."""
    processes.by_first(lambda: _remove_damaged(context))
    last = context.config.train.epochs
    if processes.by_first(lambda: not _adapter_file(context, last).is_file()):
        keep_adapter(context, last, lora)


def _remove_damaged(context: RunContext) -> None:
    for path in sorted(context.folder.epochs.glob("*/*.safetensors")):
        try:
            load_file(path)
        except Damaged as error:
            say(f"{str(error).partition(';')[0]}; it is removed")
            path.unlink()


def _record(context: RunContext, epoch: int) -> None:
    rows, bank = context.read_evaluation_rows(), context.encode_clips("evaluation")
    prompts = [context.encode_prompt(bank, [i], PROMPT_T) for i in range(len(rows))]
    lengths = [len(ids) for ids, _, _ in prompts]
    price = program_price(decoder_flops(context.load_model().config.text), context.mesh.size)
    with Progress(len(prompts), f"representations after epoch {epoch}", "prompts") as progress:
        states = extract_all(
            model_after(context, epoch),
            prompts,
            bank.array,
            batch_size=context.config.extract.batch_size,
            buckets=bucket_lengths(lengths, price=price),
            progress=progress,
        )
    metadata = {"epoch": str(epoch), "prompt": PROMPT_T} | {
        name: json.dumps([row[field] for row in rows])
        for name, field in (
            ("ids", "id"),
            ("labels", "label"),
            ("pairs", "pair_id"),
            ("categories", "category"),
        )
    }
    limit = np.finfo(np.float16).max
    with atomic_path(_states_file(context, epoch)) as temporary:
        save_file(temporary, {"states": np.clip(states, -limit, limit).astype(np.float16)}, metadata)


def _adapter_file(context: RunContext, epoch: int) -> Path:
    return context.folder.epochs / str(epoch) / "adapter.safetensors"


def _states_file(context: RunContext, epoch: int) -> Path:
    return context.folder.epochs / str(epoch) / "representations.safetensors"
