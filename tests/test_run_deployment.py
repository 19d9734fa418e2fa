"""What a deployer asks, through the evaluate stage: answers against torch and PEFT, tasks, the report."""

import numpy as np
import peft
import pytest
import soundfile
import torch
import transformers

from helpers.qwen2_audio import prompt_inputs
from rrs_jax.config import default_config, validate
from rrs_jax.config.prompts import MODES, PROMPT_T, TASK_PROMPTS, evaluation_prompt
from rrs_jax.data.starter import StarterChoice, choose_rows
from rrs_jax.errors import UserError
from rrs_jax.evaluate.pool import pool_runs
from rrs_jax.evaluate.rates import bootstrap, rate_over_queries
from rrs_jax.files import read_json, read_jsonl, with_sum, write_json, write_jsonl
from rrs_jax.report.deployment import deployment_text
from rrs_jax.report.page import make_page
from rrs_jax.report.table import text_table
from rrs_jax.run import pipeline
from rrs_jax.run.context import RunContext
from rrs_jax.run.deployment import TOKENS
from rrs_jax.run.everyday import read_everyday
from rrs_jax.run.folder import RunFolder
from rrs_jax.run.local_engine import TUNED, LocalEngine
from rrs_jax.run.recorded_config import recorded_config
from rrs_jax.run.sweep_cache import SweepCache
from rrs_jax.strategies.served import Served
from rrs_jax.testing import twin_rows
from rrs_jax.weights.safetensors_io import read_header

EVERYDAY = 3


def everyday_rows(sound_files) -> list[dict]:
    return [
        {"id": f"plain{i}", "label": "benign", "question": f"What is a name {i}?", "audio": str(clip)}
        for i, clip in enumerate(sound_files[5 : 5 + EVERYDAY])
    ]


@pytest.fixture(scope="module")
def run(whole_folder, sound_files, tmp_path_factory):
    """Returns the config of a finished run, whose vanilla part another one made in the same sweep."""
    path = tmp_path_factory.mktemp("deployment")
    write_jsonl(path / "manifest.jsonl", twin_rows(sound_files))
    write_jsonl(path / "everyday.jsonl", everyday_rows(sound_files))
    config = default_config()
    config.model.path, config.model.dtype = str(whole_folder), "float32"
    config.data.manifest = config.data.eval_manifest = str(path / "manifest.jsonl")
    config.train.epochs, config.train.batch_size, config.train.learning_rate = 2, 8, 1e-2
    config.evaluate.samples, config.generate.max_new_tokens = 1, 4
    config.evaluate.everyday = str(path / "everyday.jsonl")
    config.evaluate.setting = ("spoken", *TASK_PROMPTS)
    config.report.representation_epochs = ()
    shared = SweepCache(path / "shared")
    runs = []
    for seed in (0, 1):
        runs.append(config.copy_and_resolve_references())
        runs[-1].run_dir, runs[-1].seed = str(path / ("rrs" if seed == 0 else f"rrs-seed{seed}")), seed
        pipeline.run(runs[-1], ("data",), shared)
    shared.know_clips(runs)
    for each in runs:
        pipeline.run(each, ("extract", "train", "evaluate", "export"), shared)
    return runs[0], path


def prompt_of(processor, mode: str, row: dict) -> dict[str, torch.Tensor]:
    """A model's inputs in a mode, by transformers' own processor."""
    text = evaluation_prompt(mode, row["question"], "prompted")
    if mode == "audio_text":
        return prompt_inputs(processor, row["audio"], text)
    content = (
        [{"type": "text", "text": text}] if mode == "text_only" else [{"type": "audio", "audio_url": ""}]
    )
    written = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    audio = (
        {}
        if mode == "text_only"
        else {"audio": [soundfile.read(row["audio"], dtype="float32")[0]], "sampling_rate": 16_000}
    )
    return processor(text=written, return_tensors="pt", **audio)


def log_probabilities(model, inputs, answer: torch.Tensor) -> torch.Tensor:
    """Next-token distributions (tokens of the answer, V) in float64, teacher-forced."""
    ids = torch.cat([inputs["input_ids"], answer[None, :-1]], dim=1)
    more = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits[0]
    return torch.log_softmax(logits[inputs["input_ids"].shape[1] - 1 :].double(), dim=-1)


