"""The stages of a run, each from files to files, so that any of them can be repeated or resumed."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from rrs_jax.config import MINI, flatten
from rrs_jax.data.manifest import audio_paths, load_manifest
from rrs_jax.data.speech import speak_all
from rrs_jax.data.starter import build_starter
from rrs_jax.data.voices import draw_voice, read_voices
from rrs_jax.evaluate.run import GenerationRequest, OnFinished, evaluate_model
from rrs_jax.files import content_hash, read_json, write_atomic, write_jsonl
from rrs_jax.generate import Generator, Prompt, SamplingConfig
from rrs_jax.inputs.audio import check_audios
from rrs_jax.inputs.batching import bucket_lengths
from rrs_jax.inputs.prompts import PROMPT_POOL, PROMPT_T
from rrs_jax.models.lora import LoRAParam
from rrs_jax.progress import Progress
from rrs_jax.report.table import markdown_table, text_table
from rrs_jax.representations import (
    Representations,
    extract_all,
    load_representations,
    premise,
    safety_vector,
    save_representations,
)
from rrs_jax.run_folder import LEAST_FREE_BYTES, RunFolder, check_disk
from rrs_jax.session import Session, enable_compilation_cache
from rrs_jax.strategies import STRATEGIES
from rrs_jax.strategies.rrs import targets_of
from rrs_jax.train.loop import TrainConfig, TrainingData, train
from rrs_jax.train.step import OptimiserConfig
from rrs_jax.weights.export import export_adapter, export_merged
from rrs_jax.weights.model_card import write_model_card


def run(config: ConfigDict, stages: Sequence[str]) -> None:
    """Runs the stages asked for that are not done yet, and prints the table of rates and where everything lies."""
    enable_compilation_cache()
    folder = RunFolder(config.run_dir, config)
    with folder.locked():
        folder.check_order(stages)
        session = Session(config, folder)
        if "export" in stages and config.export.merged and not folder.stage_done("export"):
            base_bytes = sum(file.stat().st_size for file in session.model_folder.glob("*.safetensors"))
            check_disk(folder.path, base_bytes + LEAST_FREE_BYTES)
        for name in stages:
            if folder.stage_done(name):
                say(f"{name}: done already")
                continue
            start = time.monotonic()
            facts = STAGE_FUNCTIONS[name](session) or {}
            seconds = round(time.monotonic() - start, 1)
            folder.mark_done(name, seconds=seconds, **facts)
            say(f"{name}: {seconds} s")
        print_summary(folder)


def make_data(session: Session) -> dict:
    """Manifests with speech: the starter set, or the user's own files with every question spoken that has no clip."""
    config, folder = session.config, session.folder
    voices = ",".join(config.data.voices)
    for split, given, target in (
        ("train", config.data.manifest, folder.manifest),
        ("eval", config.data.eval_manifest, folder.evaluation_manifest),
    ):
        if given:
            _take_manifest(Path(given), target, voices, config)
        else:
            train_split = split == "train"
            build_starter(
                target.parent, split=split, categories=config.data.categories, voices=voices, seed=config.seed,
                pairs_per_category=config.data.pairs_per_category if train_split else config.data.eval_pairs_per_category,
                borderline=0 if train_split else config.data.borderline,
            )  # fmt: skip
    rows = session.training_rows
    return {"harmful": sum(row["label"] == "harmful" for row in rows), "questions": len(rows)}


def _take_manifest(source: Path, target: Path, voices: str, config: ConfigDict) -> None:
    """The user's rows with absolute clip paths. Raises UserError that lists every bad row and every bad clip."""
    rows = load_manifest(source, need_audio=False)
    mute = [row for row in rows if not row["audio"]]
    if mute:
        drawn = read_voices(voices)
        clips = speak_all([(row["question"], draw_voice(row["question"], config.seed, drawn)) for row in mute])
        for row, (path, seconds) in zip(mute, clips, strict=True):
            voice = draw_voice(row["question"], config.seed, drawn)
            row |= {"audio": str(path.absolute()), "seconds": round(seconds, 3), "voice": voice.name}
    rows = [row | {"audio": str((source.parent / row["audio"]).absolute())} for row in rows]
    check_audios([row["audio"] for row in rows], max_seconds=config.data.audio_max_seconds)
    write_jsonl(target, rows)


