"""Steering at inference by a refusal vector, always or only where a probe fires; nothing is trained.

Behind chosen layers the difference of means of the last input token's states, refused harmful (under t̃) less
benign (under t), times `rivals.strength`, is added at every position (Arditi et al. 2024 add such a vector).
With `steering_conditional` only to prompts whose state behind the first of these layers a linear probe calls
harmful (as Lee et al. 2024 condition it).
"""

import numpy as np

from rrs_jax.config.prompts import PROMPT_T
from rrs_jax.distributed.mesh import replicated
from rrs_jax.files import atomic_path, content_hash
from rrs_jax.frozen.probe import fit_probe, probe_accuracy
from rrs_jax.models.steering import steered
from rrs_jax.progress import say
from rrs_jax.strategies.rivals.layers import chosen_layers
from rrs_jax.strategies.served import Serving
from rrs_jax.weights.safetensors_io import read_header, save_file


def extract(work) -> dict:
    """Vectors and probe, in `RUN/steering.safetensors`; the facts tell how well the probe does on unseen
    pairs."""
    layers = chosen_layers(work, shares=(1 / 2,))
    harmful, benign = np.flatnonzero(work.harmful), np.flatnonzero(~work.harmful)
    asked = [(harmful, work.config.rrs.refusal_prompt), (benign, PROMPT_T), (harmful, PROMPT_T)]
    states = work.layer_states([work.prompt(i, text) for indices, text in asked for i in indices], layers)
    refused, kept, harmful_states = np.split(states, np.cumsum([len(harmful), len(benign)]))
    vectors = refused.mean(axis=0, dtype=np.float64) - kept.mean(axis=0, dtype=np.float64)

    inputs = np.concatenate([harmful_states[:, 0], kept[:, 0]])
    signs = np.repeat([1.0, -1.0], [len(harmful), len(benign)])
    pairs = [work.rows[i]["pair_id"] for i in [*harmful, *benign]]
    weights, bias = fit_probe(inputs, signs)
    with atomic_path(_path(work)) as temporary:
        tensors = {"vectors": vectors, "weights": weights, "bias": np.array([bias])}
        save_file(
            temporary,
            {name: array.astype(np.float32) for name, array in tensors.items()},
            {"layers": str(layers)},
        )
    percent = round(100 * probe_accuracy(inputs, signs, pairs), 1)
    say(f"probe: behind layer {layers[0]} it tells {percent} % of unseen questions as harmful or benign")
    return {"layers": layers, "probe_percent": percent}


def serve(work) -> Serving:
    layers = chosen_layers(work, shares=(1 / 2,))
    entries, _ = read_header(_path(work))
    found = {name: np.array(entry.array()) for name, entry in entries.items()}
    model = steered(
        work.vanilla, layers, work.config.rivals.strength * found["vectors"], replicated(work.session.mesh)
    )
    made_by = {
        "steering": content_hash(*(found[name].tobytes() for name in sorted(found))),
        "strength": work.config.rivals.strength,
    }
    if work.config.strategy == "steering":
        return Serving([model], made_by)

    def choose(prompts, bank) -> np.ndarray:
        states = work.layer_states(prompts, layers[:1], bank)[:, 0]
        return (states @ found["weights"] + found["bias"][0] > 0).astype(int)

    return Serving([work.vanilla, model], made_by, choose=choose)


def _path(work):
    return work.folder.path / "steering.safetensors"
