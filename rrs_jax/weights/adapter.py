"""A PEFT adapter, by whomever it was trained, as the LoRA of a model here."""

import dataclasses
import math
import re
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from rrs_jax.errors import UserError
from rrs_jax.files import content_hash, read_json, reading
from rrs_jax.models.architectures import part
from rrs_jax.models.audio_language_model import AudioLanguageModel
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.weights.hub import fetch, is_hub_id
from rrs_jax.weights.load import shard_lora, weight_table
from rrs_jax.weights.safetensors_io import load_file, some_of
from rrs_jax.weights.table import WeightTable

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight")

# Settings of PEFT that make an adapter something else than W + scale·B·A on some weights W, and what to say.
REFUSED = {
    "use_dora": "DoRA, which scales each row of a weight too",
    "lora_bias": "biases of its own",
    "modules_to_save": "whole modules (modules_to_save)",
    "layer_replication": "repeated layers",
    "trainable_token_indices": "new token embeddings",
    "target_parameters": "parameters that are no linears",
    "alora_invocation_tokens": "activated LoRA, which begins at a token",
    "use_qalora": "QALoRA, whose inputs are pooled",
    "use_bdlora": "block-diagonal matrices (BD-LoRA)",
    "kasa_config": "KaSA, which cuts the base's weights",
    "monteclora_config": "MonteCLoRA, which draws its matrices",
    "fan_in_fan_out": "transposed weights (fan_in_fan_out)",
}
MOST_REPEATS, MOST_CHOICES = 4, 8  # in a pattern of modules' names
# Starts at which PEFT also changes the base's own weights.
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A LoRA with its numbers.

    Attributes:
      config: one rank and one scale for all pairs.
      pairs: A (L, in, R) and B (L, R, out) of each target, float32, over the layers from
        `config.first_layer` on. Where a pair has a lower rank, or there is none, the rest is zero; where it
        has another scale, its B makes up for it.
      uniform: every target has a pair of this rank and scale in every one of these layers.
      base: the model that it was trained on, as its settings name it; None where they do not.
    """

    config: LoRAConfig
    pairs: dict[str, tuple[np.ndarray, np.ndarray]]
    uniform: bool
    base: str | None

    def put_into(self, model: AudioLanguageModel, mesh: Mesh) -> None:
        """Gives the model's LoRA, made with `config`, these numbers, each in its place on the devices."""
        for target, (a, b) in self.pairs.items():
            pair = model.lora.pair(target)
            pair.lora_a.set_value(jax.numpy.asarray(a))
            pair.lora_b.set_value(jax.numpy.asarray(b))
        shard_lora(model, mesh)


def read_adapter(path: str | Path, values: dict, field: str = "adapter") -> Adapter:
    """Reads a PEFT folder, a run's (RUN or RUN/export/adapter) or a hub id.

    The names of modules may be those of any of the model's layouts. Ranks and scales may differ between
    modules (rank_pattern, alpha_pattern, rsLoRA).

    Args:
      values: the content of the base's config.json.
      field: what messages about a hub id begin with.
    Raises UserError where the folder is no LoRA adapter, changes more than linears of the decoder, or does
    not fit the model.
    """
    folder = adapter_folder(str(path), field)
    settings = read_json(folder / CONFIG)
    if problems := list(_problems(settings)):
        raise UserError(f"{folder}: the adapter has {some_of(problems)}, which is not supported.")
    if not (folder / TENSORS).is_file():
        raise UserError(f"{folder}: holds no {TENSORS}; save the adapter with safetensors.")
    config = part("models", values).MODEL.config_class.from_hf(values)
    halves = _halves(folder, weight_table(config, values, ()))
    with reading(folder, "give a LoRA adapter of this model"):
        return _stacked(
            folder, halves, settings, config.text.adapted_linears(), config.text.num_hidden_layers
        )


def adapter_folder(path: str, field: str) -> Path:
    """The folder with an adapter's two files. Raises UserError where there is none, beginning with `field`
    for a hub id that cannot be fetched."""
    for folder in (Path(path), Path(path) / "export" / "adapter"):
        if (folder / CONFIG).is_file():
            return folder
    if is_hub_id(path):
        return fetch(path, (CONFIG, TENSORS), field)
    raise UserError(f"{path}: holds no {CONFIG}; give a PEFT adapter's folder, a run's folder or a hub id.")


def adapter_files_hash(path: str, field: str) -> str:
    """Hash of an adapter's settings and tensors. Raises UserError as `adapter_folder` does, and where a file
    cannot be read."""
    folder = adapter_folder(path, field)
    try:
        return content_hash(*((folder / name).read_bytes() for name in (CONFIG, TENSORS)))
    except OSError as error:
        raise UserError(f"{field}: {error.filename} cannot be read ({error.strerror}).") from error


def _problems(settings: dict):
    kind = settings.get("peft_type")
    if kind != "LORA":
        yield f"the type {kind}"
    for name, what in REFUSED.items():
        if settings.get(name):
            yield what
    if settings.get("bias", "none") != "none":
        yield f"trained biases (bias={settings['bias']})"
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGED_BASE):
        yield f"a start that changes the base's weights ({start})"


