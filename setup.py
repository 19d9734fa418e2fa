"""What pyproject.toml cannot say: folders beside the package that are parts of it when it is installed."""

from setuptools import find_namespace_packages, setup

BESIDE = {
    "rrs_jax.configs": "configs",
    "rrs_jax.configs.sweeps": "configs/sweeps",
    "rrs_jax.checkpoints.mini": "checkpoints/mini",
    "rrs_jax.checkpoints.small": "checkpoints/small",
}

setup(
    packages=[*find_namespace_packages(include=["rrs_jax*"], exclude=["*__pycache__*"]), *BESIDE],
    package_dir=BESIDE,
    package_data={
        "": ["*.css", "*.html", "*.json", "*.jsonl", "*.md", "*.safetensors", "*.toml", "py.typed"]
    },
)
