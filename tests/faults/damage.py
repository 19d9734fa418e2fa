"""Damages every file of a finished run in turn, starts the same command again, and says what came of it."""

import contextlib
import dataclasses
import io
import re
import shutil
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from helpers.tiny_run import ALL, restore, tiny_config
from rrs_jax.errors import UserError
from rrs_jax.files import read_json, read_jsonl
from rrs_jax.run import pipeline
from rrs_jax.run.outputs import CACHES
from rrs_jax.run.sweep_cache import SweepCache


def flip(content: bytes) -> bytes:
    """The content with one bit of the byte in its middle turned over."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


KINDS: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": lambda path: path.write_bytes(flip(path.read_bytes())),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
}
# Not the same in two runs: times, and names and order of what Orbax writes.
VARIES = re.compile(r"checkpoints/|tensorboard/|\.done/|config\.json$|metrics\.jsonl$|report/|\.lock$")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one damaged file.

    Attributes:
      ended: `done`, `refused` with one sentence, or `traceback`.
      told: a sentence names the file, or the checkpoint that it is of.
      after: `as before`, `made anew` with other bytes, `left` as it was damaged, or `gone`.
      wrong: files that say something else than before, without the damaged one.
      words: what was said.
    """

    file: str
    kind: str
    ended: str
    told: bool
    after: str
    wrong: tuple[str, ...]
    words: str

    @property
    def verdict(self) -> str:
        """`silent` is what must not be: nothing names the file, and it is not as it was. A mark or cache that
        is deleted takes nothing with it."""
        if self.ended == "traceback" or self.wrong:
            return "traceback" if self.ended == "traceback" else "wrong"
        if self.kind == "deleted" and (self.file.startswith(".done/") or self.file in CACHES):
            return "made again" if self.after == "made anew" else "not needed"
        return "told" if self.told else "silent"


def files_of(run: Path) -> list[str]:
    """The files of a run that hold something, by their paths in it."""
    files = (path for path in sorted(run.rglob("*")) if path.is_file() and path.stat().st_size)
    return [path.relative_to(run).as_posix() for path in files]


def damage_all(
    home: Path, backup: Path, shared: SweepCache, cases: Iterable[tuple[str, str]], below: str = "run"
) -> Iterator[Outcome]:
    """Yields what comes of each (file, kind); HOME is BACKUP again after each of them.

    below: the folder in which the files lie: the run, or the model or data that it reads.
    """
    for file, kind in cases:
        KINDS[kind](home / below / file)
        damaged = _bytes(home / below / file)
        said, ended = io.StringIO(), "done"
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            try:
                pipeline.run(tiny_config(home), ALL, shared)
            except UserError as error:
                ended = "refused"
                print(error, file=said)
            except Exception:
                ended = "traceback"
                traceback.print_exc(file=said)
        now, first = _bytes(home / below / file), _bytes(backup / below / file)
        after = "gone" if now is None else "as before" if now == first else "made anew"
        after = "left" if now is not None and now == damaged else after
        wrong = () if ended != "done" else _wrong(home / "run", backup / "run", file)
        names = [file, *re.findall(r"^checkpoints/\d+", file)]
        told = any(name in line for line in said.getvalue().splitlines() for name in names)
        yield Outcome(file, kind, ended, told, after, wrong, said.getvalue())
        restore(backup, home)


def _wrong(run: Path, before: Path, damaged: str) -> tuple[str, ...]:
    return tuple(
        file
        for file in files_of(before)
        if file != damaged and not VARIES.match(file) and _content(run / file) != _content(before / file)
    )


def _content(path: Path) -> object:
    """A file's content; answers as a set, since those that are made again stand behind the others."""
    if not path.is_file():
        return None
    if path.suffix == ".jsonl":
        return sorted(map(str, read_jsonl(path)))
    return read_json(path) if path.suffix == ".json" else path.read_bytes()


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def kind_of(file: str) -> str:
    """The file's path without steps, hashes and times."""
    name = re.sub(r"[0-9a-f]{32}", "HASH", re.sub(r"\.\d{9,}\..*", ".TIME", file))
    return re.sub(r"^checkpoints/\d+", "checkpoints/STEP", name)


def table(outcomes: Iterable[Outcome]) -> str:
    """Outcomes as a Markdown table, a row for each file with numbers and hashes in its name left out."""
    rows: dict[str, dict[str, list[str]]] = {}
    for outcome in outcomes:
        name = kind_of(outcome.file)
        cell = f"{outcome.verdict}, {outcome.after if outcome.ended == 'done' else outcome.ended}"
        rows.setdefault(name, {}).setdefault(outcome.kind, []).append(cell)
    lines = [f"| file | {' | '.join(KINDS)} |", f"|---|{'---|' * len(KINDS)}"]
    for name, cells in rows.items():
        found = [" or ".join(sorted(set(cells.get(kind, ["-"])))) for kind in KINDS]
        lines.append(f"| {name} | {' | '.join(found)} |")
    return "\n".join(lines)


def copy_home(home: Path, backup: Path) -> None:
    """Keeps a copy of HOME, to be restored from."""
    shutil.copytree(home, backup, dirs_exist_ok=True)
