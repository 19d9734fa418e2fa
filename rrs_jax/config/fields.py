"""Every field of a run, once: name, default, kind and a sentence. `python -m rrs_jax.config` prints them.

A config file calls `rrs_jax.config.default_config()` and changes what it wants; the command line changes
single fields with `--config.NAME=VALUE`. Where the paper (Yang et al. 2025) leaves a choice open, the field's
sentence says so. The fields of training lie in `rrs_jax.config.training`.
"""

from rrs_jax.config.kinds import (
    Field,
    address,
    boolean,
    choice,
    either,
    hub_name,
    integer,
    integers,
    names,
    number,
    path,
    paths,
    text,
)
from rrs_jax.config.prompts import MODES, PROMPT_REFUSAL, SAFETY_SYSTEM_PROMPT, TEXT_ONLY_VARIANTS
from rrs_jax.config.strategy_table import STRATEGY_TABLE
from rrs_jax.config.training import SEED, training_fields
from rrs_jax.config.vocabulary import JUDGES_WRITTEN, SETTINGS, STYLES, augmentations, categories

# The linear layers of a decoder layer that can have an adapter, those of all architectures.
LINEARS = (
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    "c_attn", "attn_c_proj", "w1", "w2", "mlp_c_proj",
)  # fmt: skip
LAYOUTS = ("whole4", "thinker4", "whole5", "thinker5")

