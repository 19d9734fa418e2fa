"""Steering at inference by a refusal vector, always or only where a probe fires; nothing is trained.

Behind chosen layers the difference of means of the last input token's states, refused harmful (under t̃) less
benign (under t), times `rivals.strength`, is added at every position (Arditi et al. 2024 add such a vector).
With `steering_conditional` only to prompts whose state behind the first of these layers a linear probe calls
harmful (as Lee et al. 2024 condition it).
"""

import numpy as np

from rrs_jax.config.prompts import PROMPT_T
from rrs_jax.files import content_hash
from rrs_jax.frozen.probe import fit_probe, probe_accuracy
from rrs_jax.progress import say
from rrs_jax.strategies.extracted import Extracted
from rrs_jax.strategies.rivals.layers import chosen_layers
from rrs_jax.strategies.samples import Samples, check_kinds
from rrs_jax.strategies.served import Served

SHARES = (1 / 2,)  # of the depth


def check(samples: Samples, config) -> None:
    """Raises UserError for samples without both kinds whose means are subtracted."""
    check_kinds(samples, ~samples.harmful, config.strategy)


def extract(samples: Samples, frozen, config) -> Extracted:
    """Vectors (layers, D), and the probe's weights (D,) and bias; the facts tell how well the probe does on
    unseen pairs."""
    check(samples, config)
    layers = chosen_layers(config.rivals.layers, frozen.num_layers, SHARES)
    harmful, benign = np.flatnonzero(samples.harmful), np.flatnonzero(~samples.harmful)
    asked = [(harmful, config.rrs.refusal_prompt), (benign, PROMPT_T), (harmful, PROMPT_T)]
    prompts = [frozen.prompt(i, text) for indices, text in asked for i in indices]
    states = frozen.layer_states(prompts, layers)
    refused, kept, harmful_states = np.split(states, np.cumsum([len(harmful), len(benign)]))
    vectors = refused.mean(axis=0, dtype=np.float64) - kept.mean(axis=0, dtype=np.float64)

    inputs = np.concatenate([harmful_states[:, 0], kept[:, 0]])
    signs = np.repeat([1.0, -1.0], [len(harmful), len(benign)])
    pairs = [samples.rows[i]["pair_id"] for i in [*harmful, *benign]]
    weights, bias = fit_probe(inputs, signs)
    percent = round(100 * probe_accuracy(inputs, signs, pairs), 1)
    say(f"probe: behind layer {layers[0]} it tells {percent} % of unseen questions as harmful or benign")
    arrays = {"vectors": vectors, "weights": weights, "bias": np.array([bias])}
    return Extracted(
        {name: array.astype(np.float32) for name, array in arrays.items()},
        {"layers": str(layers)},
        {"layers": layers, "probe_percent": percent},
    )


def serve(extracted: Extracted, samples: Samples, frozen, config) -> Served:
    layers, arrays = chosen_layers(config.rivals.layers, frozen.num_layers, SHARES), extracted.content
    model = frozen.steered(layers, config.rivals.strength * arrays["vectors"])
    made_by = {
        "steering": content_hash(*(arrays[name].tobytes() for name in sorted(arrays))),
        "strength": config.rivals.strength,
    }
    if config.strategy == "steering":
        return Served([model], made_by)

    def choose(prompts, bank) -> np.ndarray:
        states = frozen.layer_states(prompts, layers[:1], bank)[:, 0]
        return (states @ arrays["weights"] + arrays["bias"][0] > 0).astype(int)

    return Served([frozen.model, model], made_by, choose=choose)
