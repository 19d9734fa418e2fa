"""Many runs of one config with named overrides: in turn, several at once, or one of them by its index.

    python launch.py --config=configs/mini_rrs.py --sweep=configs/sweeps/paper.py
    python launch.py --config=configs/mini_rrs.py --sweep=configs/sweeps/paper.py --sweep_jobs=4
    python launch.py --config=configs/mini_rrs.py --sweep=configs/sweeps/paper.py --sweep_index=3

A sweep file has a function `runs(config)` that yields a name and a dict of fields for each run. A run lies in
run_dir/NAME; what several runs use lies once in run_dir/shared (`rrs_jax.run.sweep_cache`). The same command
resumes.
"""

import copy
import runpy
import time
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from rrs_jax.config import FIELDS, config_error, flatten, resolve, unknown_field, validate
from rrs_jax.config.stages import stages_of
from rrs_jax.errors import UserError
from rrs_jax.evaluate.problems import evaluation_problems
from rrs_jax.files import safe_name, write_atomic
from rrs_jax.progress import say
from rrs_jax.web.page import how_to_open
from rrs_jax.web.text import markdown_cell

BASELINE = "rrs"  # the run against which a sweep's others are ranked


def read_sweep(path: str, base: ConfigDict) -> dict[str, ConfigDict]:
    """Returns the sweep's runs by name, each with its overrides and its strategy's preset (`resolve`).

    `base` is a config that is not resolved: a row's strategy sets the fields that neither `base` nor the row
    gives. Raises UserError for a file that cannot be loaded, and naming the run for each mistake in a field.
    """
    found, problems = {}, []
    for name, overrides in _read_rows(path, base):
        if not _is_run_name(name) or name in found:
            raise UserError(
                f"{path}: {name!r} is no name of a run, or given twice; give each run a name of its own."
            )
        given = overrides | {"run_dir": str(Path(base.run_dir) / name)}
        values = flatten(base) | given
        problems += [f"{name}: {unknown_field(field)}" for field in overrides if field not in FIELDS]
        problems += [
            f"{name}: {problem}"
            for field, value in values.items()
            if field in FIELDS and (problem := FIELDS[field].problem(value))
        ]
        if not problems:
            run = copy.deepcopy(base)
            run.update_from_flattened_dict(given)
            found[name] = resolve(run)
            validate(found[name], evaluation_problems)
    if problems:
        raise config_error(problems)
    return found


def _read_rows(path: str, base: ConfigDict) -> list[tuple[str, dict]]:
    """Returns what the file's `runs` yields: a name and the changed fields of each run."""
    if not Path(path).is_file():
        raise UserError(f"--sweep: {path!r} is no file; give a sweep's file, or paper or limits.")
    try:
        names = runpy.run_path(path)
        named = list(names["runs"](base)) if "runs" in names else None
    except Exception as error:  # whatever the user's file, which is a program, does wrong
        raise UserError(f"{path}: cannot be loaded ({type(error).__name__}: {error}).") from error
    if named is None:
        raise UserError(f"{path}: has no function runs(config); give a sweep's file, or paper or limits.")
    if not named:
        raise UserError(
            f"{path}: runs(config) yields nothing; yield a name and a dict of fields for each run."
        )
    for row in named:
        if not (isinstance(row, tuple | list) and len(row) == 2 and isinstance(row[1], dict)):
            raise UserError(
                f"{path}: runs(config) yields {row!r}; yield a name and a dict of fields for each run."
            )
    return named


def _is_run_name(name: object) -> bool:
    """Returns True for the name of a folder beside those of the sweep itself."""
    return isinstance(name, str) and name not in ("", "shared", "report") and safe_name(name) == name


