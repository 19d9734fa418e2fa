"""The configuration of a sweep."""

from rrs_jax.config import default_config
from rrs_jax.files import write_jsonl
from rrs_jax.testing import twin_rows


def sweep_config(whole_folder, sound_files, path):
    """Writes the manifests below `path`; returns the config that every run of the sweep starts from."""
    rows = twin_rows(sound_files)
    rows[7]["role"] = "keep"
    write_jsonl(path / "mirror.jsonl", rows)
    write_jsonl(
        path / "basic.jsonl", [row | {"response": "I do."} if i < 3 else row for i, row in enumerate(rows)]
    )
    config = default_config()
    config.model.path, config.model.dtype, config.run_dir = str(whole_folder), "float32", str(path / "runs")
    config.data.manifest = config.data.eval_manifest = config.data.parallel_manifest = str(
        path / "mirror.jsonl"
    )
    config.data.basic_manifest = str(path / "basic.jsonl")
    config.train.epochs, config.train.batch_size, config.train.learning_rate = 1, 8, 1e-2
    config.sft.tokens, config.sft.prefill = 4, 2
    config.evaluate.samples, config.generate.max_new_tokens, config.evaluate.limit = 1, 3, 1
    return config
