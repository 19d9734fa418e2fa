"""Writes the representations of a manifest's questions, and their safety vector, to a safetensors file.

    python examples/find_safety_vector.py MODEL MANIFEST.jsonl OUT.safetensors

Harmful questions are heard under the refusal prompt t̃, benign ones under t (the paper's sections 3 and 4.1).
"""

import sys

import numpy as np
from safetensors.numpy import save_file

import rrs_jax
from rrs_jax.config.prompts import PROMPT_REFUSAL, PROMPT_T
from rrs_jax.data.manifest import audio_paths, load_manifest


def represent(model: rrs_jax.LoadedModel, clips: list, prompt: str) -> np.ndarray:
    batches = (rrs_jax.make_batch(model, clips[i : i + 8], prompt) for i in range(0, len(clips), 8))
    return np.concatenate([rrs_jax.extract_reps(model, batch) for batch in batches])  # (N, D)


def main(path: str, manifest: str, out: str) -> None:
    rows = load_manifest(manifest)
    clips: dict[str, list] = {"harmful": [], "benign": [], "borderline": [], "everyday": []}
    for row, clip in zip(rows, audio_paths(manifest, rows), strict=True):
        clips[row["label"]].append(clip)
    model = rrs_jax.load_model(path)
    refused = represent(model, clips["harmful"], PROMPT_REFUSAL)
    answered = represent(model, clips["benign"], PROMPT_T)
    found = rrs_jax.safety_vector(refused, answered, model.head_row("I"), top_m=51)
    print(f"the vector raises the logit of 'I' by {found.delta_logit_selected:.1f}")
    arrays = {"harmful_refusal": refused, "benign": answered, "safety_vector": np.asarray(found.vector)}
    save_file(arrays, out)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
