"""Publishes the figures of a run or of a sweep: one JSON-lines file, and tables pasted into a page.

    python -m rrs_jax.report.publish RUN_DIR docs/results/mini --name=paper --page=PAGE.md --report

Writes TARGET/NAME.jsonl: a line about the sweep, then a line for each evaluation of a run
(`published_lines` lists the fields). With `--page` the table of rates goes between `<!-- table:NAME -->` and
`<!-- /table -->` of that page, and the ranking between the markers of `NAME-ranking` where the page has them.
With `--report` the files of the report stage are copied to TARGET. Paths of the machine are cut to their last
part.
"""

import argparse
import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rrs_jax.config import FIELDS, flatten
from rrs_jax.config.kinds import with_home
from rrs_jax.errors import UserError, exit_status, scrub
from rrs_jax.evaluate.summary import ORR_MODE
from rrs_jax.files import read_json, write_atomic
from rrs_jax.report.results import stage_seconds
from rrs_jax.report.summaries import is_vanilla, read_summaries
from rrs_jax.report.table import markdown_table, paste

REPORT_FILES = ("*.html", "table[0-9].md", "*.csv", "*.tex", "*.svg", "*.png")  # what the page links to
LARGEST_BYTES = 5_000_000  # of a file that goes into the repository
MACHINE_PATH = re.compile(r"(?<![\w.:/])(?:~|\.\.|/)[^\s'\",:=]*/")
RATES = ("modes", "orr", "borderline_orr", "nsi")  # of a summary
MEANING = ("judge", "judge_version", "asr_is", "samples")  # what its rates are
COUNTS = (
    "empty",
    "unfinished",
    "transcription",
    "gibberish",
    "unjudged",
)  # left out of a line where they are 0


@dataclasses.dataclass(frozen=True)
class PublishedEvaluation:
    """One finished evaluation.

    Attributes:
      run: name of the run's folder.
      name: name of the folder below eval/.
      record: contents of the run's config.json.
      seconds: by stage.
      summary: contents of summary.json.
    """

    run: str
    name: str
    record: dict
    seconds: dict[str, float]
    summary: dict


def publish(source: str | Path, target: str | Path, name: str, report: bool = False) -> list[Path]:
    """Writes TARGET/NAME.jsonl, with `report` also the report's files, and returns their paths.

    A file that is too large for a repository is named on standard error and left out. Raises UserError where
    nothing is evaluated.
    """
    source, target = Path(source), Path(target)
    published = published_lines(name, read_evaluations(source))
    lines = [json.dumps(line, ensure_ascii=False, separators=(",", ":")) for line in published]
    written = [target / f"{name}.jsonl"]
    write_atomic(written[0], "\n".join(lines) + "\n")
    return written + (_copied_report(source / "report", target) if report else [])


def read_evaluations(source: Path) -> list[PublishedEvaluation]:
    """Reads every evaluation of a run or sweep; the vanilla model, the same in all runs, is taken once.

    Raises UserError where nothing is evaluated or a summary lacks a field.
    """
    runs = run_folders(source)
    read_summaries(runs)
    records = {run: read_json(run / "config.json") for run in runs}
    own = [run for run in runs if records[run]["config"]["strategy"] == "vanilla"]
    with_vanilla = [*own, *runs][0]
    return [
        PublishedEvaluation(run.name, path.parent.name, records[run], stage_seconds(run), read_json(path))
        for run in runs
        for path in sorted(run.glob("eval/*/summary.json"))
        if run in (*own, with_vanilla) or not is_vanilla(path.parent.name)
    ]


def published_lines(name: str, evaluations: Sequence[PublishedEvaluation]) -> list[dict]:
    """Builds the lines of NAME.jsonl.

    The first line has `sweep`, its name; `config`, the fields that differ from the defaults and are alike in
    all runs; `judge` to `samples` of summary.json where they are alike in all; `sessions`, each command with
    commit, device and versions.

    Each further line has `run` and `evaluation`, the names of the run and of its folder below eval/;
    `strategy` and `seed`; what of `config` and of `judge` to `samples` the first line lacks; `modes` to `nsi`
    as in summary.json, without counts that are 0 or follow from the others; `everyday_orr` and `refused_by`,
    in which a rate is [refusals, responses], where there are some; `orr_by_mode`, over-refusal in other
    modes; `other_judges`, their rates; `seconds` of each stage; `sessions`, places in the first line's
    list.
    """
    configs = [_not_the_defaults(evaluation.record["config"]) for evaluation in evaluations]
    meanings = [
        {field: evaluation.summary[field] for field in MEANING if field in evaluation.summary}
        for evaluation in evaluations
    ]
    config, meaning = _common(configs), _common(meanings)
    sessions: list[dict] = []
    lines = [
        _line(evaluation, _without(own, config), _without(measured, meaning), sessions)
        for evaluation, own, measured in zip(evaluations, configs, meanings, strict=True)
    ]
    return [{"sweep": name, "config": _without_paths(config), **meaning, "sessions": sessions}, *lines]


