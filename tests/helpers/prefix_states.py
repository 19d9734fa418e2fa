"""Prompts that share their beginnings, their lower layers' states, and runs that use them."""

import numpy as np

from helpers.clip_prompts import AUDIO, FRAMES
from helpers.omni import make_thinker
from rrs_jax.config import default_config, flatten
from rrs_jax.files import write_jsonl
from rrs_jax.frozen.prefix_states import PrefixStates
from rrs_jax.frozen.prefix_trees import make_trees
from rrs_jax.inputs.batching import bucket_lengths
from rrs_jax.inputs.mel import audio_token_count
from rrs_jax.testing import twin_rows
from rrs_jax.weights.load import load_weights

LAYERS = 2  # of three
COUNTS = [audio_token_count(int(frames)) for frames in FRAMES]


def asked(offsets) -> tuple[list, list]:
    """Eleven prompts as rows, and the numbers of their clips: of two clips, of one, and two prompts in
    writing; ends of all lengths, one of them none, and one prompt twice."""
    rng = np.random.default_rng(7)

    def text(n):
        return rng.integers(3, 120, n).tolist()

    rows, whose = [], []
    system = text(5)
    for own, ends in (([0, 1], (4, 1, 9)), ([2], (3, 12, 0, 7)), ([], (2, 2)), ([3], (5,))):
        audio = [token for clip in own for token in [*text(2), *[AUDIO] * COUNTS[clip]]]
        for end in ends:
            rows.append(
                (
                    [*system, *audio, *text(end)],
                    [offsets[clip] for clip in own],
                    [COUNTS[clip] for clip in own],
                )
            )
            whose.append(own)
    return [*rows, rows[1]], [*whose, whose[1]]


def make_prefix_states(model, rows, bank, most=512, **values):
    trees = make_trees(model, rows, most)
    return trees, PrefixStates(
        model, LAYERS, trees, bank, batch_size=3, buckets=lambda n: bucket_lengths(n, 2), **values
    )


def thinker(tmp_path, asked):
    """Qwen2.5-Omni's thinker in torch, ours, and prompts in writing as if they had clips of no tokens;
    `asked`: of each its clip and the length of its end."""
    reference = make_thinker()
    reference.save_pretrained(tmp_path)
    rng = np.random.default_rng(2)
    system = rng.integers(3, 120, 9).tolist()
    return (
        reference,
        load_weights(tmp_path),
        [(system + rng.integers(3, 120, end).tolist(), [clip], [0]) for clip, end in asked],
    )


def configured(whole_folder, sound_files, path, **fields):
    path.mkdir(exist_ok=True)
    write_jsonl(path / "questions.jsonl", twin_rows(sound_files[:6]))
    config = default_config()
    config.model.path, config.model.dtype, config.run_dir = str(whole_folder), "float32", str(path / "run")
    config.data.manifest = config.data.eval_manifest = str(path / "questions.jsonl")
    config.train.epochs, config.train.batch_size, config.train.learning_rate = 3, 4, 1e-2
    config.lora.layers, config.report.representation_epochs = LAYERS, ()
    config.train.text_share, config.train.kept_text_share = 0.3, 0.2
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 4, 1, 2
    config.update_from_flattened_dict(fields)
    return config


def changed(config, **fields):
    other = default_config()
    other.update_from_flattened_dict(
        flatten(config) | {name.replace("__", "."): value for name, value in fields.items()}
    )
    return other
