"""Marks of finished stages, RUN/.done/STAGE.json: what each read and what it wrote, by digests."""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rrs_jax.config.fields import FIELDS
from rrs_jax.config.stages import STAGES, belongs, dependents_of, fields_of
from rrs_jax.config.strategy_table import DATA
from rrs_jax.errors import UserError
from rrs_jax.files import content_hash, file_digest, read_json, with_sum, write_json
from rrs_jax.progress import say
from rrs_jax.run.clips import made_clips_changed, run_clips
from rrs_jax.run.outputs import CHECKPOINTS, LEFT, differing, matches, output_sums, sampled_digest

MODEL = "model.path"
INPUTS = (*DATA.values(), "data.eval_manifest", "lora.start")  # what their files hold must not change
SMALL = 2**20  # bytes; of larger files in a folder the size counts alone


class Marks:
    """The marks in the run folder `path`, for a run with these `values` by dotted names.

    A mark holds `hash`, of the values that decided the stage's output; `read`, digests of what the stage read
    from outside the folder, by name; `outputs`, digests of the files that it wrote; and facts such as
    seconds. Marks of earlier versions have no digests, and what these would say is not asked.

    Attributes:
      inputs: digests of what stages read, by name, as far as they are known.
      asked: the stages that this command is to do.
    """

    def __init__(self, path: Path, values: Mapping[str, object]):
        self.path, self.values = path, values
        self.inputs: dict[str, str] = {}
        self.asked: Sequence[str] = ()
        self.intact: dict[str, bool] = {}  # of a finished stage: its output is there as it was written
        self.told: set[str] = set()

    def file(self, name: str) -> Path:
        """Returns the file of a stage's mark."""
        return self.path / ".done" / f"{name}.json"

    def read(self, name: str) -> dict:
        """Returns a stage's mark, empty where there is none or it is damaged, which is told."""
        file = self.file(name)
        if not file.is_file():
            return {}
        try:
            return read_json(file)
        except UserError:
            self._tell(f"{file}: is damaged; the stage {name} is done again from what it has left")
            return {}

    def was_done(self, name: str) -> bool:
        """Returns True where the stage was finished with the values."""
        return self.read(name).get("hash") == stage_hash(name, self.values)

    def is_done(self, name: str) -> bool:
        """Returns True where the stage was finished with the values and on the inputs that now decide its
        output, and that is there as it was written. What is not is told."""
        if not self.was_done(name):
            return False
        before = self.read(name).get("read", {})
        changed = [what for what, digest in self._reads(name).items() if before.get(what, digest) != digest]
        if changed:
            self._tell(f"{changed[0]} is not what the stage {name} read; the stage is done again")
        return not changed and self._is_intact(name)

    def write(self, name: str, facts: dict) -> None:
        """Marks a stage as finished; stages that read its output are no longer done, unless the output is
        byte for byte what they read."""
        mark = {
            "hash": stage_hash(name, self.values),
            "read": self._reads(name),
            "outputs": output_sums(self.path, name, self.values["strategy"]),
        }
        if name == "data":
            mark["clips"] = run_clips(self.path)
        before = self.read(name)
        if not mark["outputs"] or any(before.get(part) != value for part, value in mark.items()):
            for dependent in dependents_of(name):
                self.file(dependent).unlink(missing_ok=True)
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(self.file(name), with_sum({"finished": finished, **facts} | mark))
        self.intact[name] = True

    def _reads(self, name: str) -> dict[str, str]:
        """Returns the digests of what a stage reads from outside the folder, as far as it is there."""
        return (self.inputs if reads_model(name, self.values) else {}) | files_read(name, self.values)

    def _is_intact(self, name: str) -> bool:
        """Tells once what a finished stage has lost, and which of it has the stage done again."""
        if name in self.intact:
            return self.intact[name]
        mark = self.read(name)
        damage = differing(self.path, mark.get("outputs", {}))
        damage |= made_clips_changed(self.path, mark.get("clips", {}))
        gone = {path for path, what in damage.items() if matches(path, CHECKPOINTS) and what == "is missing"}
        if gone and any(stage in self.asked and not self.is_done(stage) for stage in ("evaluate", "export")):
            gone = set()  # a stage is to restore the adapters from them
        left = {path for path in damage if matches(path, *LEFT)}
        again = [path for path in damage if path not in left | gone]
        self.intact[name] = not again
        if again:
            more = f" (and {len(again) - 1} more files)" if len(again) > 1 else ""
            self._tell(f"{self.path / again[0]} {damage[again[0]]}{more}; the stage {name} is done again")
        for path in sorted(left):
            self._tell(f"{self.path / path} {damage[path]}; it is left so, and nothing else comes of it")
        if gone and not again:
            self._tell(f"{self.path}/{min(gone)} is missing; the training is done again where it is needed")
        return self.intact[name]

    def _tell(self, sentence: str) -> None:
        if sentence not in self.told:
            say(sentence)
        self.told.add(sentence)


def reads_model(name: str, values: Mapping[str, object]) -> bool:
    """Returns True where the model folder decides a stage's output."""
    return MODEL in fields_of(name, values, values["strategy"])


def files_read(name: str, values: Mapping[str, object]) -> dict[str, str]:
    """Returns the digests of the files that a stage's own fields name, by field and path: question sets,
    rubrics, exclusions. `INPUTS` and the model folder are known by other means."""
    found = {}
    for field, value in values.items():
        of_stage = field in FIELDS and belongs(field, STAGES[name].fields)
        if not of_stage or FIELDS[field].kind.with_home is None or field in (MODEL, *INPUTS):
            continue
        for item in value if isinstance(value, list | tuple) else [value]:
            for written in (item, item.partition(":")[2]) if isinstance(item, str) else ():
                path = Path(os.path.expanduser(written))
                if written and path.exists():
                    found[f"{field}: {item}"] = _digest(path)
                    break
    return found


def _digest(path: Path) -> str:
    """Returns the digest of a file, or of a folder's small files, and names and sizes of its others."""
    if path.is_file():
        return sampled_digest(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    sizes = [file.stat().st_size for file in files]
    return content_hash(
        [
            [file.relative_to(path).as_posix(), size, file_digest(file) if size <= SMALL else None]
            for file, size in zip(files, sizes, strict=True)
        ]
    )


def stage_hash(name: str, values: Mapping[str, object]) -> str:
    """Returns the hash of the values that decide a stage's output."""
    return content_hash(
        {field: plain(value) for field, value in fields_of(name, values, values["strategy"]).items()}
    )


def plain(value: object) -> object:
    """A value as JSON gives it back, and 25 as 25.0: values compare and hash alike however they were
    written."""
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return json.loads(json.dumps(value))
