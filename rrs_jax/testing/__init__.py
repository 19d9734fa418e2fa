"""Small random models and data to test with: whole Hugging Face folders of each architecture, and a manifest.

Nothing is downloaded, and torch is not needed.

    from rrs_jax.testing import write_manifest, write_qwen2_audio
    write_qwen2_audio("small/model")
    write_manifest("small/data")

Then a run of all stages, about a minute on a CPU:

    python launch.py --config=configs/qwen2_rrs.py --config.run_dir=small/run \\
        --config.model.path=small/model --config.model.dtype=float32 \\
        --config.data.manifest=small/data/manifest.jsonl \\
        --config.data.eval_manifest=small/data/manifest.jsonl \\
        --config.train.epochs=1 --config.generate.max_new_tokens=8
"""

from rrs_jax.testing.manifests import twin_rows, write_clips, write_manifest
from rrs_jax.testing.qwen2_5_omni import write_qwen2_5_omni
from rrs_jax.testing.qwen2_audio import write_qwen2_audio
from rrs_jax.testing.qwen_audio import write_qwen_audio
from rrs_jax.testing.tokenizer import write_tokenizer

__all__ = [
    "twin_rows",
    "write_clips",
    "write_manifest",
    "write_qwen2_5_omni",
    "write_qwen2_audio",
    "write_qwen_audio",
    "write_tokenizer",
]
