"""Answers a spoken question, by the model alone or with an adapter.

    python examples/answer_a_clip.py MODEL CLIP [ADAPTER]

MODEL: a Hugging Face folder or hub id, or `mini`. CLIP: wav, flac, mp3, or with ffmpeg m4a and webm.
ADAPTER: a PEFT LoRA by whomever it was trained, such as RUN/export/adapter.
"""

import sys

import rrs_jax
from rrs_jax.config.prompts import PROMPT_T  # the text beside the clip, t in the paper


def main(path: str, clip: str, adapter: str | None = None) -> None:
    model = rrs_jax.load_model(path, adapter=adapter)
    (answer,) = rrs_jax.generate(model, [clip], PROMPT_T, max_new_tokens=64)
    print(answer)


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
