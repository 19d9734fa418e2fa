"""The command line of `launch.py`: its flags, and its mistakes as sentences."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from rrs_jax.config import FIELDS, config_error, unknown_field
from rrs_jax.config.kinds import split_names, with_home
from rrs_jax.config.shipped import config_file, shipped
from rrs_jax.config.stages import STAGES, parse_stages
from rrs_jax.distributed.join import JoinOptions
from rrs_jax.errors import UserError

OVERRIDE = re.compile(r"--?(?P<no>no)?config\.(?P<name>[^=]+)(?:=(?P<value>.*))?$", re.DOTALL)
CONFIG = re.compile(r"--?config(?:=(?P<value>.*))?$", re.DOTALL)


class NamesParser(flags.ArgumentParser):
    """Reads a tuple of names written as `a,b`, where ml_collections takes `('a','b')` alone."""

    def parse(self, argument: str | Sequence[str]) -> tuple[str, ...]:
        return split_names(argument)

    def flag_type(self) -> str:
        return "names with commas between"


config_flags.register_flag_parser_for_type(tuple, NamesParser())


# How each flag beside --config is defined: its kind, name, default and help.
FLAGS: tuple[tuple[Callable[..., Any], str, Any, str], ...] = (
    (flags.DEFINE_string, "stages", ",".join(STAGES),
     "Stages to run, in this order whatever the order given."),
    (flags.DEFINE_string, "sweep", None,
     "File of runs with named overrides of the config, or the name of a shipped one: paper."),
    (flags.DEFINE_integer, "sweep_index", None,
     "The one run of the sweep to do, from 0; without it all of them."),
    (flags.DEFINE_integer, "sweep_jobs", 1, "Processes that share the sweep's runs, on one machine."),
    (flags.DEFINE_bool, "dry_run", False, "Print stages, sizes, memory and estimated time, and end."),
    (flags.DEFINE_bool, "distributed", False,
     "This is one of several processes of one run, as SLURM's or Open MPI's variables say."),
    (flags.DEFINE_string, "coordinator", None,
     "HOST:PORT at which process 0 listens: several processes of one run without a scheduler."),
    (flags.DEFINE_integer, "num_processes", None, "With --coordinator: how many processes."),
    (flags.DEFINE_integer, "process_id", None, "With --coordinator: which of them this is, from 0."),
    (flags.DEFINE_integer, "join_seconds", 300, "Seconds in which all processes have to come together."),
)  # fmt: skip


def define_flags(flag_values: flags.FlagValues = flags.FLAGS, arguments: Sequence[str] | None = None) -> None:
    """Defines the flags of `launch.py`. Overrides of the config are read from `arguments`, or sys.argv."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Config file, or the name of one that comes with the package, with a variant behind a colon:"
        " mini_rrs:smoke.",
        lock_config=True,
        flag_values=flag_values,
        sys_argv=None if arguments is None else list(arguments),
    )
    for define, name, default, meaning in FLAGS:
        define(name, default, meaning, flag_values=flag_values)