def run_sweep(
    config: ConfigDict, path: str, stages: Sequence[str], index: int | None = None, jobs: int = 1
) -> None:
    """Runs what is not done yet, in `jobs` processes, and writes and prints the state and the table of rates.

    A run that ends with a UserError is told and passed over; all of them are raised together at the end. With
    several processes the same holds for a run that crashes; then the exit status is 1.
    """
    runs = read_sweep(path, config)
    if index is not None and not 0 <= index < len(runs):
        raise UserError(f"--sweep_index: {index} is none of 0 to {len(runs) - 1}, the runs of {path}.")
    from rrs_jax.run.folder import stage_is_done
    from rrs_jax.run.servers import try_servers

    chosen = runs if index is None else dict([list(runs.items())[index]])
    folder, start = Path(config.run_dir), time.monotonic()
    asked = {
        name: [stage for stage in stages_of(run.strategy) if stage in stages] for name, run in chosen.items()
    }
    for name, run in chosen.items():  # before the data of all runs is made
        values = flatten(run)
        try_servers(run, {stage for stage in asked[name] if not stage_is_done(folder / name, stage, values)})
    if jobs == 1:
        failed, crashed = _one_after_another(chosen, runs, asked, folder), False
    else:
        failed, crashed = _side_by_side(chosen, asked, jobs, "report" in stages)
    table = _report(folder, runs)
    print(table)
    if "report" in stages:
        from rrs_jax.report.page import make_sweep_pages

        make_sweep_pages(folder, [folder / name for name in runs])
    say(f"sweep: {time.monotonic() - start:.0f} s")
    if (page := folder / "report" / "index.html").is_file():
        print(how_to_open(page))
    if failed:
        raise (SystemExit if crashed else UserError)(
            "\n".join(f"{name}: {error}" for name, error in failed.items())
        )


def _side_by_side(
    chosen: dict[str, ConfigDict], asked: dict[str, list[str]], jobs: int, reported: bool
) -> tuple[dict[str, str], bool]:
    """Does the stages asked for of all runs in several processes; returns why runs failed, and whether one
    crashed."""
    from rrs_jax.distributed.machine import cores
    from rrs_jax.report.separation import figures_meanwhile
    from rrs_jax.run.sweep_jobs import Jobs

    # Figure 2 of the runs that are done, on the cores that the processes leave.
    with figures_meanwhile(max(cores() - jobs, 1) if reported else 0) as make_figure:
        whole = Jobs(chosen, list(_data_runs(chosen)), asked, jobs, make_figure)
        return whole.run(), whole.crashed


def _one_after_another(chosen: dict, runs: dict, asked: dict, folder: Path) -> dict[str, str]:
    """Messages of the runs that failed, by name."""
    from rrs_jax.run import pipeline
    from rrs_jax.run.sweep_cache import SweepCache

    shared = SweepCache(folder / "shared")
    for name, run in _data_runs(chosen).items():
        if "data" in asked[name]:
            pipeline.run(run, ("data",), shared)
    # Of all runs, also where only one is done now: processes of one sweep then have the same clips.
    shared.know_clips(_data_runs(runs).values())
    start, failed = time.monotonic(), {}
    for number, (name, run) in enumerate(chosen.items(), start=1):
        say(f"{name}: run {number} of {len(chosen)}, {time.monotonic() - start:.0f} s so far")
        try:
            pipeline.run(run, asked[name], shared)
        except UserError as error:
            failed[name] = str(error)
            say(f"{name}: {error}")
        _report(folder, runs, name)
    return failed


def _data_runs(runs: dict[str, ConfigDict]) -> dict[str, ConfigDict]:
    """The first run of each data set."""
    from rrs_jax.config.strategy_table import STRATEGY_TABLE

    found: dict[str, tuple[str, ConfigDict]] = {}
    for name, run in runs.items():
        data = {field: value for field, value in flatten(run).items() if field.startswith("data.")}
        found.setdefault(repr((STRATEGY_TABLE[run.strategy].data, data)), (name, run))
    return dict(found.values())