def extract(session: Session) -> dict:
    """Representations of equations 6 to 8, the safety vector, and whether the method's premise holds."""
    config, rows, bank = session.config, session.training_rows, session.training_bank
    harmful = [i for i, row in enumerate(rows) if row["label"] == "harmful"]
    benign = [i for i, row in enumerate(rows) if row["label"] == "benign"]
    wanted = [(harmful, PROMPT_T), (harmful, config.rrs.refusal_prompt), (benign, PROMPT_T)]
    prompts = [session.encode(bank, [i], text) for indices, text in wanted for i in indices]
    buckets = bucket_lengths([len(ids) for ids, _, _ in prompts])
    with Progress(len(prompts), "representations", "prompts") as progress:
        values = extract_all(
            session.vanilla, prompts, bank.array, batch_size=config.extract.batch_size, buckets=buckets, progress=progress
        )
    parts = np.split(values, np.cumsum([len(indices) for indices, _ in wanted])[:-1])
    representations = Representations(harmful=parts[0], harmful_refusal=parts[1], benign=parts[2])
    token = session.processor.token_id(config.rrs.refusal_token)
    vector = safety_vector(
        representations.harmful_refusal, representations.benign, session.vanilla.head_row(token), config.rrs.top_m
    )
    shares = premise(session.vanilla, representations, token)
    save_representations(
        session.folder.representations, representations, vector,
        {
            "model": config.model.path, "prompts": [PROMPT_T, config.rrs.refusal_prompt], "top_m": config.rrs.top_m,
            "refusal_token_id": token,
        },
    )  # fmt: skip
    facts = {
        "refusal_token_id": token,
        "positive_percent": round(100 * vector.positive_share, 1),
        "delta_logit": round(vector.delta_logit, 2),
        "delta_logit_selected": round(vector.delta_logit_selected, 2),
        "first_token_percent": {
            "harmful_refusal_prompt": round(100 * shares["harmful_refusal"], 1),
            "harmful": round(100 * shares["harmful"], 1),
            "benign": round(100 * shares["benign"], 1),
        },
    }
    first = facts["first_token_percent"]
    say(
        f"premise: {config.rrs.refusal_token!r} (id {token}) comes first for {first['harmful_refusal_prompt']} % of harmful "
        f"questions under the refusal prompt, {first['harmful']} % under t, {first['benign']} % of benign ones; "
        f"{facts['positive_percent']} % of the features raise its logit, by {facts['delta_logit']} in all, "
        f"{facts['delta_logit_selected']} after selection"
    )
    return facts


def train_adapter(session: Session) -> dict:
    """Section 4.2, from the last checkpoint where there is one."""
    config, rows, bank = session.config, session.training_rows, session.training_bank
    representations, vectors, _ = load_representations(session.folder.representations)
    harmful = np.array([row["label"] == "harmful" for row in rows])
    frozen = np.empty((len(rows), representations.harmful.shape[1]), np.float32)
    frozen[harmful], frozen[~harmful] = representations.harmful, representations.benign
    targets = targets_of(frozen, harmful, vectors["safety_vector"])
    strategy = STRATEGIES[config.strategy](targets, config.loss.reduction)
    table = [[session.encode(bank, [i], text) for text in PROMPT_POOL] for i in range(len(rows))]
    data = TrainingData(
        sample_ids=[row["id"] for row in rows], harmful=harmful, encode=lambda i, prompt: table[i][prompt],
        num_prompts=len(PROMPT_POOL), audio_bank=bank.array,
    )  # fmt: skip
    train(session.model, strategy, data, train_config(config), session.folder.path, mesh=session.mesh)
    return {"adapter": adapter_hash(session.model)}


def train_config(config: ConfigDict) -> TrainConfig:
    values = config.train
    optimiser = OptimiserConfig(
        learning_rate=values.learning_rate, schedule=values.schedule, warmup_steps=values.warmup_steps,
        weight_decay=values.weight_decay, b1=values.b1, b2=values.b2, eps=values.eps, clip_norm=values.clip_norm or 0.0,
        penalty_weight=config.penalty.weight, penalty_space=config.penalty.space, remat=values.remat,
    )  # fmt: skip
    return TrainConfig(
        epochs=values.epochs, batch_size=values.batch_size, gradient_accumulation=values.gradient_accumulation,
        checkpoint_every_steps=values.checkpoint_every_steps, keep_checkpoints=values.keep_checkpoints,
        seed=config.seed, optimiser=optimiser,
    )  # fmt: skip


def evaluate(session: Session) -> dict:
    """The model before and after training, under the same questions, prompts and random numbers."""
    config = session.config
    vanilla = None
    if config.evaluate.vanilla or config.strategy == "vanilla":
        vanilla = _evaluate_one(session, "vanilla", session.vanilla, None)
    if config.strategy != "vanilla":
        _evaluate_one(session, config.strategy, trained_model(session), vanilla)
    return {}


