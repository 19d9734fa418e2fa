"""Tries in a run's first seconds what its stages will need hours later: packages, servers, voices, inputs,
disk."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import jax
from flax import nnx
from ml_collections import ConfigDict

from rrs_jax.config.prompts import PROMPT_T
from rrs_jax.config.strategy_table import DATA, STRATEGY_TABLE
from rrs_jax.data.manifest import load_manifest
from rrs_jax.data.voices import read_voices, speak
from rrs_jax.distributed import processes
from rrs_jax.errors import UserError
from rrs_jax.evaluate.question_sets import read_question_sets
from rrs_jax.inputs.processor import Processor
from rrs_jax.models.lora import LoRA
from rrs_jax.progress import silent
from rrs_jax.run.context import RunContext, base_name, lora_config
from rrs_jax.run.data_stage import skips_bad_rows
from rrs_jax.run.everyday import read_everyday
from rrs_jax.run.export_stage import repositories
from rrs_jax.run.folder import LEAST_FREE_BYTES, check_disk
from rrs_jax.run.servers import try_servers
from rrs_jax.run.start_adapter import read_start
from rrs_jax.train.metrics import try_wandb
from rrs_jax.weights.hub import check_download, is_hub_id, small_files
from rrs_jax.weights.load import check_path, model_config, read_config
from rrs_jax.weights.upload import check_upload

CLIP_FRAMES = 100  # of the clip in the prompt that is tried, a second
SERVED_JUDGES, TORCH_JUDGES = ("llm:",), ("local:", "llama_guard:")


def check_needs(context: RunContext, stages: Sequence[str]) -> None:
    """Tries what the stages that are still to be done need, in all processes.

    Raises UserError for a package that is missing, a voice that cannot speak, a manifest that cannot be read,
    a judge or an endpoint that does not answer, Weights & Biases without a login, a hub that refuses the
    upload, a model's path, tokenizer, chat template, refusal token or starting adapter that cannot be used,
    or too little disk.
    """
    config, wanted = context.config, set(stages)
    processes.by_first(lambda: _try_questions(config, wanted))
    if "wandb" in config.train.log_to and wanted & {"train", "evaluate"}:
        processes.by_first(lambda: try_wandb(context.folder.path))
    if "export" in wanted and config.export.push is not None:
        processes.by_first(lambda: check_upload(repositories(config)))
    if _needs_model(config, wanted):
        with processes.in_step():
            _try_model(context, wanted)
        processes.by_first(lambda: _try_disk(context, wanted))


def _try_questions(config: ConfigDict, wanted: set[str]) -> None:
    """Reads the files of questions and tries the voices, packages and servers that the first process uses
    alone."""
    _try_packages(config, wanted)
    if "evaluate" in wanted:
        with silent():
            read_question_sets(config.evaluate.questions, skips_bad_rows(config))
            read_everyday(config)
        try_servers(config, wanted)
    if _needs_voices(config, wanted):
        _try_voices(config)


def _try_packages(config: ConfigDict, wanted: set[str]) -> None:
    """Raises UserError for a package that the config's judges, endpoint or question files need."""
    needed = {}
    if "evaluate" in wanted:
        judges = config.evaluate.judges
        served = [name for name in judges if name.startswith(SERVED_JUDGES)]
        if served or config.endpoint.url or config.evaluate.air_bench:
            needed["openai"] = f"evaluate.judges={served[0]}" if served else "an OpenAI-compatible server"
        for name in judges:
            if name.startswith(TORCH_JUDGES):
                needed["torch"] = f"evaluate.judges={name}"
    if "wandb" in config.train.log_to and wanted & {"train", "evaluate"}:
        needed["wandb"] = "train.log_to=wandb"
    tables = [*config.data.exclude, *(name.partition(":")[2] for name in config.evaluate.questions)]
    if any(name.endswith(".parquet") for name in tables):
        needed["pyarrow"] = "reading Parquet"
    for package, use in needed.items():
        if find_spec(package) is None:
            raise UserError(f"{use}: needs the package {package}; run: pip install {package}")


def _needs_voices(config: ConfigDict, wanted: set[str]) -> bool:
    """Returns True where a question without a clip will be spoken; reads the manifests."""
    if "data" in wanted:
        given = [config[DATA[STRATEGY_TABLE[config.strategy].data]], config.data.eval_manifest]
        files = [Path(path) for path in given if path and not Path(path).expanduser().is_dir()]
        with silent():
            read = [load_manifest(file, need_audio=False, skip_bad=skips_bad_rows(config)) for file in files]
        mute = [any(row["audio"] is None for row in rows) for rows in read]
        added = given[0] and any(config.data[name] != 0 for name in ("everyday", "contrast"))
        if any(mute) or added or not all(given):
            return True
    settings = {"spelled", "other_voices"} & set(config.evaluate.setting)
    return "evaluate" in wanted and bool(settings or config.evaluate.everyday)


def _try_voices(config: ConfigDict) -> None:
    """Speaks one word with each engine of the run's voices; paid ones are loaded alone."""
    engines = {}
    for voice in read_voices(",".join(config.data.voices)):
        engines.setdefault(voice.engine, voice)
    for engine, voice in engines.items():
        if not hasattr(engine, "price"):
            speak("Hello.", voice)


def _needs_model(config: ConfigDict, wanted: set[str]) -> bool:
    own_answers = "evaluate" in wanted and not config.endpoint.url
    return own_answers or bool(wanted & {"extract", "train", "export"})


def _try_model(context: RunContext, wanted: set[str]) -> None:
    """Loads the model's tokenizer and renders a prompt with it. Of a hub's model the small files are fetched,
    a named one is made."""
    path = context.config.model.path
    check_path(path)
    processor = Processor.from_folder(small_files(path)) if is_hub_id(path) else context.load_processor()
    if "audio_text" in processor.prompt_format.modes:
        processor.encode(PROMPT_T, [processor.mel.token_count(CLIP_FRAMES)])
    processor.encode(PROMPT_T, [])
    if "train" in wanted:
        folder = small_files(path) if is_hub_id(path) else context.model_folder()
        base, _ = base_name(context.config, folder)
        read_start(context.config, lora_config(context.config), read_config(folder), base)
    if "extract" in wanted:
        for text in context.config.rrs.refusal_tokens:
            processor.token_id(text)


def _try_disk(context: RunContext, wanted: set[str]) -> None:
    """Raises UserError where the disks lack room for the model's download, checkpoints or merged export."""
    config = context.config
    path, needed = config.model.path, LEAST_FREE_BYTES
    if is_hub_id(path):
        check_download(path)
    if "train" in wanted:
        needed += checkpoint_bytes(config, small_files(path) if is_hub_id(path) else context.model_folder())
    if "export" in wanted and config.export.merged:
        needed += sum(file.stat().st_size for file in context.model_folder().glob("*.safetensors"))
    check_disk(context.folder.path, needed)


def checkpoint_bytes(config: ConfigDict, folder: Path) -> int:
    """Returns the size of a run's checkpoints: adapters and two moments in float32, each kept one, the best
    and the one being written."""
    values = read_config(folder)
    text = model_config(values).text
    shapes = nnx.eval_shape(lambda: LoRA(lora_config(config), text.adapted_linears(), text.num_hidden_layers))
    numbers = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(shapes)))
    return 3 * 4 * numbers * (config.train.keep_checkpoints + 2)
