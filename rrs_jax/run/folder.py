"""The folder of a run: config.json, which stages are done, and where each output lies."""

import contextlib
import copy
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import filelock
from ml_collections import ConfigDict

from rrs_jax.config import FIELDS, flatten
from rrs_jax.config.shipped import PACKAGE
from rrs_jax.config.stages import (
    FIXED_STAGES,
    PLACEMENT_FIELDS,
    STAGES,
    belongs,
    dependents_of,
    fields_of,
    needs_of,
)
from rrs_jax.config.strategy_table import DATA
from rrs_jax.data.authors_questions import folder_hash
from rrs_jax.distributed import processes
from rrs_jax.errors import UserError, scrub, shown_address
from rrs_jax.files import content_hash, file_lock, read_json, write_json
from rrs_jax.weights.adapter import adapter_files_hash

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
INPUTS = (*DATA.values(), "data.eval_manifest", "lora.start")  # what their files hold must not change
LEAST_FREE_BYTES = 500_000_000


class RunFolder:
    """Makes or reopens the folder `path` for `config`, and records in config.json what the run is. Of several
    processes the first one does; it alone marks stages as done, locks the folder and knows what is done.

    Stages that train (data, extract, train) keep the config of the folder's first run; evaluation, export and
    report may be repeated with other values. Fields that decide only where and how fast may always change.

    Raises UserError where the folder cannot be written, its disk is too full, it is another run's, or a
    manifest or an adapter is not the one that the run began with.
    """

    def __init__(self, path: str | Path, config: ConfigDict):
        self.path = Path(path)
        self.values = flatten(config)
        self.strategy = self.values["strategy"]
        self.config_file = self.path / "config.json"
        self.manifest = self.path / "data" / "manifest.jsonl"
        self.evaluation_manifest = self.path / "data" / "eval" / "manifest.jsonl"
        self.representations = self.path / "representations.safetensors"
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.rates = self.path / "rates.jsonl"
        self.epochs = self.path / "epochs"
        self.evaluations = self.path / "eval"
        self.adapter = self.path / "export" / "adapter"
        self.merged = self.path / "export" / "merged"
        self.report = self.path / "report"

        if processes.is_first():
            check_disk(self.path)
        self.inputs = {name: _file_hash(name, self.values[name]) for name in INPUTS if self.values[name]}
        record = read_json(self.config_file) if self.config_file.is_file() else {}
        if record and self._has_begun():
            self._check_same_run(record)
        if processes.is_first():
            self._record(config, record.get("sessions", []))

    def stage_done(self, name: str) -> bool:
        """True where the stage was finished with the values that now decide its output."""
        return stage_is_done(self.path, name, self.values)

    def mark_done(self, name: str, **facts: object) -> None:
        """Records that a stage is finished, with facts worth keeping (seconds, counts); stages that read its
        output are no longer done."""
        for dependent in dependents_of(name):
            _mark(self.path, dependent).unlink(missing_ok=True)
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(_mark(self.path, name), {"hash": _hash(name, self.values), "finished": finished, **facts})

    def check_order(self, stages: Sequence[str]) -> None:
        """Raises UserError where a stage needs another that is neither done nor among `stages`."""
        absent = {}  # each stage that is not done, and the first that needs it
        for name in stages:
            for need in needs_of(name, self.strategy):
                if need not in stages and not self.stage_done(need):
                    absent.setdefault(need, name)
        if absent:
            wanted = ",".join(stage for stage in STAGES if stage in absent)
            what = "; ".join(f"{name} needs {need}" for need, name in absent.items())
            raise UserError(f"--stages: {what}, not done in {self.path} with this config; add {wanted}.")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time works in the folder; the lock goes with the process, however it ends.

        Raises UserError where another process has it.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(file_lock(self.path / ".lock", seconds=0))
            except filelock.Timeout as error:
                raise UserError(
                    f"run_dir: another process works in {self.path}; wait for it or end it."
                ) from error
            yield

    def _record(self, config: ConfigDict, sessions: list[dict]) -> None:
        session = describe_machine()
        if not sessions or {**sessions[-1], "started": None} != {**session, "started": None}:
            sessions.append(session)
        write_json(
            self.config_file,
            {
                "config": _recorded(config),
                "seed": self.values["seed"],
                "inputs": self.inputs,
                "sessions": sessions,
            },
        )

    def _has_begun(self) -> bool:
        """Returns True where a stage has left something, which another config would contradict."""
        return any(file.name not in ("config.json", ".lock", "wandb") for file in self.path.iterdir())

    def _check_same_run(self, record: dict) -> None:
        # A field that the folder's version did not have did what its default does.
        before = {name: field.default for name, field in FIELDS.items()} | flatten(record.get("config", {}))
        groups = {group for stage in FIXED_STAGES for group in STAGES[stage].fields}
        differing = [
            name
            for name, value in self.values.items()
            if belongs(name, groups)
            and name not in PLACEMENT_FIELDS
            and _plain(value) != _plain(before[name])
        ]
        if differing:
            shown = ", ".join(
                f"{name} {before[name]!r} there and {self.values[name]!r} now" for name in differing[:3]
            )
            more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise UserError(
                f"run_dir: {self.path} is a run with another config ({shown}{more}); give another "
                "--config.run_dir, or the same values to go on with it."
            )
        changed = [name for name, value in self.inputs.items() if record.get("inputs", {}).get(name) != value]
        if changed:
            raise UserError(
                f"{changed[0]}: {self.values[changed[0]]} is not what the run in {self.path} began with; "
                "restore it or give another --config.run_dir."
            )


def stage_is_done(path: Path, name: str, values: dict[str, object]) -> bool:
    """True where the stage was finished with these values by dotted names; the folder need not exist."""
    mark = _mark(path, name)
    return mark.is_file() and read_json(mark).get("hash") == _hash(name, values)


def check_disk(path: Path, needed_bytes: int = LEAST_FREE_BYTES) -> None:
    """Makes the folder, writes and removes a file in it. Raises UserError where that or the space fails."""
    probe = path / f".probe-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"\0" * 4096)
        probe.unlink()
        free = shutil.disk_usage(path).free
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        raise UserError(
            f"run_dir: {path} cannot be written ({reason}); give another --config.run_dir."
        ) from error
    if free < needed_bytes:
        raise UserError(
            f"run_dir: the disk of {path} has {free / 1e9:.2f} GB free and the run needs about "
            f"{needed_bytes / 1e9:.2f} GB; free some or give another --config.run_dir."
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


def _file_hash(field: str, path: str) -> str:
    if field == "lora.start":
        return adapter_files_hash(path, field)
    try:
        return folder_hash(path) if Path(path).is_dir() else content_hash(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{field}: {path} cannot be read ({error.strerror}).") from error


def _recorded(config: ConfigDict) -> dict:
    """Returns the config as it is written down: the servers' addresses without user, password and query."""
    kept = copy.deepcopy(config)
    for group in (kept.judge, kept.endpoint):
        group.url = None if group.url is None else shown_address(group.url)
    return kept.to_dict()


def _plain(value: object) -> object:
    """A value as JSON gives it back, and 25 as 25.0: values compare and hash alike however they were
    written."""
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return json.loads(json.dumps(value))


def _mark(path: Path, name: str) -> Path:
    return path / ".done" / f"{name}.json"


def _hash(name: str, values: dict[str, object]) -> str:
    return content_hash(
        {field: _plain(value) for field, value in fields_of(name, values, values["strategy"]).items()}
    )
