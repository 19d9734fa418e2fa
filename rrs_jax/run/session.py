"""Facts of one start of the program: command, source commit, versions, devices."""

import contextlib
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata

from rrs_jax.config.shipped import PACKAGE
from rrs_jax.errors import scrub

PACKAGES = (
    "rrs-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "librosa",
    "soundfile",
)


def describe_machine() -> dict:
    """Facts that may change a result's last bits: command, source commit, versions, devices."""
    import jax

    devices = jax.devices()
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": scrub(shlex.join(sys.argv)),
        "commit": source_commit(),
        "versions": versions,
        "device": {"kind": devices[0].device_kind, "platform": devices[0].platform, "count": len(devices)},
        "processes": jax.process_count(),
    }


def source_commit() -> str | None:
    """Commit of the program's own clone, with "+changes" where tracked files differ; None outside a clone."""
    folder = PACKAGE.parent
    try:
        if not (folder / ".git").exists():
            return None
        commit = subprocess.run(
            ["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        )
        changes = subprocess.run(
            ["git", "-C", folder, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