def parse(arguments: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Reads `arguments` (the program's name first) into `flag_values` and returns those that are no flags.

    Raises UserError for a mistake in a flag, in the config file or in overrides, all of which it names.
    """
    arguments = [arguments[0], *with_home(arguments[1:])]
    check_overrides(arguments)
    arguments = with_config_file(arguments)
    path = config_path(arguments)
    try:
        rest = flag_values(arguments)
    except UserError:
        raise
    except flags.IllegalFlagValueError as error:
        # A config file's own TypeError or ValueError comes with its whole traceback, the cause last.
        raise UserError(f"{path or 'command line'}: {str(error).strip().splitlines()[-1]}.") from error
    except flags.Error as error:
        raise UserError(f"command line: {str(error).strip()}.") from error
    except Exception as error:  # whatever the user's config file, which is a program, does wrong
        raise UserError(f"{path}: cannot be loaded ({type(error).__name__}: {_one_line(error)}).") from error
    if "verbosity" in flag_values and flag_values["verbosity"].using_default_value:
        # absl's choice, INFO, has the libraries talk; it makes that choice for a flag that nobody has set.
        flag_values["verbosity"].value = logging.WARNING
        flag_values["verbosity"].using_default_value = False
    if len(rest) > 1:
        raise UserError(f"command line: {rest[1]!r} is no flag; write --name=value.")
    return rest


def read(flag_values: flags.FlagValues = flags.FLAGS) -> tuple[ConfigDict, tuple[str, ...]]:
    """Returns the config, as given and not resolved, and the stages of parsed flags.

    Raises UserError where no config was given.
    """
    config = flag_values.config
    if not isinstance(config, ConfigDict):
        raise UserError("--config: give a config, for example --config=mini_rrs.")
    return config, parse_stages(flag_values.stages, config.get("strategy", "rrs"))


def sweep_options(flag_values: flags.FlagValues = flags.FLAGS) -> tuple[str | None, int | None, int]:
    """Returns the sweep's file or None, the number of its one run or None for all, and how many processes.

    Raises UserError for flags that contradict one another.
    """
    sweep, index, jobs = flag_values.sweep, flag_values.sweep_index, flag_values.sweep_jobs
    if sweep is not None and not Path(sweep).is_file():
        sweep = str(config_file(sweep, "configs/sweeps") or sweep)
    if sweep is None and (index is not None or jobs != 1):
        flag = "jobs" if index is None else "index"
        raise UserError(f"--sweep_{flag}: has no meaning without --sweep; give both.")
    if index is not None and jobs != 1:
        raise UserError(
            "--sweep_jobs: has no meaning with --sweep_index, which is one run; give one of them."
        )
    if jobs < 1:
        raise UserError(f"--sweep_jobs: is {jobs}; give 1 or more processes.")
    return sweep, index, jobs


def join_options(flag_values: flags.FlagValues = flags.FLAGS) -> JoinOptions | None:
    """Returns how this process joins the others of its run, or None where it is alone.

    Raises UserError for flags that contradict one another.
    """
    values = flag_values
    if values.coordinator is None and not values.distributed:
        for name in ("num_processes", "process_id"):
            if values[name].value is not None:
                raise UserError(
                    f"--{name}: has no meaning without --coordinator; give both, or --distributed alone."
                )
        return None
    if values.coordinator is not None and values.distributed:
        raise UserError(
            "--distributed: a scheduler's variables name the coordinator; give it or --coordinator, not both."
        )
    if values.sweep is not None:
        raise UserError(
            "--sweep: one run lies on several hosts, not a sweep; give each host its own runs by"
            " --sweep_index, without --distributed and --coordinator."
        )
    if values.dry_run:
        raise UserError("--dry_run: needs one process; leave out --distributed and --coordinator.")
    found = JoinOptions(values.coordinator, values.num_processes, values.process_id, values.join_seconds)
    found.check()
    return found


def check_overrides(arguments: Sequence[str]) -> None:
    """Raises one UserError that names every wrong --config.NAME=VALUE."""
    problems = []
    for name, value in overrides(arguments):
        if name not in FIELDS:
            problems.append(unknown_field(name))
        elif value is not None and (problem := FIELDS[name].problem_with_text(value)):
            problems.append(problem)
    if problems:
        raise config_error(problems)


def overrides(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yields the name and the text of each override; the text is None for a boolean without a value."""
    arguments = list(arguments)
    for position, argument in enumerate(arguments):
        if argument == "--":
            return
        if match := OVERRIDE.match(argument):
            name, value = match["name"], match["value"]
            is_switch = name in FIELDS and FIELDS[name].kind.type is bool
            if value is None and not match["no"] and not is_switch:
                value = arguments[position + 1] if position + 1 < len(arguments) else ""
            yield name, value


def with_config_file(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with the path of a config that comes with the package in place of its name."""
    found = list(arguments)
    for position, argument in enumerate(found):
        if match := CONFIG.match(argument):
            place = position if match["value"] is not None else position + 1
            if place == len(found):
                break
            before, value = ("--config=", match["value"]) if place == position else ("", found[place])
            path, colon, variant = value.partition(":")
            if not Path(path).is_file() and (file := config_file(path)):
                found[place] = f"{before}{file}{colon}{variant}"
            break
    return found


def config_path(arguments: Sequence[str]) -> str | None:
    """Returns the config file that `arguments` name, or None. Raises UserError where it does not exist."""
    for position, argument in enumerate(arguments):
        if match := CONFIG.match(argument):
            value = match["value"]
            if value is None:
                value = arguments[position + 1] if position + 1 < len(arguments) else ""
            path = value.split(":", 1)[0]
            if not Path(path).is_file():
                shipped_ones = sorted(file.stem for file in shipped("configs").glob("*.py"))
                raise UserError(f"--config: {path!r} is no file; the package has {', '.join(shipped_ones)}.")
            return path
    return None


def _one_line(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split())
