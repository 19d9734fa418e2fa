"""The README.md of an exported folder: what it is, how to load it, how it was trained, what it is for."""

import re
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp

from rrs_jax.config.vocabulary import SETTINGS
from rrs_jax.errors import UserError
from rrs_jax.files import read_json, safe_name, write_atomic
from rrs_jax.web.text import markdown_cell
from rrs_jax.weights.card_example import FOLDER, adapter_example, merged_example
from rrs_jax.weights.export import layout_of
from rrs_jax.weights.export_folder import MARKER
from rrs_jax.weights.hub import is_hub_id
from rrs_jax.weights.load import abstract_model, read_config
from rrs_jax.weights.safetensors_io import read_folder
from rrs_jax.weights.table import WeightTable

# The fields of a run that say how a model was trained; the others are paths, devices and evaluation.
TRAINING_FIELDS = ("strategy", "seed", "rrs", "sft", "penalty", "loss", "lora", "train")
TASK = "audio-text-to-text"
MODES = {"audio_text": "audio and text", "text_only": "text alone", "audio_only": "audio alone"}
PAPER = (
    "Yang, Qu, Shareghi, Haffari (2025): Reshaping Representation Space to Balance the Safety and "
    "Over-rejection in Large Audio Language Models"
)


def write_model_card(
    folder: Path,
    *,
    base_folder: Path,
    base_name: str | None,
    settings: Mapping[str, object],
    results: str | None = None,
    summaries: Mapping[str, dict] | None = None,
    repository: str | None = None,
) -> None:
    """Writes README.md into a folder that `export_adapter` or `export_merged` has made, over the base's own.

    Args:
      base_name: the hub id of the base; None where it has none, and the card names its folder, without the
        path.
      settings: fields of the run by dotted name; the card shows those that decide the training.
      results: a Markdown table of rates, as `rrs_jax.report.table.markdown_table` gives it.
      summaries: the trained model's rates by the name of their evaluation, as summary.json has them, for the
        card's model-index.
      repository: OWNER/NAME where the folder will lie on the hub; None names it ".".
    Raises UserError where the folder was not made by an export.
    """
    if not (folder / MARKER).is_file():
        raise UserError(f"{folder}: was not made by an export; write the model card into an exported folder.")
    record, values = read_json(folder / MARKER), read_config(base_folder)
    merged = record["form"] == "merged"
    _, table = abstract_model(values, jnp.float32, entries=read_folder(base_folder))
    base = base_name or safe_name(base_folder.resolve().name)
    licence = base_licence(base_folder)
    metadata = _metadata(merged, base_name, licence, values["model_type"], repository or f"{base}-RRS")
    metadata.eval_results = _eval_results(summaries or {}, settings) or None
    loading = (
        _loading_merged(table, settings, repository)
        if merged
        else _loading_adapter(table, record["layout"], base_name or FOLDER + base, settings, repository)
    )
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {base} with Reshaping Representation Space (RRS)\n\n{_what(merged, base, settings)}",
        f"## Loading\n\n{loading}",
        "## Training\n\n" + _training(settings),
        "## Results\n\n" + (results.strip() if results else "These weights were not evaluated in their run."),
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


def _metadata(merged: bool, base: str | None, licence: str | None, architecture: str, name: str):
    from huggingface_hub import ModelCardData

    relation = {"base_model_relation": "finetune" if merged else "adapter"} if base else {}
    return ModelCardData(
        library_name="transformers" if merged else "peft",
        pipeline_tag=TASK,
        base_model=base,
        license=licence,
        tags=[architecture, "audio", "safety", "refusal", "rrs"] + ([] if merged else ["lora"]),
        model_name=name,
        **relation,
    )


def _rates(summary: dict) -> list[tuple[str, str, str, str, dict]]:
    """Returns kind and title of each rate, its field in a block, what was asked, and the block."""
    compliance = summary["asr_is"].startswith("compliance")
    answered = ("compliance", "Compliance") if compliance else ("asr", "Attack success rate")
    over_refusal = {"orr": "rewrites", "borderline_orr": "borderline", "everyday_orr": "everyday"}
    return [
        (*answered, "asr", f"harmful, {MODES[mode]}", block)
        for mode, block in summary["modes"].items()
        if block
    ] + [
        ("orr", "Over-refusal rate", "rate", f"{label}, audio and text", summary[field])
        for field, label in over_refusal.items()
        if summary.get(field)
    ]