def print_sweep(config: ConfigDict, path: str) -> None:
    """Prints the runs with their numbers, and what is done of each."""
    for number, (name, state) in enumerate(status(read_sweep(path, config)).items()):
        print(
            f"{number:>3}  {name:<28} "
            + ", ".join(f"{stage} {value}" for stage, value in state.items() if value != "-")
        )


def _report(folder: Path, runs: dict[str, ConfigDict], just_done: str | None = None) -> str:
    """Text on what is done and the rates of the runs that are evaluated; also written to run_dir/report.

    just_done: the run since the report before, whose seeds alone are pooled again.
    """
    from rrs_jax.report.deployment import deployment_text
    from rrs_jax.report.ranking import can_rank, ranking
    from rrs_jax.report.table import markdown_table, text_table

    states = status(runs)
    stages = list(next(iter(states.values())))
    lines = [("run", *stages), ("---", *["---"] * len(stages))]
    lines += [(name, *state.values()) for name, state in states.items()]
    marked = ("| " + " | ".join(map(markdown_cell, line)) + " |\n" for line in lines)
    write_atomic(folder / "report" / "status.md", "".join(marked))
    done = [path for name in runs if list((path := folder / name).glob("eval/*/summary.json"))]
    if not done:
        return "\n".join("  ".join(line) for line in lines)
    done.sort(key=lambda path: runs[path.name].strategy != "vanilla")  # else in their order
    rows = pooled_seeds(done, folder / "report" / "pooled", just_done)
    marked = markdown_table(rows, vanilla_once=True) + deployment_text(rows, markdown=True)
    write_atomic(folder / "report" / "table.md", marked)
    text = text_table(rows, vanilla_once=True) + deployment_text(rows)
    if len(done) > 1 and can_rank(done, BASELINE):
        write_atomic(folder / "report" / "ranking.md", ranking(done, BASELINE, markdown=True))
        text += "\n" + ranking(done, BASELINE)
    unfinished = [name for name, state in states.items() if "to do" in state.values()]
    return text + (f"\nto do: {', '.join(unfinished)}\n" if unfinished else "")


def pooled_seeds(runs: Sequence[Path], target: Path, just_done: str | None = None) -> list[Path]:
    """Returns the runs' folders, with the seeds of one recipe pooled into one folder in `target`.

    A run is pooled with the runs of its name and -seedN where all of them have the same evaluations. With
    `just_done`, a run's name, other recipes' pooled folders stay as they are where they are whole.
    """
    from rrs_jax.evaluate.pool import pool_runs
    from rrs_jax.report.summaries import recipe_of

    names = {run.name: run for run in runs}
    rows = []
    for run in runs:
        stem = recipe_of(run.name)
        if stem != run.name and stem in names:
            continue
        seeds = [run] + [
            other for other in runs if other.name != run.name and recipe_of(other.name) == run.name
        ]
        evaluated = [{path.parent.name for path in one.glob("eval/*/summary.json")} for one in seeds]
        if len(seeds) > 1 and all(found == evaluated[0] for found in evaluated):
            pooled = target / f"{run.name}-{len(seeds)}seeds"
            again = just_done is None or recipe_of(just_done) == run.name
            for name in sorted(evaluated[0] - {"vanilla"}) or ["vanilla"]:
                if again or not (pooled / "eval" / name / "summary.json").is_file():
                    pool_runs(seeds, name, pooled)
            rows.append(pooled)
        else:
            rows += seeds
    return rows


def status(runs: dict[str, ConfigDict]) -> dict[str, dict[str, str]]:
    """States of each run's stages: `done`, `to do`, or `-` where the strategy has no such stage."""
    from rrs_jax.config.stages import STAGES
    from rrs_jax.run.folder import stage_is_done

    def state(run: ConfigDict, stage: str) -> str:
        if stage not in stages_of(run.strategy):
            return "-"
        return "done" if stage_is_done(Path(run.run_dir), stage, flatten(run)) else "to do"

    return {name: {stage: state(run, stage) for stage in STAGES} for name, run in runs.items()}
