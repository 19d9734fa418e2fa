"""Flags and a scheduler's variables by which a process joins others."""

import os

import pytest
from absl import flags

from rrs_jax.config import command_line
from rrs_jax.distributed import processes
from rrs_jax.distributed.join import JoinOptions, joined
from rrs_jax.errors import UserError


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (
            ["--process_id=0"],
            "--process_id: has no meaning without --coordinator; give both, or --distributed alone.",
        ),
        (["--coordinator=here"], "--coordinator: 'here' is no HOST:PORT, such as node01:7890."),
        (["--coordinator=a:99999"], "--coordinator: 'a:99999' is no HOST:PORT, such as node01:7890."),
        (
            ["--coordinator=a:1", "--num_processes=2"],
            "--coordinator: needs --process_id too; give how many processes there are and which this is.",
        ),
        (
            ["--coordinator=a:1", "--num_processes=2", "--process_id=2"],
            "--process_id: is 2; with --num_processes=2 give 0 to 1.",
        ),
        (
            ["--coordinator=a:1", "--num_processes=0", "--process_id=0"],
            "--num_processes: is 0; give 1 or more.",
        ),
        (["--distributed", "--join_seconds=0"], "--join_seconds: is 0; give 1 or more."),
        (
            ["--distributed", "--coordinator=a:1"],
            (
                "--distributed: a scheduler's variables name the coordinator; give it or --coordinator, not"
                " both."
            ),
        ),
        (
            ["--distributed", "--dry_run"],
            "--dry_run: needs one process; leave out --distributed and --coordinator.",
        ),
        (
            ["--distributed", "--sweep=a.py"],
            (
                "--sweep: one run lies on several hosts, not a sweep; give each host its own runs by"
                " --sweep_index, without --distributed and --coordinator."
            ),
        ),
    ],
)
def test_mistakes_in_the_flags(arguments, sentence):
    values = flags.FlagValues()
    command_line.define_flags(values, arguments)
    values(["launch.py", *arguments])
    with pytest.raises(UserError) as error:
        command_line.join_options(values)
    assert str(error.value) == sentence


def test_without_flags_a_process_is_alone(tmp_path):
    values = flags.FlagValues()
    command_line.define_flags(values, [])
    values(["launch.py"])
    assert command_line.join_options(values) is None
    with joined(None, tmp_path):
        assert processes.is_first() and not processes.several()


def test_schedulers_variables_are_missed(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_"))]:
        monkeypatch.delenv(name)
    with pytest.raises(UserError) as error, joined(JoinOptions(), tmp_path):
        raise AssertionError
    assert (
        str(error.value)
        == "--distributed: no scheduler's variables tell the processes apart; start them by srun or mpirun,"
        " or give --coordinator, --num_processes and --process_id."
    )
