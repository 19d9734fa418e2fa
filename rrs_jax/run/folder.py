"""The folder of a run: config.json, which stages are done, and where each output lies."""

import contextlib
import copy
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import filelock
from ml_collections import ConfigDict

from rrs_jax.config import FIELDS, flatten
from rrs_jax.config.stages import FIXED_STAGES, PLACEMENT_FIELDS, STAGES, belongs, needs_of
from rrs_jax.distributed import processes
from rrs_jax.errors import UserError, shown_address
from rrs_jax.files import file_lock, read_json, remove_unfinished, with_sum, write_json
from rrs_jax.progress import say
from rrs_jax.run.inputs import check_clips, check_model, file_hash, is_same_file, is_same_model, model_is_used
from rrs_jax.run.marks import INPUTS, MODEL, Marks, plain
from rrs_jax.run.outputs import damaged_caches
from rrs_jax.run.session import describe_machine
from rrs_jax.weights.export_folder import remove_partial
from rrs_jax.weights.identity import Identity, folder_identity, identity_digest

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
        self.path, self.config = Path(path), config
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
        self.inputs: dict[str, object] = {  # hashes of `INPUTS`, and the model folder's identity
            name: file_hash(name, self.values[name]) for name in INPUTS if self.values[name]
        }
        self.marks, self.is_locked = Marks(self.path, self.values), False
        self.record = self._recorded()
        self._compare(self.record)

    def stage_done(self, name: str) -> bool:
        """Returns True where the stage was finished with the values and on the inputs that now decide its
        output, and that is there as it was written. What is not is told."""
        return self.marks.is_done(name)

    def mark_done(self, name: str, **facts: object) -> None:
        """Records that a stage is finished, with facts worth keeping (seconds, counts); stages that read its
        output are no longer done, unless it is what it was."""
        self.marks.write(name, facts)

    def know_model(self, folder: Path) -> str:
        """Returns the digest of the model folder's content, which its first use records.

        Raises UserError where that is not what the run began with.
        """
        if MODEL not in self.marks.inputs:
            now = folder_identity(folder, self.values["model.digest"] == "whole")
            before: Identity = {}
            if model_is_used(self.marks):
                before = self.inputs.get(MODEL) or {}
                check_model(folder, before, now, self.marks)
            self.inputs[MODEL] = {name: before.get(name, {}) | file for name, file in now.items()}
            self.marks.inputs[MODEL] = identity_digest(now)
            if self.is_locked:
                self._record()
        return self.marks.inputs[MODEL]

    def check_order(self, stages: Sequence[str]) -> None:
        """Raises UserError where a stage needs another that is neither done nor among `stages`."""
        self.marks.asked = tuple(stages)
        absent = {}  # each stage that is not done, and the first that needs it
        for name in stages:
            for need in needs_of(name, self.strategy):
                if need not in stages and not self.stage_done(need):
                    absent.setdefault(need, name)
        if absent:
            wanted = ",".join(stage for stage in STAGES if stage in absent)
            needs = {
                name: " and ".join(need for need, first in absent.items() if first == name)
                for name in absent.values()
            }
            what = "; ".join(f"{name} needs {need}" for name, need in needs.items())
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
            if (record := self._recorded()) != self.record:  # another process has begun meanwhile
                self.marks.inputs.clear()
                self._compare(record)
            self.is_locked = processes.is_first()
            self._remove_unfinished()
            self._record()
            try:
                yield
            finally:
                self.is_locked = False

    def _remove_unfinished(self) -> None:
        """Removes what a killed command has left under temporary names, and damaged caches."""
        remove_unfinished(self.path)
        for pattern in (".probe-*", ".seen-by-all-*"):
            for file in self.path.glob(pattern):
                file.unlink(missing_ok=True)
        remove_partial(self.adapter, self.merged)
        for cache in damaged_caches(self.path):
            say(f"{cache} is damaged; it is removed, and made again where it is needed")
            cache.unlink()

    def _recorded(self) -> dict:
        """Returns config.json, empty where there is none or it is damaged, which is told."""
        if not self.config_file.is_file():
            return {}
        try:
            return read_json(self.config_file)
        except UserError:
            say(f"{self.config_file} is damaged; it is written anew, with this command's config")
            return {}

    def _record(self) -> None:
        """Writes config.json; a start that differs from the last one in nothing adds no session."""
        sessions, session = self._recorded().get("sessions", []), describe_machine()
        if not sessions or {**sessions[-1], "started": None} != {**session, "started": None}:
            sessions.append(session)
        record = {
            "config": _shown(self.config, self.values),
            "seed": self.values["seed"],
            "inputs": self.inputs,
            "sessions": sessions,
        }
        write_json(self.config_file, with_sum(record))

    def _has_begun(self) -> bool:
        """Returns True where a stage has left something, which another config would contradict."""
        return any(file.name not in ("config.json", ".lock", "wandb") for file in self.path.iterdir())

    def _compare(self, record: dict) -> None:
        """Takes over what the record knows of the inputs. Raises UserError where it is of another run."""
        if not self.path.is_dir() or not self._has_begun():
            return
        known, before = record.get("inputs", {}), flatten(record.get("config", {}))
        self._keep_spellings(before, known)
        if record:
            self._check_same_run(before, known)
            self._keep_fields_of_no_stage(before)
        else:
            self._check_marks()
            if not self.config_file.is_file() and any(self.marks.read(name) for name in STAGES):
                say(f"{self.config_file} is missing; it is written anew, with this command's config")
        check_clips(self.marks)
        folder = Path(os.path.expanduser(self.config.model.path))
        if MODEL in known:
            self.inputs[MODEL] = known[MODEL]
            if folder.is_dir():
                self.know_model(folder)

    def _keep_spellings(self, before: dict[str, object], known: dict[str, object]) -> None:
        """Keeps the recorded path of an input that another one now leads to."""
        for name in (MODEL, *INPUTS):
            path, recorded = self.values[name], before.get(name)
            if None in (path, recorded) or path == recorded:
                continue
            if (
                is_same_file(path, recorded)
                or (name == MODEL and is_same_model(path, known.get(MODEL)))
                or (name != MODEL and self.inputs[name] == known.get(name))
            ):
                self.values[name] = recorded

    def _keep_fields_of_no_stage(self, before: dict[str, object]) -> None:
        """Tells a field that no stage would look at any more, where the training is done."""
        groups = {group for stage in STAGES.values() for group in stage.fields}
        for name, value in self.values.items():
            is_free = not belongs(name, groups) and name not in PLACEMENT_FIELDS and name in before
            if is_free and plain(value) != plain(before[name]) and self.marks.read("train"):
                say(
                    f"{name}: {value!r} has no effect in {self.path}, which was trained with"
                    f" {before[name]!r}; a run in another --config.run_dir has it"
                )
                self.values[name] = before[name]

    def _check_marks(self) -> None:
        """Without a record, marks alone tell a run with another config."""
        for name in FIXED_STAGES:
            if self.marks.read(name) and not self.marks.was_done(name):
                raise UserError(
                    f"run_dir: the config.json of {self.path} is lost, and its stage {name} was done with"
                    " other values than these; give its values, or another --config.run_dir."
                )

    def _check_same_run(self, recorded: dict[str, object], inputs: dict[str, object]) -> None:
        # A field that the folder's version did not have did what its default does.
        before = {name: field.default for name, field in FIELDS.items()} | recorded
        groups = {group for stage in FIXED_STAGES for group in STAGES[stage].fields}
        differing = [
            name
            for name, value in self.values.items()
            if belongs(name, groups) and name not in PLACEMENT_FIELDS and plain(value) != plain(before[name])
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
        changed = [name for name, value in self.inputs.items() if name != MODEL and inputs.get(name) != value]
        if changed:
            raise UserError(
                f"{changed[0]}: {self.values[changed[0]]} is not what the run in {self.path} began with; "
                "restore it or give another --config.run_dir."
            )


def stage_is_done(path: Path, name: str, values: dict[str, object]) -> bool:
    """Returns True where the stage was finished with these values by dotted names; the folder need not
    exist."""
    return Marks(path, values).was_done(name)


def check_disk(path: Path, needed_bytes: int = LEAST_FREE_BYTES) -> None:
    """Makes the folder, writes and removes a file in it. Raises UserError where that or the space fails."""
    probe = path / f".probe-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b"\0" * 4096)
        finally:  # a full disk has room for the name alone
            probe.unlink(missing_ok=True)  # whoever has the lock clears what looks like a killed command's
        free = shutil.disk_usage(path).free
    except OSError as error:
        there = next((at for at in (path, *path.parents) if os.path.exists(at)), path)
        reason = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        reason = f"{there} is a file" if os.path.isfile(there) else reason
        raise UserError(
            f"run_dir: {path} cannot be written ({reason}); give another --config.run_dir."
        ) from error
    if free < needed_bytes:
        raise UserError(
            f"run_dir: the disk of {path} has {free / 1e9:.2f} GB free and the run needs about "
            f"{needed_bytes / 1e9:.2f} GB; free some or give another --config.run_dir."
        )


def _shown(config: ConfigDict, values: dict[str, object]) -> dict:
    """Returns the config as it is written down: with the values that count in the folder, the
    servers' addresses without user, password and query."""
    kept = copy.deepcopy(config)
    kept.update_from_flattened_dict({name: _tuple(value) for name, value in values.items()})
    for group in (kept.judge, kept.endpoint):
        group.url = None if group.url is None else shown_address(group.url)
    return kept.to_dict()


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