def _eval_results(summaries: Mapping[str, dict], settings: Mapping[str, object]) -> list:
    """Returns the rates as the hub's entries of a model-index, one for each rate, mode and evaluation."""
    from huggingface_hub import EvalResult

    found = []
    for name, summary in summaries.items():
        dataset = _questions(name, settings)
        for kind, title, field, asked, block in _rates(summary):
            if block[field] is None:
                continue
            found.append(
                EvalResult(
                    task_type=TASK,
                    dataset_type="rrs-jax",
                    dataset_name=f"{dataset}: {asked}",
                    dataset_config=f"{name}: {asked}",  # entries of one config are taken for one data set
                    dataset_args={"queries": block["queries"], "responses": block["responses"]},
                    metric_type=kind,
                    metric_name=f"{title} in percent, judge {summary['judge']}",
                    metric_value=block[field],
                    metric_args={"ci95": block["ci95"]},
                )
            )
        if summary["nsi"]:
            found.append(
                EvalResult(
                    task_type=TASK,
                    dataset_type="rrs-jax",
                    dataset_name=f"{dataset}: all",
                    dataset_config=f"{name}: all",
                    metric_type="nsi",
                    metric_name=f"Normalised safety improvement, mean of the modes, judge {summary['judge']}",
                    metric_value=summary["nsi"]["average"],
                )
            )
    return found


def _questions(evaluation: str, settings: Mapping[str, object]) -> str:
    """Returns the name of an evaluation's questions; its own is STRATEGY[-QUESTION SETS][-SETTING]."""
    parts = evaluation.split("-")[1:]
    sets = "-".join(part for part in parts if part not in SETTINGS)
    built_in = "styles" if str(settings.get("data.eval_set")).startswith("styles") else "starter"
    own = "questions of the run" if settings.get("data.eval_manifest") else f"{built_in} set of RRS-JAX"
    return ", ".join([sets or own, *(part for part in parts if part in SETTINGS)])


def _what(merged: bool, base: str, settings: Mapping[str, object]) -> str:
    scale = settings.get("export.scale", 1.0)
    form = f"The weights of {base} with a LoRA merged in" if merged else f"A LoRA adapter for {base}"
    return (
        f"{form}, trained with RRS-JAX by safety fine-tuning in representation space: representations of"
        " harmful questions, spoken or written, are moved along a safety vector towards refusal, and those"
        f" of their harmless rewrites away from it ({PAPER})."
    ) + (f" What was trained counts {scale:g} times here." if scale != 1 else "")


def _loading_adapter(
    table: WeightTable, layout: str, base: str, settings: Mapping[str, object], repository: str | None
) -> str:
    chosen = layout_of(table, layout)
    vllm = (
        "vLLM: `vllm serve BASE --enable-lora --max-lora-rank RANK --lora-modules rrs=FOLDER`."
        if "vLLM" in chosen.readers
        else (
            f"vLLM has no LoRA for {chosen.transformers_class}, or not under these names: serve a merged"
            " folder, either the one that the run writes with `--config.export.merged=True`, or"
            ' `model.merge_and_unload().save_pretrained("MERGED")` together with the base\'s tokenizer and'
            " processor files."
        )
    )
    return f"""PEFT 0.9 or later (0.19 or later with transformers 5). Modules are named for
{chosen.readers}.

{adapter_example(chosen.transformers_class, table.remote_code, base, settings, repository)}

The tokenizer and the processor are those of the base. {vllm}"""


def _loading_merged(table: WeightTable, settings: Mapping[str, object], repository: str | None) -> str:
    return f"""{merged_example(table.transformers_class, table.remote_code, settings, repository)}

Tokenizer, processor, chat template and generation config of the base lie in this folder too.
vLLM: `vllm serve {repository or "FOLDER"}`."""


def _training(settings: Mapping[str, object]) -> str:
    shown = {name: value for name, value in settings.items() if name.split(".")[0] in TRAINING_FIELDS}
    if (start := shown.get("lora.start")) and not is_hub_id(str(start)):
        shown["lora.start"] = Path(str(start)).name  # of a folder no more than its name
    if not shown:
        return "The run gave no settings."
    rows = [f"| `{name}` | {_value(value)} |" for name, value in shown.items()]
    return "\n".join(["| field | value |", "| --- | --- |", *rows])


def _value(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return markdown_cell(text)


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
