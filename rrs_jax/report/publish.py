"""Puts the results of a run or of a sweep where they are published.

    python -m rrs_jax.report.publish RUN_DIR docs/results/mini --page=docs/results.md --name=paper

Copies every summary.json as NAME-seedN.json (NAME is the run's in a sweep, else its strategy) and what the
report stage made, writes NAME.runs.json beside them (command, commit, seed, versions, device, seconds and
settings of each run), and puts the table of rates between `<!-- table:NAME -->` and `<!-- /table -->` of the
page; `NAME-ranking` likewise, where the page has that marker. Paths of the machine are cut to their last
part.
"""

import argparse
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rrs_jax.errors import UserError, exit_status
from rrs_jax.files import read_json, write_json
from rrs_jax.report.table import markdown_table, paste, read_summaries, recipe_of

REPORT_FILES = (".html", ".csv", ".tex", ".svg", ".png")
LARGEST_BYTES = 5_000_000  # of a file that goes into the repository
MACHINE_PATH = re.compile(r"(?<![\w.:/])(?:~|\.\.|/)[^\s'\",:=]*/")


def publish(source: str | Path, target: str | Path, name: str) -> list[Path]:
    """Writes the files and returns them; one of the report that is too large for a repository is told and
    left out.
    Raises UserError where nothing is evaluated."""
    source, target = Path(source), Path(target)
    runs = run_folders(source)
    read_summaries(runs)
    written, records = [], []
    for run in runs:
        files = {}
        for label, summary in _summaries(run, alone=run == source, vanilla_too=run == _of_vanilla(runs)):
            files[label] = target / f"{label}.json"
            write_json(files[label], _without_paths(summary))
        written += files.values()
        records.append(_record(run) | {"files": sorted(path.name for path in files.values())})
    for path in sorted(path for path in (source / "report").glob("**/*") if path.suffix in REPORT_FILES):
        if path.stat().st_size > LARGEST_BYTES:
            megabytes = path.stat().st_size / 1e6
            most = LARGEST_BYTES / 1e6
            print(
                f"{path}: left out, since it has {megabytes:.1f} MB and {most:.0f} MB is the most",
                file=sys.stderr,
            )
            continue
        place = target / path.relative_to(source / "report")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
        written.append(place)
    write_json(target / f"{name}.runs.json", {"runs": [_without_paths(record) for record in records]})
    return [*written, target / f"{name}.runs.json"]


def run_folders(source: Path) -> list[Path]:
    """The folder itself, or those of a sweep that are evaluated. Raises UserError where there is none."""
    folders = (
        [source]
        if (source / "config.json").is_file()
        else sorted(path.parent for path in source.glob("*/config.json"))
    )
    evaluated = [folder for folder in folders if list(folder.glob("eval/*/summary.json"))]
    if not evaluated:
        raise UserError(
            f"{source}: is no folder of a run or of a sweep with an evaluation; run the evaluate stage first."
        )
    return evaluated


def table_of(source: Path) -> str:
    """A sweep's own table, whose seeds are pooled, or a run's."""
    written = source / "report" / "table.md"
    if not (source / "config.json").is_file() and written.is_file():
        return written.read_text(encoding="utf-8")
    return markdown_table(run_folders(source), vanilla_once=True)


def _of_vanilla(runs: Sequence[Path]) -> Path:
    """The run whose evaluation of the model before training is published: they are the same in all."""
    own = [run for run in runs if read_json(run / "config.json")["config"]["strategy"] == "vanilla"]
    return [*own, *runs][0]


def _summaries(run: Path, alone: bool, vanilla_too: bool) -> Iterator[tuple[str, dict]]:
    """Published name and summary of each of a run's evaluations."""
    config = read_json(run / "config.json")["config"]
    own = config["strategy"] if alone else recipe_of(run.name)
    for path in sorted(run.glob("eval/*/summary.json")):
        evaluated, _, suffix = path.parent.name.partition("-")
        if evaluated == "vanilla" and not vanilla_too and config["strategy"] != "vanilla":
            continue
        name = "vanilla" if evaluated == "vanilla" else own
        yield f"{name}{'-' + suffix if suffix else ''}-seed{config['seed']}", read_json(path)


def _record(run: Path) -> dict:
    record = read_json(run / "config.json")
    marks = sorted((run / ".done").glob("*.json"))
    seconds = {mark.stem: read_json(mark).get("seconds") for mark in marks}
    return {"run": run.name, "seconds": seconds} | {
        key: record[key] for key in ("seed", "sessions", "config")
    }


def _without_paths(value):
    """The same with every path of the machine cut to its last part."""
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return MACHINE_PATH.sub("", value) if isinstance(value, str) else value


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 with one sentence on standard error for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m rrs_jax.report.publish", description="Published results."
    )
    parser.add_argument("source", metavar="RUN_DIR", help="folder of a run or of a sweep")
    parser.add_argument("target", metavar="TARGET", help="folder such as docs/results/mini")
    parser.add_argument("--page", help="Markdown file whose marked tables are rewritten")
    parser.add_argument("--name", help="of the table and of NAME.runs.json (default: RUN_DIR's name)")
    options = parser.parse_args(arguments)
    source = Path(options.source)
    name = options.name or source.resolve().name
    with exit_status() as status:
        if options.page:
            paste(options.page, name, table_of(source))
            print(f"{options.page}: table {name} replaced")
            ranking = source / "report" / "ranking.md"
            if ranking.is_file() and f"<!-- table:{name}-ranking -->" in Path(options.page).read_text(
                encoding="utf-8"
            ):
                paste(options.page, f"{name}-ranking", ranking.read_text(encoding="utf-8"))
        for path in publish(source, options.target, name):
            print(path)
    return status.code


if __name__ == "__main__":
    sys.exit(main())