FIELDS = {field.name: field for field in (
    Field("model.path", "", path("a Hugging Face folder, a hub id OWNER/NAME, mini, or small"),
          "Folder or hub id of the model; `mini` and `small` are the small real models, made on first use."),
    Field("model.digest", "samples", choice("samples", "whole"),
          "How a run knows large weights again: `samples` reads the header and some bytes of every tensor, "
          "less than a second for 16 GB; `whole` reads all bytes, some seconds a GB.", placement=True),
    Field("model.dtype", "bfloat16", choice("bfloat16", "float32"),
          "Number type of the frozen weights and the activations; LoRA, loss and representations are always "
          "float32."),
    Field("model.quantize", "none", choice("none", "int8", "float8"),
          "8-bit storage of the decoder's frozen matrices, with a scale for each output: half of bfloat16's "
          "memory. `float8` also multiplies in 8 bit, with activations that are rounded token by token. "
          "docs/training_step.md states the errors; adapters and export stay exact."),
    Field("data.manifest", None,
          either(path("a JSON-lines file or a clone of the authors' repository"), None),
          "Training questions; None takes the starter set. Audio paths in it are relative to its folder. A "
          "folder is read as the authors' questions (docs/authors.md)."),
    Field("data.basic_manifest", None, either(path("a JSON-lines file"), None),
          "Training questions of sft_full, with safe responses; None takes the starter set, answered by the "
          "model itself."),
    Field("data.parallel_manifest", None, either(path("a JSON-lines file"), None),
          "Training questions of sft_shallow_parallel, harmful ones beside unrelated benign ones; None takes "
          "the starter set."),
    Field("data.eval_manifest", None, either(path("a JSON-lines file"), None),
          "Evaluation questions; None takes the starter set's own, none of them a training question."),
    Field("data.train_set", "starter", choice("starter", "styles"),
          "Built-in pairs that are trained on where no manifest is given: `starter`, plain questions; "
          "`styles`, 100 pairs a category in ten styles (docs/data.md)."),
    Field("data.left_out_styles", (),
          names(f"different styles with commas between, among {', '.join(STYLES)}", *STYLES, empty=True),
          "Styles of data.train_set=styles that are not trained on; they are asked in evaluation all the "
          "same."),
    Field("data.left_out_categories", (), categories(),
          "Categories of the built-in pairs that are not trained on; they are asked in evaluation all "
          "the same. Their names are written as they are, with the commas in them."),
    Field("data.eval_set", "eval", choice("eval", "check", "styles", "styles_check"),
          "Starter set: which pairs and borderline questions are asked; `check` is as many others, to "
          "measure what was chosen by those of `eval`. `styles` and `styles_check` ask the pairs in ten "
          "styles, with the borderline questions of `eval` and of `check`."),
    Field("data.categories", None, either(integer(1), None),
          "Starter set: number of categories, the first ones; None is all 14."),
    Field("data.pairs_per_category", None, either(integer(0), None),
          "Starter set: pairs of a harmful question and its benign rewrite, per category; None is all (20, "
          "of the styles set 100, in which styles take turns), with 0 there are everyday and contrast "
          "questions alone."),
    Field("data.eval_pairs_per_category", None, either(integer(1), None),
          "Starter set: evaluation pairs per category; None is all (10, of the styles set 20)."),
    Field("data.borderline", None, either(integer(0), None),
          "Starter set: harmless questions with alarming words, for over-refusal; None is all (120)."),
    Field("data.everyday", 0, either(integer(0), None),
          "Starter set, also beside a manifest: plain questions on which the model is to stay as it is; None "
          "is all 140."),
    Field("data.contrast", 0, either(integer(0), None),
          "Starter set, also beside a manifest: harmless questions with alarming words, in other styles than "
          "the rewrites; None is all 160."),
    Field("data.contrast_role", "keep", choice("keep", "mirror"),
          "Role of the contrast questions: `keep`, the model is to stay as it is on them; `mirror`, they "
          "move as rewrites do."),
    Field("data.rewrites_per_pair", 1, integer(1, 2),
          "Starter set: benign rewrites of each harmful question of Mirror."),
    Field("data.voices_per_question", 1, integer(1),
          "Starter set: different voices that say each training question; every clip is a sample of its "
          "own."),
    Field("data.augment", (), augmentations(),
          "Changes of each training clip, one behind the other, by an amount drawn for it from LOW to HIGH: "
          "`speed` (times as fast, pitch with it), `tempo` (times as fast), `pitch` (semitones), `snr` "
          "(white noise, dB below the speech), such as `speed:0.9:1.1,snr:15:30`. Empty leaves the clips."),
    Field("data.seed", 0, integer(0, 2**31 - 1),
          "Seed of the data: each question's voice, what data.augment draws, noise as a distractor, and "
          "which questions a part of the starter set has."),
    Field("data.voices", (), names("different voice names, with commas between", empty=True),
          "Voices to draw from (appendix B draws at random); empty is all that the speech library has."),
    Field("data.max_cost_usd", 0.0, number(0),
          "US dollars that paid voices (`google`) may cost in this run; the estimate is told before anything "
          "is bought.", placement=True),
    Field("data.exclude", (), paths(names("different files, with commas between", empty=True)),
          "Files of evaluation questions (CSV, JSON, JSON lines, Parquet, text); a run with one of them, "
          "exact or nearly, among the training questions ends in the data stage."),
    Field("data.bad_rows", "error", choice("error", "skip"),
          "Rows of manifests and question files that cannot be used (no question, a text that cannot be "
          "spoken, a clip that is missing or damaged): `error` ends the run and lists them, `skip` leaves "
          "them out and lists them."),
    Field("data.audio_max_seconds", 30.0, number(0.1, 30),
          "Seconds; longer clips are refused, since the encoder hears 30 s at most."),
    Field("run_dir", "runs/default", path("a folder"), "Everything that the run makes lies here.",
          placement=True),
    Field("strategy", "rrs", choice(*STRATEGY_TABLE),
          "; ".join(f"`{name}`: {entry.what}" for name, entry in STRATEGY_TABLE.items()) + "."),
    SEED,

    Field("rrs.top_m", 51.0, either(number(0, 100, above=True), "positive"),
          "Percent of features kept in the safety vector (section 4.1), by contribution to the refusal "
          "token's logit; `positive` keeps those that raise it, about 51 %."),
    Field("rrs.top_m_rule", "count", choice("count", "authors"),
          "How rrs.top_m selects: `count` keeps the share that contributes most; `authors` does as the "
          "authors' program (docs/authors.md): 51 keeps every feature that does not lower the logit, other "
          "shares leave out the lowest."),
    Field("rrs.target_dtype", "float32", choice("float32", "model"),
          "Number type of the safety vector and the targets; `model` rounds them to model.dtype, as the "
          "authors' program does."),
    Field("rrs.refusal_prompt", PROMPT_REFUSAL, text("a prompt"),
          "t̃ of equation 8, under which the model is to refuse harmful questions; the default is the "
          "paper's. The extract stage prints whether it does."),
    Field("rrs.refusal_tokens", ("I",), names("different texts of one token each"),
          "The token's row of the output head is w in equation 10; of several tokens it is the mean row."),
    Field("rrs.target", "mean", choice("mean", "own", "category"),
          "Target of harmful questions: `mean` is V0(d, t) moved by the safety vector (equation 12); `own` "
          "takes its selected features from the question's own V0(d, t̃); `category` moves by a vector of "
          "the question's category."),
    Field("rrs.direction", "refusal_prompt", choice("refusal_prompt", "twins"),
          "What the mean change is between, before features are selected: `refusal_prompt`, harmful "
          "questions under t̃ and benign ones under t (equation 9); `twins`, harmful questions and their own "
          "rewrites, both under t, at the length of equation 9's."),
    Field("rrs.amount", "same", choice("same", "own"),
          "How far a question moves along the safety vector: `same` by its length (equation 12); `own` a "
          "harmful one up to the median of the frozen model's refused states and a harmless one down to the "
          "95th percentile of the kept questions (of all harmless ones where none is kept), and not at all "
          "where it is there already. All of it is the frozen model's, in every epoch."),
    Field("rrs.benign_target", "mirror", choice("mirror", "keep", "hinge"),
          "Target of the rewrites: `mirror` is V0(d, t) moved against the safety vector (equation 12); "
          "`keep` is what the model has already, under each prompt; `hinge` pulls only while a refusal "
          "token's log-odds are above -rrs.margin."),
    Field("rrs.read_share", 0.0, number(0, 1),
          "Targets start this far on the way from the frozen model's state where a question is heard to its "
          "state where the same question is read beside the same text, so that training also teaches to hear "
          "the words."),
    Field("rrs.margin", 5.0, number(0),
          "Margin of rrs.benign_target=hinge, in log-odds; 5 is a probability of 0.7 %."),
    Field("rrs.keep_weight", 1.0, number(0, above=True),
          "Factor of the loss of questions with the role `keep` (data.everyday, data.contrast, or in a "
          "manifest), and of those of train.kept_text_share and train.kept_task_share."),
    Field("rrs.harmful_weight", 1.0, number(0, above=True),
          "Factor of the loss of harmful questions, where several harmless ones stand against each."),
    Field("rrs.harmful_audio_weight", None, either(number(0, above=True), None),
          "Factor of the loss of harmful questions that are asked by their clip alone (train.audio_share); "
          "None is rrs.harmful_weight."),
    Field("rrs.rewrite_weight", 1.0, number(0, above=True),
          "Factor of the loss of benign questions that have a harmful twin."),
    Field("rrs.overlap_weight", 0.0, number(0, 1),
          "β: the loss of a harmful question is also multiplied by 1 - β·c, with c the highest cosine, 0 at "
          "least, of its state and those of the harmless questions of other pairs, in the frozen model and "
          "less the mean of all. What looks like harmless questions then pulls less."),
    Field("rrs.whiten", None, either(number(0, 1, above=True), None),
          "Shrinkage of the benign covariance by whose inverse ΔV is turned, at its length, so that it does "
          "not point along what benign questions differ in; None leaves ΔV."),
    Field("rrs.project", 0, integer(0),
          "Principal directions of the benign representations removed from ΔV."),
    Field("rrs.positions", 1, integer(1, 64),
          "Positions with a target: the prompt's last, then those behind the first tokens of the frozen "
          "model's own refusal under t̃ or own answer, where it keeps what it has."),
    Field("sft.tokens", 128, integer(1), "Tokens of a response that sft_full and sft_deep train on at most."),
    Field("sft.prefill", 10, integer(0),
          "Most tokens of an answer before the refusal of sft_deep (section 5.1: 0 to 10)."),
    Field("rivals.layers", (), names("different numbers of layers", *map(str, range(256)), empty=True),
          "Decoder layers, from 0, behind which rerouting, harc and steering act; empty is those at 1/3 and "
          "2/3 of the depth for rerouting, four from 20/28 to 23/28 for harc, the one at 1/2 for steering. "
          "What is trained has none below lora.layers: empty takes that layer in place of lower ones."),
    Field("rivals.rerouting_weight", 10.0, number(0),
          "Weight of rerouting's harmful term against its benign one."),
    Field("rivals.harc_margin", 0.4, number(0, 1),
          "Cosine with harc's directions that harmful questions' states are to reach."),
    Field("rivals.harc_kl", 10.0, number(0),
          "Weight of the change of the next token's distribution after benign questions in harc."),
    Field("rivals.strength", 1.0, number(0, above=True),
          "Factor of the steering vector; 1 is the difference of means."),
    Field("rivals.system_prompt", SAFETY_SYSTEM_PROMPT, text("a system prompt"),
          "System prompt of the strategy system_prompt."),
    *training_fields("penalty"),
    Field("loss.reduction", "sum", choice("sum", "mean"),
          "How the squared distance to the target is reduced over features: `sum` is the equation as "
          "written. Its scale against the penalty is not in the paper; `mean` makes that hidden_size times "
          "heavier."),
    Field("lora.rank", 8, integer(1), "Rank of the adapters. Not in the paper; 8 is PEFT's default."),
    Field("lora.alpha", 16.0, number(0, above=True),
          "Adapters are scaled by alpha / rank. Not in the paper."),
    Field("lora.dropout", 0.0, number(0, 0.9),
          "Probability that a training step drops a number of an adapter's input, as PEFT's lora_dropout; "
          "each adapter draws by itself, the frozen product beside it has all of its input. Not in the "
          "paper."),
    Field("lora.targets", ("all",),
          names(f"all, or different names out of {', '.join(LINEARS)}", "all", *LINEARS),
          "Linears of each decoder layer that get an adapter; the paper says \"LLM modules\", so all. "
          "A model refuses names that its decoder does not have."),
    Field("lora.layers", "all", either(integer(0), "all"),
          "`all`, or the first layer with an adapter: layers below it have none and need no backward pass."),
    Field("lora.start", None,
          either(path("a PEFT adapter's folder, a run's folder or a hub id OWNER/NAME"), None),
          "Adapter from which training goes on, ours or PEFT's, of the rank, alpha, targets and layers that "
          "this group says. Targets, vanilla rates and penalty.space=weights stay those of the model without "
          "it; penalty.space=lora counts from it. None starts with adapters that change nothing."),

    *training_fields("train"),
    Field("train.lower_states_gib", 4.0, number(0),
          "GiB of the host's memory for the hidden states behind the layers below lora.layers, computed once "
          "for all prompts of extraction and training (strategies rrs and rrs_plus, rrs.positions=1), and on "
          "a CPU, with these layers' keys and values, for the evaluated answers before and after training. "
          "Where they need more, or with 0, these layers are computed each time."),
    Field("extract.batch_size", 16, integer(1), "Questions at once in passes without gradient.",
          placement=True),

    Field("mesh.data", -1, either(integer(1), -1),
          "Devices along which batches are cut; -1 is all that are left.", placement=True),
    Field("mesh.fsdp", 1, either(integer(1), -1), "Devices over which batches and weights are cut.",
          placement=True),
    Field("mesh.tensor", 1, either(integer(1), -1), "Devices over which heads and MLP columns are cut.",
          placement=True),

    Field("generate.batch_size", "auto", either(integer(1), "auto"),
          "Answers in flight at once, over all devices; the samples of one question are in flight together "
          "and share its prompt. `auto` takes as many as the memory left on the devices holds, and no more "
          "than keep them busy.", placement=True),
    Field("generate.cache_dtype", "auto", choice("auto", "bfloat16", "float32", "int8"),
          "Number type of the keys and values that answers in flight keep; `auto` is model.dtype, `int8` "
          "halves bfloat16's memory at a relative error of about 1 % in a layer's attention "
          "(docs/generation.md)."),
    Field("generate.max_new_tokens", 256, integer(1),
          "Tokens after which an answer is cut. Not in the paper."),
    Field("generate.greedy", False, boolean(),
          "Take the likeliest token always; otherwise sample as the next four fields say."),
    Field("generate.temperature", None, either(number(0, above=True), None),
          "Temperature of sampling; None is the model folder's value."),
    Field("generate.top_p", None, either(number(0, 1, above=True), None),
          "Probability of the tokens that are sampled from (nucleus); None is the model folder's value."),
    Field("generate.top_k", None, either(integer(0), None),
          "Number of tokens that are sampled from; None is the model folder's value, 0 keeps all tokens."),
    Field("generate.repetition_penalty", None, either(number(0, above=True), None),
          "Factor against tokens that have occurred; None is the model folder's value."),

    Field("evaluate.modes", MODES, names(f"different names out of {', '.join(MODES)}", *MODES),
          "Ways of asking a harmful question (section 5.1)."),
    Field("evaluate.over_refusal_modes", ("audio_text",),
          names(f"different names out of {', '.join(MODES)}", *MODES, empty=True),
          "Ways of asking benign and borderline questions, among evaluate.modes; the paper has one ORR a "
          "model."),
    Field("evaluate.samples", 5, integer(1), "Answers to each question in each mode (section 5.1)."),
    Field("evaluate.judges", ("phrases", "first_token"),
          paths(names(f"different names, with commas between, out of {JUDGES_WRITTEN}"), behind=":"),
          "Judges of refusal and harm; the first one's rates are the summary's. The paper does not name its "
          "judge."),
    Field("evaluate.limit", None, either(integer(1), None), "Questions of each set at most; None is all."),
    Field("evaluate.text_only_variant", "prompted", choice(*TEXT_ONLY_VARIANTS),
          "Written questions: `prompted` announces the question as an audio's content, `plain` does not. Not "
          "in the paper."),
    Field("evaluate.questions", (),
          paths(names("question sets FORMAT:PATH, with commas between", empty=True), behind=":"),
          "Question sets asked in place of data.eval_manifest: aiah, figstep, xstest, jailbreakbench, "
          "harmbench, strongreject, or_bench, beavertails or jsonl, a colon, and the set's own file. Spoken "
          "by data.voices where it has no audio."),
    Field("evaluate.setting", ("spoken",), names(f"different names out of {', '.join(SETTINGS)}", *SETTINGS),
          "`silence`, `noise` or `unit_noise`: that audio beside the written question; `spelled`: words "
          "spelt letter by letter in the audio; `other_voices`: voices that training lacked; `then_answer`: "
          "a transcription is asked for, then the answer; `transcribe`, `repeat`, `translate` or `topic`: "
          "that task beside the spoken question. Each has a folder of its own in RUN/eval."),
    Field("evaluate.everyday", None,
          either(path("starter, or a file of questions as data.eval_manifest"), None),
          "Everyday questions: how many are refused in the setting `spoken`, and what is kept of the vanilla "
          "answers to them (docs/evaluation.md); behind endpoint.url the first alone. `starter` is the "
          "starter set's 140, none of them a training question."),
    Field("evaluate.air_bench", None, either(path("a folder"), None),
          "Folder of AIR-Bench's chat data (Chat_meta.json): also measure helpfulness, with judge.model."),
    Field("evaluate.vanilla", True, boolean(), "Evaluate the model before training too; NSI needs it."),
    Field("evaluate.epochs", (), integers("different epochs of the training, with commas between", 1),
          "Evaluate the adapters after these epochs too, in RUN/eval/epochs; the last one is evaluated "
          "anyway. They must be among the epochs that the training kept: these or "
          "report.representation_epochs."),
    Field("judge.url", None, either(address(), None),
          "Address of the OpenAI-compatible server of `llm` judges and AIR-Bench, such as "
          "http://localhost:8000/v1."),
    Field("judge.model", None, either(text("a model's name"), None), "The judge, as that server calls it."),
    Field("judge.temperature", 0.0, either(number(0), None),
          "Temperature of `llm` judges; None leaves it out, as some models ask. AIR-Bench has its own, 1."),
    Field("judge.key_variable", "OPENAI_API_KEY", text("an environment variable's name"),
          "Environment variable that holds the judge's key.", placement=True),
    Field("judge.concurrency", 8, integer(1), "Requests at once to the judge.", placement=True),
    Field("judge.timeout", 120.0, number(0, above=True), "Seconds that one request to the judge may take.",
          placement=True),
    Field("judge.retries", 6, integer(0), "Further tries after 429, 5xx, time-outs and broken replies.",
          placement=True),
    Field("endpoint.url", None, either(address(), None),
          "Evaluate what an OpenAI-compatible server that hears answers, in place of the model here."),
    Field("endpoint.model", None, either(text("a model's name"), None),
          "The model to evaluate, as the endpoint calls it."),
    Field("endpoint.vanilla_model", None, either(text("a model's name"), None),
          "The model before training, as the endpoint calls it; NSI needs it."),
    Field("endpoint.key_variable", "OPENAI_API_KEY", text("an environment variable's name"),
          "Environment variable that holds the endpoint's key.", placement=True),
    Field("endpoint.concurrency", 16, integer(1), "Requests at once to the endpoint.", placement=True),
    Field("endpoint.timeout", 300.0, number(0, above=True),
          "Seconds that one request to the endpoint may take.", placement=True),
    Field("endpoint.retries", 6, integer(0), "Further tries after 429, 5xx, time-outs and broken replies.",
          placement=True),
    Field("report.representation_epochs", None,
          either(either(integers("different epochs, with commas between, 0 for the model before training", 0),
                        "ends"), None),
          "Figure 2: epochs whose adapters the training keeps (RUN/epochs) and of whose models it writes "
          "down the representations of the evaluation questions; None is 0, 2, 4 and so on, and the last; "
          "`ends` is 0 and the last; empty is none."),
    Field("export.merged", False, boolean(),
          "Write a whole model folder with the adapter merged, beside the adapter."),
    Field("export.checkpoint", "last", either(either(integer(1), "best"), "last"),
          "Which of the kept checkpoints is exported: `last`, `best` (the end of the epoch with the lowest "
          "mean loss), or a number of steps, as the folders in RUN/checkpoints are called."),
    Field("export.scale", 1.0, number(0, 10, above=True),
          "Factor of what the exported adapter adds to the model, in its lora_alpha and in the merged "
          "weights: a dial that needs no training. Rates on the card are those of 1 alone."),
    Field("export.base_name", None, either(hub_name(), None),
          "Name OWNER/NAME under which the base is published, for adapter_config.json and the model card; "
          "None reads it from model.path or its folder."),
    Field("export.push", None, either(hub_name(), None),
          "Upload the adapter with its model card to this repository of the Hugging Face hub, and a merged "
          "folder to the same name with -merged. One that is not there is made, private, when the run "
          "begins."),
    Field("export.layout", "auto", choice("auto", *LAYOUTS),
          "Class whose module names the adapter has: `whole` for that of the whole model, `thinker` for that "
          "of Qwen2.5-Omni's thinker alone, each in transformers 4 or 5; docs/export.md says what loads "
          "which."),
)}  # fmt: skip
