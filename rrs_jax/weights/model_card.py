"""The README.md of an exported folder: what it is, how to load it, how it was trained, what it is for."""

import re
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp

from rrs_jax.errors import UserError
from rrs_jax.files import read_json, write_atomic
from rrs_jax.weights.export import MARKER, layout_of
from rrs_jax.weights.load import abstract_model, read_config
from rrs_jax.weights.safetensors_io import read_folder
from rrs_jax.weights.table import WeightTable

# The fields of a run that say how a model was trained; the others are paths, devices and evaluation.
TRAINING_FIELDS = ("strategy", "seed", "rrs", "sft", "penalty", "loss", "lora", "train")
PAPER = (
    "Yang, Qu, Shareghi, Haffari (2025): Reshaping Representation Space to Balance the Safety and "
    "Over-rejection in Large Audio Language Models"
)


def write_model_card(
    folder: Path,
    *,
    base_folder: Path,
    base_name: str,
    settings: Mapping[str, object],
    results: str | None = None,
) -> None:
    """Writes README.md into a folder that `export_adapter` or `export_merged` has made, over the base's own.

    Args:
      base_name: the hub id of the base; a local path is cut to its last part.
      settings: fields of the run by dotted name; the card shows those that decide the training.
      results: a Markdown table of rates, as `rrs_jax.report.table.markdown_table` gives it.
    Raises UserError where the folder was not made by an export.
    """
    if not (folder / MARKER).is_file():
        raise UserError(f"{folder}: was not made by an export; write the model card into an exported folder.")
    record, values = read_json(folder / MARKER), read_config(base_folder)
    merged = record["form"] == "merged"
    _, table = abstract_model(values, jnp.float32, entries=read_folder(base_folder))
    on_hub = bool(re.fullmatch(r"[\w.-]+/[\w.-]+", base_name)) and not Path(base_name).exists()
    base = base_name if on_hub else Path(base_name).name
    licence = base_licence(base_folder)
    parts = [
        _front_matter(merged, base if on_hub else None, licence, values["model_type"]),
        f"# {base} with Reshaping Representation Space (RRS)\n\n{_what(merged, base)}",
        "## Loading\n\n"
        + (_loading_merged(table) if merged else _loading_adapter(table, record["layout"], base)),
        "## Training\n\n" + _training(settings),
        "## Results\n\n"
        + (results.strip() if results else "Not evaluated in the run that made this folder."),
        "## Intended use and limits\n\n" + LIMITS,
        f"## Licence\n\n{_licence_sentence(base, licence)}",
        f"## Citation\n\n{PAPER}.",
    ]
    write_atomic(folder / "README.md", "\n\n".join(parts) + "\n")


def base_licence(base_folder: Path) -> str | None:
    """The `license` that the base's own model card names, if it has one."""
    card = base_folder / "README.md"
    if not card.is_file():
        return None
    front = re.match(r"---\r?\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    found = re.search(r"^license:\s*[\"']?([\w.-]+)", front[1], re.MULTILINE) if front else None
    return found[1] if found else None


def _front_matter(merged: bool, base: str | None, licence: str | None, architecture: str) -> str:
    lines = [f"library_name: {'transformers' if merged else 'peft'}", "pipeline_tag: audio-text-to-text"]
    if base:
        lines += [f"base_model: {base}", f"base_model_relation: {'finetune' if merged else 'adapter'}"]
    if licence:
        lines.append(f"license: {licence}")
    tags = [architecture, "audio", "safety", "refusal", "rrs"] + ([] if merged else ["lora"])
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _what(merged: bool, base: str) -> str:
    form = f"The weights of {base} with a LoRA merged in" if merged else f"A LoRA adapter for {base}"
    return (
        f"{form}, trained with RRS-JAX by safety fine-tuning in representation space: representations of"
        " harmful questions, spoken or written, are moved along a safety vector towards refusal, and those"
        f" of their harmless rewrites away from it ({PAPER})."
    )


def _loading_adapter(table: WeightTable, layout: str, base: str) -> str:
    chosen = layout_of(table, layout)
    name, remote = chosen.transformers_class, ", trust_remote_code=True" if table.remote_code else ""
    vllm = (
        "vLLM: `vllm serve BASE --enable-lora --lora-modules rrs=FOLDER`."
        if "vLLM" in chosen.readers
        else (
            f"vLLM has no LoRA for {name}, or not under these names: serve a merged folder, either the one"
            " that the run writes with `--config.export.merged=True`, or"
            ' `model.merge_and_unload().save_pretrained("MERGED")` together with the base\'s tokenizer and'
            " processor files."
        )
    )
    return f"""PEFT 0.9 or later (0.19 or later with transformers 5). Modules are named for
{chosen.readers}.

```python
import torch
from peft import PeftModel
from transformers import {name}

base = {name}.from_pretrained("{base}", torch_dtype=torch.bfloat16{remote})
model = PeftModel.from_pretrained(base, "FOLDER")
# Names that do not match leave an adapter at zero with only a warning.
assert all(value.any() for name, value in model.named_parameters() if "lora_B" in name)
```

The tokenizer and the processor are those of the base. {vllm}"""


def _loading_merged(table: WeightTable) -> str:
    name, remote = table.transformers_class, ", trust_remote_code=True" if table.remote_code else ""
    return f"""```python
import torch
from transformers import {name}

model = {name}.from_pretrained("FOLDER", torch_dtype=torch.bfloat16{remote})
```

Tokenizer, processor, chat template and generation config of the base lie in this folder too, so
`AutoProcessor.from_pretrained("FOLDER")` works. vLLM: `vllm serve FOLDER`."""


def _training(settings: Mapping[str, object]) -> str:
    shown = {name: value for name, value in settings.items() if name.split(".")[0] in TRAINING_FIELDS}
    if not shown:
        return "The run gave no settings."
    rows = [f"| `{name}` | {_value(value)} |" for name, value in shown.items()]
    return "\n".join(["| field | value |", "| --- | --- |", *rows])


def _value(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _licence_sentence(base: str, licence: str | None) -> str:
    named = f"({licence})" if licence else "(its folder names none: look it up where the model is published)"
    return f"Derived from {base}; the licence of that model {named} holds for these weights as well."


LIMITS = """For research on the safety of audio language models, and as a safer start than the untouched base.

- Refusals are likelier, not certain: attacks by optimised audio, role play or many turns were not trained
  against.
- Harmless questions with alarming words may be refused more often than by the base; the column of borderline
  questions says how often, where this card has results.
- Trained on short English questions in synthetic voices; other languages, voices, noise and long
  conversations are untested.
- The rates depend on the judge and the question set that stand below the table.
- It inherits the base's errors and biases, and is no replacement for the moderation of inputs and outputs."""
