"""A small model with its real weights against transformers in float32.

    python tests/check_mini.py mini 40
    python tests/check_mini.py FOLDER 4       such as a base, whose projector is untrained

Not collected by pytest: it needs the weights and some minutes. Prints the relative error of
representations, and how many greedy answers of 64 tokens, with a repetition penalty, to spoken and written
questions are equal token for token; three samples of each question share its prompt.
"""

import sys

import jax.numpy as jnp
import numpy as np
import soundfile
import torch
import transformers

from rrs_jax.config.prompts import PROMPT_T
from rrs_jax.data.speech import speak_all
from rrs_jax.data.starter import StarterChoice, choose_rows
from rrs_jax.data.voices import draw_voice
from rrs_jax.frozen.audio_bank import make_audio_bank
from rrs_jax.frozen.extraction import extract_all
from rrs_jax.generate import Generator, Prompt, SamplingConfig
from rrs_jax.inputs.processor import Processor
from rrs_jax.weights.load import load_weights, resolve_folder

NEW_TOKENS = 64
PENALTY = 1.1
SAMPLES = 3


def main(name: str, questions: int) -> None:
    folder = resolve_folder(name)
    rows = choose_rows(StarterChoice("eval"))[:questions]
    clips = speak_all([(row["question"], draw_voice(row["question"], 0)) for row in rows])

    processor = Processor.from_folder(folder)
    model = load_weights(folder, dtype=jnp.float32)
    bank = make_audio_bank(model, processor.mel, [path for path, _ in clips], batch_size=8)
    spoken = [(processor.encode(PROMPT_T, bank.clips([i])[1]), *bank.clips([i])) for i in range(questions)]
    written = [(processor.encode(row["question"]), [], []) for row in rows]
    reps = extract_all(
        model, spoken, bank.array, batch_size=8, buckets=(max(len(ids) for ids, _, _ in spoken),)
    )
    sampling = SamplingConfig(max_new_tokens=NEW_TOKENS, greedy=True, repetition_penalty=PENALTY)
    generator = Generator(model, sampling, eos_token_ids=processor.eos_token_ids, batch_size=48)
    ours: dict[tuple[int, int], list[int]] = {}
    requests = [
        Prompt(key=(i, n), row=row) for i, row in enumerate([*spoken, *written]) for n in range(SAMPLES)
    ]
    generator.generate(requests, bank.array, ours.__setitem__)
    del model, generator

    reference = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32
    ).eval()
    theirs = transformers.Qwen2AudioProcessor.from_pretrained(folder)
    errors, equal = [], {"spoken": 0, "written": 0}
    for i, (row, (path, _)) in enumerate(zip(rows, clips, strict=True)):
        audio = [{"type": "audio", "audio_url": ""}]
        for kind, text, content in (("spoken", PROMPT_T, audio), ("written", row["question"], [])):
            messages = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
            prompt = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            waveform = [soundfile.read(path, dtype="float32")[0]] if content else None
            inputs = theirs(text=prompt, audio=waveform, sampling_rate=16_000, return_tensors="pt")
            with torch.no_grad():
                output = reference.generate(
                    **inputs,
                    do_sample=False,
                    repetition_penalty=PENALTY,
                    max_new_tokens=NEW_TOKENS,
                    output_hidden_states=True,
                    return_dict_in_generate=True,
                )
            if content:
                last = output.hidden_states[0][-1][0, -1].numpy()
                errors.append(float(np.linalg.norm(reps[i] - last) / np.linalg.norm(last)))
            tokens = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
            while tokens and tokens[-1] in processor.eos_token_ids:
                tokens.pop()
            equal[kind] += all(tokens == ours[i if content else questions + i, n] for n in range(SAMPLES))
    print(
        f"representations: largest relative error {max(errors):.2e} of {questions}; equal greedy answers: "
        f"{equal['spoken']} of {questions} spoken, {equal['written']} of {questions} written"
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
