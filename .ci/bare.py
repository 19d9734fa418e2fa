"""What an installed package does without torch and the repository: PYTHON .ci/bare.py PART REPOSITORY.

PYTHON is that of the environment, the current folder is empty. PART is `base` (no extra is installed) or
`extras` (data, judge, inspect and mini are).
"""

import importlib
import os
import pkgutil
import subprocess
import sys
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

COMMAND = Path(sys.executable).parent / "rrs-jax"
SMOKE = ("run", "--config=mini_rrs:smoke")
MISSING = (
    ((*SMOKE, "--config.evaluate.judges=llama_guard:FOLDER"), "pip install torch"),
    ((*SMOKE, "--config.evaluate.judges=llm:default", "--config.judge.url=http://localhost:9/v1",
      "--config.judge.model=m"), "pip install openai"),
    ((*SMOKE, "--config.data.voices=google"), "pip install google-cloud-texttospeech"),
    (SMOKE, "pip install gguf"),
    ((*SMOKE, "--config.train.log_to=wandb"), "pip install wandb"),
    (("data", "build", "--source=answers.parquet", "--out=set"), "pip install pyarrow"),
    (("data", "distractors", "small/manifest.jsonl", "other", "--kinds=room"), "pip install pyroomacoustics"),
    (("data", "intelligibility", "--model=base"), "pip install faster-whisper"),
    (("measure", "answers.jsonl", "--judges=llama_guard:FOLDER"), "pip install torch"),
)  # fmt: skip


def base(repository: Path) -> None:
    """Files, imports, one sentence for each optional part, and a whole run of a random Qwen2-Audio."""
    assert find_spec("torch") is None and "pytest" not in sys.modules
    check_files(repository)
    import_all(without=("rrs_jax.evaluate.inspect_tasks",))
    from rrs_jax.testing import write_manifest, write_qwen2_audio

    write_qwen2_audio(Path("model"))
    write_manifest(Path("small"))
    Path("answers.parquet").write_bytes(b"")
    Path("answers.jsonl").write_text('{"question": "a", "response": "b", "label": "harmful"}\n')
    os.environ["RRS_JAX_MINI_SOURCE"] = "index"
    for arguments, sentence in MISSING:
        ended = run(*arguments, cache="empty")
        last = ended.stderr.strip().splitlines()[-1]
        print(f"{ended.returncode}  {last}")
        assert ended.returncode == 2 and last.endswith(sentence), ended.stderr
    ended = run(
        "run", "--config=qwen2_rrs:smoke", "--config.model.path=model", "--config.model.dtype=float32",
        "--config.run_dir=run", "--config.generate.max_new_tokens=4", "--config.rrs.refusal_tokens=I",
    )  # fmt: skip
    print(ended.stdout)
    assert ended.returncode == 0 and Path("run/report/index.html").is_file(), ended.stderr
    assert run("export", "run", "--config.export.merged=true").returncode == 0
    assert Path("run/export/merged/model.safetensors.index.json").is_file()


def extras(_: Path) -> None:
    """Every module, the task that Inspect finds by itself, and rooms."""
    assert find_spec("torch") is None
    import_all()
    (entry,) = metadata.entry_points(group="inspect_ai")
    assert entry.load().spoken_safety(manifest="small/manifest.jsonl").dataset
    ended = run("data", "distractors", "small/manifest.jsonl", "varied", "--kinds=room,tempo")
    assert ended.returncode == 0, ended.stderr


def check_files(repository: Path) -> None:
    """Every file of the package, its configs and the bridge is installed."""
    package = Path(importlib.import_module("rrs_jax").__file__).parent
    assert repository not in package.parents
    listed = ["git", "-C", repository, "ls-files", "rrs_jax", "configs", "checkpoints"]
    for name in subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split():
        assert (package / name.removeprefix("rrs_jax/")).is_file(), f"{name} is not installed"


def import_all(without: tuple[str, ...] = ()) -> None:
    for module in pkgutil.walk_packages(importlib.import_module("rrs_jax").__path__, "rrs_jax."):
        if module.name not in without and not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def run(*arguments: str, cache: str | None = None) -> subprocess.CompletedProcess:
    began = time.monotonic()
    environment = os.environ | ({"RRS_JAX_CACHE": cache} if cache else {})
    ended = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, env=environment)
    print(f"{time.monotonic() - began:.0f} s: rrs-jax {' '.join(arguments)}", flush=True)
    return ended


if __name__ == "__main__":
    {"base": base, "extras": extras}[sys.argv[1]](Path(sys.argv[2]))