def run_folders(source: Path) -> list[Path]:
    """Returns the folder itself, or those of a sweep that are evaluated.

    Raises UserError where there is none.
    """
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
    """Returns a sweep's own table, whose seeds are pooled, or a run's."""
    written = source / "report" / "table.md"
    if not (source / "config.json").is_file() and written.is_file():
        return written.read_text(encoding="utf-8")
    return markdown_table(run_folders(source), vanilla_once=True)


def _copied_report(report: Path, target: Path) -> list[Path]:
    copied = []
    for path in sorted(path for pattern in REPORT_FILES for path in report.rglob(pattern)):
        if path.stat().st_size > LARGEST_BYTES:
            sizes = f"{path.stat().st_size / 1e6:.1f} MB and {LARGEST_BYTES / 1e6:.0f} MB is the most"
            print(f"{path}: left out, since it has {sizes}", file=sys.stderr)
            continue
        copied.append(target / path.relative_to(report))
        copied[-1].parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied[-1])
    return copied


def _common(dicts: Sequence[dict]) -> dict:
    """Returns the entries that all have alike."""
    return {
        field: value
        for field, value in dicts[0].items()
        if all(field in other and other[field] == value for other in dicts)
    }


def _without(values: dict, others: dict) -> dict:
    return {field: value for field, value in values.items() if field not in others}


def _line(evaluation: PublishedEvaluation, config: dict, meaning: dict, sessions: list[dict]) -> dict:
    """Returns the line of one evaluation; adds to `sessions` those that are not among them yet."""
    record, summary = evaluation.record, evaluation.summary
    vanilla = is_vanilla(evaluation.name)
    places = []
    for session in map(_without_paths, record["sessions"]):
        known = {field: session[field] for field in ("command", "commit", "device", "versions")}
        if known not in sessions:
            sessions.append(known)
        places.append(sessions.index(known))
    line = {
        "run": evaluation.run,
        "evaluation": evaluation.name,
        "strategy": "vanilla" if vanilla else record["config"]["strategy"],
        "seed": record["seed"],
        "config": _without_paths(config),
        **meaning,
        **{field: _rates(summary[field]) for field in RATES},
        "everyday_orr": _rates(summary.get("everyday_orr")),
        "refused_by": _refused(summary.get("refused_by")),
        "orr_by_mode": _rates(_other_modes(summary)),
        "other_judges": {judge: _bare(block) for judge, block in summary.get("other_judges", {}).items()},
        "seconds": evaluation.seconds,
        "sessions": sorted(set(places)),
    }
    return {field: value for field, value in line.items() if value not in (None, {})}


def _not_the_defaults(config: dict) -> dict[str, object]:
    def plain(value: object) -> object:
        return list(value) if isinstance(value, tuple) else value

    values = flatten(config)
    return {
        name: value
        for name, value in values.items()
        if name not in ("run_dir", "seed", "strategy")
        and (name not in FIELDS or plain(value) != plain(FIELDS[name].default))
    }


def _other_modes(summary: dict) -> dict:
    """Returns over-refusal in the modes that `orr` and `borderline_orr` are not about."""
    by_mode = summary.get("orr_by_mode") or {}
    return {mode: rates for mode, rates in by_mode.items() if mode != ORR_MODE}


def _refused(value: object) -> object:
    """Returns the value with [refusals, responses] in place of every block of counts."""
    if not isinstance(value, dict):
        return value
    if "refusals" in value:
        return [value["refusals"], value["responses"]]
    return {key: _refused(item) for key, item in value.items() if item}


def _rates(value: object) -> object:
    """Returns the value with every block of counts cut to what does not follow from the rest of it."""
    if not isinstance(value, dict):
        return value
    follows = {kind for kind in COUNTS if value.get(kind) == 0} | {"answers"}
    if value.get("queries") == value.get("responses"):
        follows |= {"any_asr", "any_rate"}
    if value.get("compliance") == value.get("asr"):
        follows |= {"compliance"}
    return {key: _rates(item) for key, item in value.items() if key not in follows}


def _bare(block: dict) -> dict:
    modes = {mode: rates["asr"] if rates else None for mode, rates in block["modes"].items()}
    rates = {
        field: block[field]["rate"] for field in ("orr", "borderline_orr", "everyday_orr") if block.get(field)
    }
    return {**modes, **rates}


def _without_paths(value):
    """Returns the value with every path of the machine cut to its last part and no secret in an address."""
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return MACHINE_PATH.sub("", scrub(value)) if isinstance(value, str) else value


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns exit status 0, or 2 with one sentence on standard error for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m rrs_jax.report.publish", description="Published results."
    )
    parser.add_argument("source", metavar="RUN_DIR", help="folder of a run or of a sweep")
    parser.add_argument("target", metavar="TARGET", help="folder such as docs/results/mini")
    parser.add_argument("--page", help="Markdown file whose marked tables are rewritten")
    parser.add_argument("--name", help="of the table and of NAME.jsonl (default: RUN_DIR's name)")
    parser.add_argument("--report", action="store_true", help="copy the report page and its tables too")
    options = parser.parse_args(with_home(arguments))
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
        for path in publish(source, options.target, name, options.report):
            print(path)
    return status.code


if __name__ == "__main__":
    sys.exit(main())