def greedy(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS, top_k=None, temperature=None)
    return ids[0, inputs["input_ids"].shape[1] :]


def test_divergences_are_those_of_torch_and_peft(run, whole_folder):
    config, path = run
    rows = read_jsonl(path / "rrs" / "eval" / "rrs" / "kept_answers.jsonl")
    questions = {row["id"]: row for row in read_jsonl(path / "everyday.jsonl")}
    assert [(row["mode"], row["id"]) for row in rows] == [
        (mode, name) for mode in MODES for name in questions
    ]
    processor = transformers.Qwen2AudioProcessor.from_pretrained(whole_folder)
    base = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(whole_folder).eval()
    expected = []
    for row in rows:
        inputs = prompt_of(processor, row["mode"], questions[row["id"]])
        answer = greedy(base, inputs)
        expected.append((inputs, answer, log_probabilities(base, inputs, answer)))
    adapted = peft.PeftModel.from_pretrained(base, path / "rrs" / "export" / "adapter").eval()
    for row, (inputs, answer, before) in zip(rows, expected, strict=True):
        after = log_probabilities(adapted, inputs, answer)
        divergence = (before.exp() * (before - after)).sum(-1).mean().item()
        assert row["tokens"] == len(answer)
        assert row["answer"] == processor.tokenizer.decode(answer, skip_special_tokens=True)
        assert row["divergence"] == pytest.approx(divergence, rel=1e-4, abs=1e-7) and divergence > 1e-3
        assert row["unchanged"] == torch.equal(greedy(adapted, inputs), answer)


def test_an_identical_model_keeps_everything(run):
    config, path = run
    context = RunContext(config, RunFolder(config.run_dir, config))
    rows = everyday = read_everyday(config)
    asked = [(PROMPT_T, row["audio"]) for row in rows] + [(row["question"], None) for row in everyday]
    same = LocalEngine(context, lambda context: Served([context.load_model()], {}))
    found = same.compare(TUNED, asked, TOKENS)
    assert [(row["divergence"], row["unchanged"]) for row in found] == [(0.0, True)] * len(asked)

    # A model for every other prompt: those that the vanilla model answers are kept, the others are not.
    def choose(prompts, bank):
        return np.arange(len(prompts)) % 2

    two = LocalEngine(
        context, lambda context: Served([context.load_model(), context.restore_adapters()], {}, choose=choose)
    )
    found = two.compare(TUNED, asked, TOKENS)
    assert [row["divergence"] == 0 for row in found] == [place % 2 == 0 for place in range(len(asked))]
    told = LocalEngine(context, lambda context: Served([context.load_model()], {}, system="Be brief."))
    assert all(row["divergence"] > 0 for row in told.compare(TUNED, asked, TOKENS))


def test_the_file_has_means_and_intervals_over_questions(run):
    _, path = run
    found = read_json(path / "rrs" / "eval" / "rrs" / "deployment.json")
    rows = read_jsonl(path / "rrs" / "eval" / "rrs" / "kept_answers.jsonl")
    for mode in MODES:
        own = [row for row in rows if row["mode"] == mode]
        nats = np.array([row["divergence"] * row["tokens"] for row in own])
        tokens = np.array([float(row["tokens"]) for row in own])
        block = found["kept_answers"][mode]
        assert block["divergence"] == pytest.approx(nats.sum() / tokens.sum(), abs=1e-6)
        assert block["divergence_ci95"] == pytest.approx(bootstrap(nats, tokens, seed=0), abs=1e-6)
        rate = rate_over_queries([row["unchanged"] for row in own], [1] * EVERYDAY)
        assert (block["unchanged"], block["ci95"]) == (rate.rate, list(rate.ci95))
        assert (block["questions"], block["answers"], block["tokens"]) == (EVERYDAY, EVERYDAY, sum(tokens))


