"""Every field of a run, once: name, default, kind and a sentence. `python -m rrs_jax.config` prints them.

A config file calls `default_config()` and changes what it wants; the command line changes single fields with
`--config.NAME=VALUE`. Where the paper (Yang et al. 2025) leaves a choice open, the field's sentence says so.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from ml_collections import ConfigDict, FieldReference

from rrs_jax.errors import UserError
from rrs_jax.evaluate.judges import JUDGES
from rrs_jax.fields import Field, choice, either, names, nearest, number, switch, text, whole
from rrs_jax.inputs.prompts import MODES, PROMPT_REFUSAL, TEXT_ONLY_VARIANTS

STRATEGIES = ("vanilla", "rrs")
# Of all decoders.
LINEARS = (
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    "c_attn", "attn_c_proj", "w1", "w2", "mlp_c_proj",
)  # fmt: skip
LAYOUTS = ("whole4", "thinker4", "whole5", "thinker5")
MINI = "mini"  # a model.path of its own: the small real model, made on first use

FIELDS = {field.name: field for field in (
    Field("model.path", "", text("a Hugging Face folder, a hub id OWNER/NAME, or mini"),
          "Folder or hub id of the model; `mini` is the small real model, made on first use."),
    Field("model.dtype", "bfloat16", choice("bfloat16", "float32"),
          "Of the frozen weights and activations; LoRA, loss and representations are float32 always."),
    Field("data.manifest", None, either(text("a JSON-lines file"), None),
          "Training questions; None takes the starter set. Audio paths in it are relative to its folder."),
    Field("data.eval_manifest", None, either(text("a JSON-lines file"), None),
          "Evaluation questions; None takes the starter set's own, none of them a training question."),
    Field("data.categories", None, either(whole(1), None),
          "Starter set: only its first categories, so many; None is all 14."),
    Field("data.pairs_per_category", None, either(whole(1), None),
          "Starter set: pairs of a harmful question and its benign rewrite, per category; None is all (20)."),
    Field("data.eval_pairs_per_category", None, either(whole(1), None),
          "Starter set: evaluation pairs per category; None is all (10)."),
    Field("data.borderline", None, either(whole(0), None),
          "Starter set: harmless questions with alarming words, for over-refusal; None is all (120)."),
    Field("data.voices", (), names("different voice names, with commas between", empty=True),
          "Voices to draw from (appendix B draws at random); empty is all that the speech library has."),
    Field("data.audio_max_seconds", 30.0, number(0.1, 30),
          "Seconds; longer clips are refused, since the encoder hears 30 s at most."),
    Field("run_dir", "runs/default", text("a folder"), "Everything that the run makes lies here."),
    Field("strategy", "rrs", choice(*STRATEGIES),
          "`rrs` trains (section 4); `vanilla` evaluates the model as it is."),
    Field("seed", 0, whole(0, 2**31 - 1),
          "Of LoRA's start, data order, prompts t', voices and sampled answers."),

    Field("rrs.top_m", 51.0, either(number(0, 100, above=True), "positive"),
          "Percent of features kept in the safety vector (section 4.1), by contribution to the refusal "
          "token's logit; `positive` keeps those that raise it, about 51 %."),
    Field("rrs.refusal_prompt", PROMPT_REFUSAL, text("a prompt"),
          "t̃ of equation 8, under which the model is to refuse harmful questions; the default is the paper's. "
          "Whether it does is printed by the extract stage."),
    Field("rrs.refusal_token", "I", text("the text of one token"),
          "Its row of the output head is w in equation 10."),
    Field("penalty.weight", 1.0, number(0),
          "Factor of the penalty in the loss (equation 13); the paper has none, so 1. On the mini, with the sum "
          "over features, 1 changes nothing and about 100 acts as in table 3 (docs/results.md)."),
    Field("penalty.space", "weights", choice("weights", "lora"),
          "`weights`: squared distance of the adapted matrices from the base, as written in the paper; "
          "`lora`: squared distance of the LoRA arrays from their start."),
    Field("loss.reduction", "sum", choice("sum", "mean"),
          "Over features, of the squared distance to the target: `sum` is the equation as written. "
          "Its scale against the penalty is not in the paper; `mean` makes that hidden_size times heavier."),
    Field("lora.rank", 8, whole(1), "Not in the paper; 8 is PEFT's default."),
    Field("lora.alpha", 16.0, number(0, above=True),
          "Not in the paper; adapters are scaled by alpha / rank."),
    Field("lora.targets", ("all",), names(f"all, or different names out of {', '.join(LINEARS)}", "all", *LINEARS),
          "Linears of each decoder layer that get an adapter; the paper says \"LLM modules\", so all. "
          "A model refuses names that its decoder does not have."),
    Field("lora.layers", "all", either(whole(0), "all"),
          "`all`, or the first layer with an adapter: layers below it have none and need no backward pass."),

    Field("train.epochs", 10, whole(1), "Passes over the training questions (section 5.1)."),
    Field("train.batch_size", 16, whole(1), "Questions a step, over all devices (section 5.1)."),
    Field("train.gradient_accumulation", 1, whole(1),
          "Parts that a step's batch is cut into to save memory; must divide train.batch_size."),
    Field("train.learning_rate", 5e-5, number(0, above=True), "AdamW's highest rate (section 5.1)."),
    Field("train.schedule", "constant", choice("constant", "cosine", "linear"),
          "After the warm-up; cosine and linear fall to 0 at the last step. Not in the paper."),
    Field("train.warmup_steps", 0, whole(0), "Steps in which the rate rises from 0. Not in the paper."),
    Field("train.clip_norm", None, either(number(0, above=True), None),
          "Highest global norm of the gradient; None does not clip. Not in the paper."),
    Field("train.weight_decay", 0.0, number(0),
          "AdamW's; not in the paper, whose penalty already holds the weights."),
    Field("train.b1", 0.9, number(0, 0.999999), "AdamW's decay of the gradient's mean."),
    Field("train.b2", 0.999, number(0, 0.999999), "AdamW's decay of the gradient's square."),
    Field("train.eps", 1e-8, number(0, above=True), "AdamW's term in the denominator."),
    Field("train.checkpoint_every_steps", 50, whole(1),
          "Steps between checkpoints; a killed run loses at most these."),
    Field("train.keep_checkpoints", 2, whole(1), "Latest checkpoints kept, beside the best."),
    Field("train.remat", "dots", choice("none", "dots", "full"),
          "Activations computed again in the backward pass: none, all but matrix products, or all."),
    Field("extract.batch_size", 16, whole(1), "Questions at once in passes without gradient."),

    Field("mesh.data", -1, either(whole(1), -1),
          "Devices along which batches are cut; -1 is all that are left."),
    Field("mesh.fsdp", 1, either(whole(1), -1), "Devices over which batches and weights are cut."),
    Field("mesh.tensor", 1, either(whole(1), -1), "Devices over which heads and mlp columns are cut."),

    Field("generate.batch_size", 16, whole(1),
          "Answers in flight at once; the samples of one question are in flight together and share its prompt."),
    Field("generate.cache_dtype", "auto", choice("auto", "bfloat16", "float32", "int8"),
          "Of the keys and values that answers in flight keep; `auto` is model.dtype, `int8` halves bfloat16's "
          "memory at a relative error of about 1 % in a layer's attention (docs/generation.md)."),
    Field("generate.max_new_tokens", 256, whole(1),
          "Tokens after which an answer is cut. Not in the paper."),
    Field("generate.greedy", False, switch(),
          "Likeliest token always; otherwise sampled as the next four say."),
    Field("generate.temperature", None, either(number(0, above=True), None),
          "None is the model folder's value."),
    Field("generate.top_p", None, either(number(0, 1, above=True), None),
          "None is the model folder's value."),
    Field("generate.top_k", None, either(whole(0), None),
          "None is the model folder's value; 0 keeps all tokens."),
    Field("generate.repetition_penalty", None, either(number(0, above=True), None),
          "None is the model folder's value."),

    Field("evaluate.modes", MODES, names(f"different names out of {', '.join(MODES)}", *MODES),
          "Ways of asking a harmful question (section 5.1)."),
    Field("evaluate.over_refusal_modes", ("audio_text",),
          names(f"different names out of {', '.join(MODES)}", *MODES, empty=True),
          "Of these, the ways of asking benign and borderline ones; the paper has one ORR a model."),
    Field("evaluate.samples", 5, whole(1), "Answers to each question in each mode (section 5.1)."),
    Field("evaluate.judges", ("phrases", "first_token"),
          names(f"different names out of {', '.join(JUDGES)}", *JUDGES),
          "Who says what a refusal is; the paper does not name its judge."),
    Field("evaluate.limit", None, either(whole(1), None), "Questions of each set at most; None is all."),
    Field("evaluate.text_only_variant", "prompted", choice(*TEXT_ONLY_VARIANTS),
          "`prompted` announces the question as an audio's content, `plain` does not; not in the paper."),
    Field("evaluate.vanilla", True, switch(), "Evaluate the model before training too; NSI needs it."),
    Field("export.merged", False, switch(),
          "Write a whole model folder with the adapter merged, beside the adapter."),
    Field("export.layout", "auto", choice("auto", *LAYOUTS),
          "Whose module names the adapter has: `whole` for the class of the whole model, `thinker` for that of "
          "Qwen2.5-Omni's thinker alone, each in transformers 4 or 5; docs/export.md says what loads which."),
)}  # fmt: skip


def default_config() -> ConfigDict:
    """All fields with their defaults, locked: a config file that misspells one fails at that line."""
    config = ConfigDict()
    for field in FIELDS.values():
        *groups, leaf = field.name.split(".")
        group = config
        for name in groups:
            if name not in group:
                group[name] = ConfigDict()
            group = group[name]
        mixed = field.kind.type is object
        group[leaf] = FieldReference(field.default, field_type=object) if mixed else field.default
    return config.lock()


def choose_variant(config: ConfigDict, variant: str, **variants: Callable[[ConfigDict], None]) -> None:
    """Applies what stands behind the colon of `--config=FILE:VARIANT`. Raises UserError for an unknown one."""
    if variant and variant not in variants:
        raise UserError(f"--config: {variant!r} is no variant of this file; it has {', '.join(variants)}.")
    if variant:
        variants[variant](config)


def flatten(config: ConfigDict | dict, prefix: str = "") -> dict[str, object]:
    """Dotted names to plain values."""
    flat = {}
    for name, value in (config.to_dict() if isinstance(config, ConfigDict) else config).items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def validate(config: ConfigDict) -> None:
    """Raises one UserError that names every unknown, missing and wrong field, before any weight is read."""
    values = flatten(config)
    problems = [unknown_field(name) for name in values if name not in FIELDS]
    problems += [f"{name} is missing, start from default_config()" for name in FIELDS if name not in values]
    known = ((FIELDS[name], value) for name, value in values.items() if name in FIELDS)
    problems += [problem for field, value in known if (problem := field.problem(value))]
    if not problems:
        problems = list(_contradictions(values))
    if problems:
        raise config_error(problems)


def config_error(problems: Iterable[str]) -> UserError:
    return UserError(f"config: {'; '.join(problems)}.")


def unknown_field(name: str) -> str:
    members = [field for field in FIELDS if field.startswith(name + ".")]
    if members:
        return f"{name} is a group, give one of its fields such as {members[0]}"
    match = nearest(name, FIELDS)
    hint = f"the nearest is {match}" if match else "`python -m rrs_jax.config` lists all fields"
    return f"{name} is no field, {hint}"


def _contradictions(values: dict[str, object]) -> Iterable[str]:
    """What is wrong although every field is right by itself."""
    for name in ("data.manifest", "data.eval_manifest"):
        if values[name] is not None and not Path(values[name]).is_file():
            yield f"{name} is {values[name]!r} and there is no such file"
    if sum(values[f"mesh.{axis}"] == -1 for axis in ("data", "fsdp", "tensor")) > 1:
        yield "mesh has more than one -1, give all axes but one a number"
    if values["train.batch_size"] % values["train.gradient_accumulation"]:
        yield (f"train.gradient_accumulation is {values['train.gradient_accumulation']} and does not divide "
               f"train.batch_size {values['train.batch_size']}")  # fmt: skip
    if values["generate.greedy"] and values["evaluate.samples"] > 1:
        yield (f"evaluate.samples is {values['evaluate.samples']} with generate.greedy, which answers "
               "the same each time, give evaluate.samples=1 or greedy=false")  # fmt: skip
    outside = [mode for mode in values["evaluate.over_refusal_modes"] if mode not in values["evaluate.modes"]]
    if outside:
        yield f"evaluate.over_refusal_modes has {', '.join(outside)}, which evaluate.modes lacks"


def main() -> None:
    for field in FIELDS.values():
        print(f"--config.{field.name}={field.default!r}\n    {field.sentence} Takes {field.kind.wants}.")


if __name__ == "__main__":
    main()
