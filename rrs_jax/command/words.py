"""The words of the command `rrs-jax`, each a function or a module that is a command of its own."""

import importlib
import sys
from collections.abc import Sequence

from rrs_jax.errors import replace_unprintable

USAGE = """\
usage: rrs-jax WORD ...

  run --config=mini_rrs:smoke        runs the stages: data, extract, train, evaluate, export, report
  evaluate RUN [--config.NAME=...]   evaluates a run that exists again, and makes its report
  export RUN [--config.export...]    writes its adapter or merged model
  report RUN [RUN ...]               makes the page of finished runs
  table RUN [RUN ...]                prints their rates
  measure ANSWERS.jsonl              judges answers that came from anywhere
  compare EVALUATION EVALUATION      tests two evaluations, question by question
  data build|show|pack|...           makes and shows questions and speech
  config                             lists every field of a run with its default

`rrs-jax WORD --help` tells more. Configs that come with the package: {configs}.
"""
MODULES = {
    "report": "report.page",
    "table": "report.table",
    "measure": "evaluate.measure",
    "compare": "evaluate.compare",
}
DATA = ("authors", "build", "distractors", "intelligibility", "pack", "show")
STAGES_OF = {"evaluate": "evaluate,report", "export": "export"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what the words say and returns the exit status; `run`, `evaluate` and `export` end the process."""
    replace_unprintable()
    word, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    rest = rest[:-1] if word else rest
    if word in ("", "-h", "--help", "help"):
        print(_usage())
        return 0 if word else 2
    if word == "run" or word in STAGES_OF:
        from rrs_jax.command.launch import start

        start(rest if word == "run" else _on_a_run(word, rest))
    if word == "config":
        from rrs_jax.config.__main__ import main as list_fields

        return list_fields()
    if word == "data":
        return _data(rest)
    if word in MODULES:
        return importlib.import_module(f"rrs_jax.{MODULES[word]}").main(rest)
    return _mistake(f"rrs-jax: {word!r} is no word of this command; there are {', '.join(_words())}.")


def _on_a_run(word: str, rest: Sequence[str]) -> list[str]:
    """Returns the flags of `evaluate RUN ...` and `export RUN ...`; the run may be given by --config too."""
    if rest and not rest[0].startswith("-"):
        rest = [f"--config=resume:{rest[0]}", *rest[1:]]
    return [*rest, f"--stages={STAGES_OF[word]}"]


def _data(rest: Sequence[str]) -> int:
    if not rest or rest[0] not in DATA:
        return _mistake(
            f"rrs-jax data: give one of {', '.join(DATA)}; `rrs-jax data show --help` tells more."
        )
    return importlib.import_module(f"rrs_jax.data.{rest[0]}").main(rest[1:])


def _mistake(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 2


def _words() -> list[str]:
    return ["run", *STAGES_OF, *MODULES, "data", "config"]


def _usage() -> str:
    from rrs_jax.config.shipped import shipped

    configs = sorted(file.stem for file in shipped("configs").glob("*.py"))
    return USAGE.format(configs=", ".join(configs))