def trained_model(session: Session) -> nnx.Module:
    """The session's model with its trained adapters, restored where another process trained them."""
    adapters = nnx.to_flat_state(nnx.state(session.model, LoRAParam))
    if not any(np.any(leaf[...]) for path, leaf in adapters if path[-1] == "lora_b"):
        train_adapter(session)  # all steps are done: it only reads the last checkpoint
    return session.model


def _evaluate_one(session: Session, name: str, model: nnx.Module, vanilla: dict | None) -> dict:
    config, rows, bank = session.config, session.evaluation_rows, session.evaluation_bank
    paths = audio_paths(session.folder.evaluation_manifest, rows)
    clip_of = {Path(path): i for i, path in enumerate(paths)}
    sampling = SamplingConfig.from_generation_config(
        session.processor.generation, greedy=config.generate.greedy, max_new_tokens=config.generate.max_new_tokens,
        temperature=config.generate.temperature, top_p=config.generate.top_p, top_k=config.generate.top_k,
        repetition_penalty=config.generate.repetition_penalty,
    )  # fmt: skip

    def generate(requests: Sequence[GenerationRequest], on_finished: OnFinished) -> None:
        generator = Generator(
            model, sampling, eos_token_ids=session.processor.eos_token_ids, batch_size=config.generate.batch_size,
            cache_dtype=config.generate.cache_dtype,
        )  # fmt: skip
        prompts = []
        for i, request in enumerate(requests):
            clips = [] if request.audio is None else [clip_of[request.audio]]
            seed = int(content_hash(config.seed, list(request.key))[:8], 16)
            prompts.append(Prompt(key=i, row=session.encode(bank, clips, request.text), seed=seed))
        decode = session.processor.decode
        generator.generate(prompts, bank.array, lambda i, tokens: on_finished(requests[i], decode(tokens)))

    made_by = {
        "model": config.model.path,
        "adapter": None if model.lora is None else adapter_hash(model),
        "sampling": vars(sampling),
        "cache_dtype": config.generate.cache_dtype,
        "seed": config.seed,
        "clips": content_hash([content_hash(path.read_bytes()) for path in map(Path, paths)]),
    }
    return evaluate_model(
        name, rows, generate, modes=session.modes, samples=config.evaluate.samples,
        judge_names=config.evaluate.judges, folder=session.folder.evaluations,
        text_only_variant=config.evaluate.text_only_variant, over_refusal_modes=config.evaluate.over_refusal_modes,
        audio_folder=session.folder.evaluation_manifest.parent, made_by=made_by, model=config.model.path, strategy=name,
        vanilla=vanilla,
    )  # fmt: skip


def adapter_hash(model: nnx.Module) -> str:
    leaves = jax.device_get([leaf[...] for _, leaf in nnx.to_flat_state(nnx.state(model, LoRAParam))])
    return content_hash(*(leaf.tobytes() for leaf in leaves))


def export(session: Session) -> dict:
    """The adapter for PEFT and, where asked for, the merged folder; each with a model card."""
    config, folder = session.config, session.folder
    model, base = trained_model(session), session.model_folder
    name = config.model.path if config.model.path != MINI else str(base)
    targets = [folder.adapter]
    export_adapter(model, base, folder.adapter, base_name=name, layout=config.export.layout)
    if config.export.merged:
        export_merged(model, base, folder.merged)
        targets.append(folder.merged)
    settings = flatten(config) | {"data.questions": len(session.training_rows)}
    results = markdown_table([folder.path]) if list(folder.evaluations.glob("*/summary.json")) else None
    for target in targets:
        write_model_card(target, base_folder=base, base_name=name, settings=settings, results=results)
    return {}


def report(session: Session) -> dict:
    """The table of rates as Markdown; the terminal gets it at the end of every run."""
    write_atomic(session.folder.report / "table.md", markdown_table([session.folder.path]))
    return {}


STAGE_FUNCTIONS = {
    "data": make_data, "extract": extract, "train": train_adapter, "evaluate": evaluate, "export": export, "report": report,
}  # fmt: skip


def print_summary(folder: RunFolder) -> None:
    """The table where there is one, the seconds of each stage, and where things lie."""
    if list(folder.evaluations.glob("*/summary.json")):
        print(text_table([folder.path]))
    marks = [(name, folder.path / ".done" / f"{name}.json") for name in STAGE_FUNCTIONS]
    seconds = {name: read_json(mark).get("seconds") for name, mark in marks if mark.is_file()}
    print("seconds: " + ", ".join(f"{name} {value}" for name, value in seconds.items()))
    print(f"in {folder.path}:")
    for place in (
        folder.manifest, folder.representations, folder.metrics, folder.evaluations, folder.adapter, folder.merged,
        folder.report,
    ):  # fmt: skip
        if place.exists():
            print(f"  {place.relative_to(folder.path)}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
