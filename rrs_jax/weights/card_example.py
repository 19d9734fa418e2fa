"""The model card's example: Python that loads an exported folder and answers one spoken question with it."""

from collections.abc import Mapping

from rrs_jax.config.prompts import PROMPT_T

FOLDER = "PATH/"  # stands before the name of a base that has no hub id
# What answers in text, where it is not the whole model; that of Omni would speak, by other arguments in each
# release.
ANSWERING = {"Qwen2_5OmniForConditionalGeneration": "model.thinker"}
CHAT = (
    "It answers through `model.chat` of the code in the base's folder, as the base's own card shows; that"
    " code has no `generate` under transformers 4.57 or later."
)


def adapter_example(
    name: str, remote_code: bool, base: str, settings: Mapping[str, object], repository: str | None
) -> str:
    """Returns the example for an adapter, as Markdown.

    Args:
      name: the class of transformers.
      remote_code: that class lies in the base's folder.
      base: a hub id, or PATH/FOLDER where the base has none.
      settings: the run's fields; the example has their number type and length of answers.
      repository: where the adapter lies on the hub; None is the folder of the card itself.
    """
    where = _where(repository)
    remote = ", trust_remote_code=True" if remote_code else ""
    load = f"""model = {name}.from_pretrained(BASE, torch_dtype={_dtype(settings)}{remote})
model = PeftModel.from_pretrained(model, ADAPTER).eval()
# Where names do not match, PEFT leaves an adapter at zero with no more than a warning.
assert all(value.any() for name, value in model.named_parameters() if "lora_B" in name)"""
    if remote_code:
        code = f"""import torch
from peft import PeftModel
from transformers import {name}

BASE = {_base(base)}
ADAPTER = {where}
{load}"""
        return f"```python\n{code}\n```\n\n{CHAT}"
    code = f"""import librosa
import torch
from peft import PeftModel
from transformers import AutoProcessor, {name}

BASE = {_base(base)}
ADAPTER = {where}
processor = AutoProcessor.from_pretrained(BASE)
{load}
{_answer(name, settings)}"""
    return f"```python\n{code}\n```"


def merged_example(
    name: str, remote_code: bool, settings: Mapping[str, object], repository: str | None
) -> str:
    """Returns the example for a merged folder, as Markdown; arguments as for `adapter_example`."""
    where = _where(repository)
    remote = ", trust_remote_code=True" if remote_code else ""
    load = f"model = {name}.from_pretrained(MODEL, torch_dtype={_dtype(settings)}{remote}).eval()"
    if remote_code:
        code = f"""import torch
from transformers import {name}

MODEL = {where}
{load}"""
        return f"```python\n{code}\n```\n\n{CHAT}"
    code = f"""import librosa
import torch
from transformers import AutoProcessor, {name}

MODEL = {where}
processor = AutoProcessor.from_pretrained(MODEL)
{load}
{_answer(name, settings)}"""
    return f"```python\n{code}\n```"


def _base(base: str) -> str:
    hint = "  # it has no hub id: write the path of its folder" if base.startswith(FOLDER) else ""
    return f'"{base}"{hint}'


def _where(repository: str | None) -> str:
    return '"."  # the folder of this card' if repository is None else f'"{repository}"'


def _dtype(settings: Mapping[str, object]) -> str:
    return f"torch.{settings.get('model.dtype', 'bfloat16')}"


def _answer(name: str, settings: Mapping[str, object]) -> str:
    tokens = settings.get("generate.max_new_tokens", 256)
    return f"""model.to("cuda" if torch.cuda.is_available() else "cpu")

audio, _ = librosa.load("question.wav", sr=16_000)
content = [
    {{"type": "audio", "audio": "question.wav"}},
    {{"type": "text", "text": "{PROMPT_T}"}},
]
text = processor.apply_chat_template(
    [{{"role": "user", "content": content}}], add_generation_prompt=True, tokenize=False
)
inputs = processor(text=text, audio=[audio], sampling_rate=16_000, return_tensors="pt")
inputs = inputs.to(model.device, model.dtype)
with torch.no_grad():
    answer = {ANSWERING.get(name, "model")}.generate(**inputs, do_sample=False, max_new_tokens={tokens})
new = answer[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(new, skip_special_tokens=True)[0])"""