def test_tasks_are_asked_of_both_models_and_stand_in_no_rate(run):
    _, path = run
    folder = path / "rrs" / "eval"
    found = read_json(folder / "rrs" / "deployment.json")["tasks"]
    assert list(found) == list(TASK_PROMPTS)
    for task in TASK_PROMPTS:
        for when, name in (("before", "vanilla"), ("after", "rrs")):
            rows = read_jsonl(folder / f"{name}-{task}" / "judgements.jsonl")
            phrases = [row for row in rows if row["judge"] == "phrases"]
            for label in ("harmful", "benign"):
                refused = [row["refusal"] for row in phrases if row["set"] == label]
                block = found[task][when][label]
                assert (block["responses"], block["rate"]) == (4, 100 * sum(refused) / 4)
            assert set(found[task][when]) == {"harmful", "benign"}  # no others are in the manifest
        assert read_json(folder / f"rrs-{task}" / "summary.json")["nsi"] is None
        made = read_json(folder / f"rrs-{task}" / "responses.meta.json")["made_by"]
        assert made["prompts"] == {"audio_text": TASK_PROMPTS[task]}
    assert "transcribe" not in text_table([path / "rrs"])
    assert (path / "rrs" / "export" / "adapter" / "README.md").read_text().count("transcribe") == 0


def test_a_sweep_computes_the_vanilla_part_once(run):
    """The second run finds answers and states, and its own figures stand beside the first one's."""
    _, path = run
    log = read_jsonl(path / "shared" / "responses.jsonl")
    assert len(log) == len({row["key"] for row in log}) == 3 * EVERYDAY
    kept = [read_header(file)[0] for file in (path / "shared" / "states").glob("*.safetensors")]
    along = [name for entries in kept for name, entry in entries.items() if entry.shape == (TOKENS, 48)]
    assert len(along) == len(set(along)) == 3 * EVERYDAY
    first, second = (path / name / "eval" / "rrs" / "kept_answers.jsonl" for name in ("rrs", "rrs-seed1"))
    first, second = read_jsonl(first), read_jsonl(second)
    for one, other in zip(first, second, strict=True):
        assert one["divergence"] != other["divergence"]
        assert [one[name] for name in ("id", "mode", "answer")] == [
            other[name] for name in ("id", "mode", "answer")
        ]


def test_how_many_are_refused_stands_in_the_summaries(run):
    _, path = run
    for seed in ("rrs", "rrs-seed1"):
        for name in ("vanilla", "rrs"):
            folder = path / seed / "eval" / name
            judged = [
                row["refusal"]
                for row in read_jsonl(folder / "judgements.jsonl")
                if (row["set"], row["judge"]) == ("everyday", "phrases")
            ]
            block = read_json(folder / "summary.json")["everyday_orr"]
            assert (len(judged), block["queries"]) == (EVERYDAY, EVERYDAY)
            assert (block["refusals"], block["rate"]) == (sum(judged), 100 * sum(judged) / EVERYDAY)
            assert block["ci95"] == list(rate_over_queries(judged, [1] * EVERYDAY).ci95)
    # A task is asked beside the evaluation's own clips alone.
    tasks = read_jsonl(path / "rrs" / "eval" / "rrs-topic" / "responses.jsonl")
    assert {row["set"] for row in tasks} == {"harmful", "benign"}
    assert "3 everyday" in text_table([path / "rrs"])


def test_a_finished_run_is_asked_later_and_each_question_once(run, everyday_later):
    config, path, before = run[0], *everyday_later
    for name in ("vanilla", "rrs"):
        rows = read_jsonl(path / "eval" / name / "responses.jsonl")
        assert rows[: len(before[name])] == before[name]
        more = rows[len(before[name]) :]
        assert {row["set"] for row in more} == {"everyday"}
        # The evaluation manifest asks the first of them itself.
        assert {row["id"] for row in more} == {row["id"] for row in read_everyday(config)[1:]}
    assert read_json(path / "eval" / "rrs" / "summary.json")["everyday_orr"]["queries"] == EVERYDAY
    assert recorded_config(path).evaluate.everyday == config.evaluate.everyday