def _halves(folder: Path, table: WeightTable) -> dict[tuple[str, int], dict[str, tuple[str, np.ndarray]]]:
    """Returns by target and layer the halves "A" (R, in) and "B" (out, R), each with its module's name."""
    paths = {key.split("{i}.")[1]: target for target, key in table.linears.items()}
    halves: dict[tuple[str, int], dict[str, tuple[str, np.ndarray]]] = {}
    surplus = []
    for key, array in load_file(folder / TENSORS)[0].items():
        found = KEY.fullmatch(key)
        place = found and re.fullmatch(rf"{table.layers_pattern}(\d+)\.(.+)", found["module"])
        if not found or not place or place[2] not in paths:
            surplus.append(key)
            continue
        pair = halves.setdefault((paths[place[2]], int(place[1])), {})
        pair[found["half"]] = found["module"], array.astype(np.float32)
    if surplus:
        raise UserError(
            f"{folder}: the adapter changes more than linears of the decoder, or another model:"
            f" {some_of(sorted(surplus))}. Give an adapter of this model's decoder alone."
        )
    if not halves:
        raise UserError(f"{folder}: the adapter holds no tensor; save it again.")
    return halves


def _stacked(
    folder: Path, halves: dict, settings: dict, linears: dict[str, tuple[int, int]], layers: int
) -> Adapter:
    """Returns the pairs as one LoRA of the largest rank. Raises UserError for pairs that do not fit."""
    scales = _scales(folder, halves, settings, linears, layers)
    rank = max(len(pair["A"][1]) for pair in halves.values())
    scale = max(scales.values(), key=list(scales.values()).count)  # the commonest, so that few B are changed
    first = min(layer for _, layer in halves)
    targets = tuple(target for target in linears if any(target == found for found, _ in halves))
    pairs = {}
    for target in targets:
        inputs, outputs = linears[target]
        a = np.zeros((layers - first, inputs, rank), np.float32)
        b = np.zeros((layers - first, rank, outputs), np.float32)
        for layer in range(first, layers):
            if (target, layer) in halves:
                (_, lora_a), (_, lora_b) = (halves[target, layer][half] for half in "AB")
                a[layer - first, :, : len(lora_a)] = lora_a.T
                b[layer - first, : len(lora_a)] = lora_b.T * np.float32(scales[target, layer] / scale)
        pairs[target] = a, b
    uniform = len(halves) == len(targets) * (layers - first) and all(
        len(pair["A"][1]) == rank and math.isclose(scales[place], scale) for place, pair in halves.items()
    )
    return Adapter(
        LoRAConfig(rank, scale * rank, targets, first),
        pairs,
        uniform,
        settings.get("base_model_name_or_path"),
    )


def _scales(
    folder: Path, halves: dict, settings: dict, linears: dict[str, tuple[int, int]], layers: int
) -> dict[tuple[str, int], float]:
    """Returns the factor of each pair's product. Raises UserError for pairs that do not fit the model."""
    faults, scales = [], {}
    for (target, layer), pair in halves.items():
        where = f"layer {layer}, {target}"
        if len(pair) < 2:
            faults.append(f"{where}: has only lora_{next(iter(pair))}")
            continue
        (module, a), (_, b) = pair["A"], pair["B"]
        if layer >= layers or (a.shape[1:], b.shape[:1]) != (linears[target][:1], linears[target][1:]):
            faults.append(f"{where}: lora_A {a.shape} and lora_B {b.shape} in place of {linears[target]}")
        elif a.shape[0] != b.shape[1]:
            faults.append(f"{where}: the ranks {a.shape[0]} and {b.shape[1]}")
        elif not (np.isfinite(a).all() and np.isfinite(b).all()):
            faults.append(f"{where}: numbers that are not finite")
        else:
            scales[target, layer] = _scale(settings, module, len(a))
    if faults:
        raise UserError(f"{folder}: the adapter does not fit the model: {some_of(faults)}.")
    return scales


def _matches(pattern: str, module: str) -> bool:
    """Returns True where a pattern means the module, as PEFT, which takes any regular expression, finds it.

    Raises ValueError for what is none, and for one that could take years on a name of fifty letters.
    """
    repeats, choices = re.findall(r"(?<!\()[*+?{]", pattern), pattern.count("|")
    if re.search(r"\)[*+{]", pattern) or len(repeats) > MOST_REPEATS or choices > MOST_CHOICES:
        raise ValueError(f"alpha_pattern repeats too much: {pattern[:80]}")
    try:
        return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"alpha_pattern has no regular expression: {pattern[:80]}") from error


def _scale(settings: dict, module: str, rank: int) -> float:
    """Returns the factor of a module's B·A, as PEFT finds it."""
    patterns = settings.get("alpha_pattern") or {}
    alpha = next(
        (value for key, value in patterns.items() if _matches(key, module)), settings.get("lora_alpha", 8)
    )
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ValueError(f"lora_alpha is {str(alpha)[:40]}, no number")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