@pytest.fixture(scope="module")
def everyday_later(run, sound_files, tmp_path_factory):
    """Returns the folder of a run whose everyday questions were asked in a second command, and the responses
    of each of its models to the first one."""
    path = tmp_path_factory.mktemp("later")
    config = run[0].copy_and_resolve_references()
    own = everyday_rows(sound_files)[0] | {"id": "own", "label": "everyday"}
    write_jsonl(path / "manifest.jsonl", [*twin_rows(sound_files), own])
    config.data.eval_manifest, config.run_dir = str(path / "manifest.jsonl"), str(path / "run")
    config.train.epochs, config.evaluate.setting = 1, ("spoken",)
    later = config.copy_and_resolve_references()
    config.evaluate.everyday = None
    pipeline.run(config, ("data", "extract", "train", "evaluate"))
    before = {
        name: read_jsonl(path / "run" / "eval" / name / "responses.jsonl") for name in ("vanilla", "rrs")
    }
    recorded = read_json(path / "run" / "config.json")
    recorded["config"]["data"]["eval_everyday"] = 0  # of a version that knew this field
    write_json(path / "run" / "config.json", with_sum(recorded))
    pipeline.run(later, ("evaluate",))
    return path / "run", before


def test_seeds_are_pooled_and_reported(run, tmp_path):
    _, path = run
    runs = [path / "rrs", path / "rrs-seed1"]
    for name in ("rrs", *(f"rrs-{task}" for task in TASK_PROMPTS)):
        pool_runs(runs, name, tmp_path / "pooled")
    pooled = read_json(tmp_path / "pooled" / "eval" / "rrs" / "deployment.json")
    each = [read_json(run / "eval" / "rrs" / "deployment.json") for run in runs]
    for mode in MODES:
        block, parts = pooled["kept_answers"][mode], [one["kept_answers"][mode] for one in each]
        assert (block["questions"], block["answers"]) == (EVERYDAY, 2 * EVERYDAY)
        assert block["unchanged"] == pytest.approx(np.mean([part["unchanged"] for part in parts]), abs=1e-3)
        nats = sum(part["divergence"] * part["tokens"] for part in parts)
        assert block["divergence"] == pytest.approx(nats / block["tokens"], abs=2e-6)
        assert pooled["kept_refusals"][mode]["responses"] == 8
    assert pooled["tasks"]["topic"]["after"]["harmful"]["responses"] == 8
    text, marked = deployment_text([tmp_path / "pooled"]), deployment_text(runs, markdown=True)
    shown = pooled["kept_answers"]["text_only"]
    low, high = shown["divergence_ci95"]
    assert f"{shown['divergence']:.4f} [{low:.4f}, {high:.4f}]" in text
    assert "rrs, translate" in text and "| rrs-seed1: rrs, audio-only |" in marked
    page = make_page(tmp_path / "page", runs, "sweep").read_text()
    assert 'id="deployment"' in page and f"{shown['divergence']:.4f} [{low:.4f}, {high:.4f}]" in page


def test_the_starter_sets_questions_are_those_of_no_training_by_turns_of_topics(run):
    config = run[0].copy_and_resolve_references()
    config.evaluate.everyday = "starter"
    rows = read_everyday(config)
    trained_on = {
        row["question"] for row in choose_rows(StarterChoice("train", everyday=None, contrast=None))
    }
    assert len(rows) == 140 and not trained_on & {row["question"] for row in rows}
    config.evaluate.limit = 14
    assert len({row["category"] for row in read_everyday(config)}) == 14


def test_what_cannot_be_asked_is_told(run, tmp_path):
    config = run[0].copy_and_resolve_references()
    config.evaluate.everyday = str(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="evaluate.everyday is .*none.jsonl', which is neither starter nor"):
        validate(config)
    write_jsonl(tmp_path / "mixed.jsonl", [{"id": "a", "label": "harmful", "question": "How do I?"}])
    config.evaluate.everyday = str(tmp_path / "mixed.jsonl")
    with pytest.raises(UserError, match="has 1 questions that are labelled neither everyday nor benign .a."):
        pipeline.run(config, ("evaluate",))
