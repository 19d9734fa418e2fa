"""Tables of what a deployer asks of runs: answers, refusals and tasks kept (`rrs_jax.evaluate.deployment`).

    python -m rrs_jax.report.details RUN [RUN ...] [--markdown]    prints them among others

They are read from RUN/eval/STRATEGY/deployment.json.
"""

from collections.abc import Sequence
from pathlib import Path

from rrs_jax.evaluate.deployment import FILE
from rrs_jax.evaluate.responses import SETS
from rrs_jax.files import read_json
from rrs_jax.report.summaries import ABSENT, MODES, cell, label_of, read_summaries
from rrs_jax.report.table import markdown_rows, text_rows

Measured = Sequence[tuple[str, dict]]  # a model's label, and its deployment.json
Table = tuple[str, list[tuple[str, ...]]]  # title; header and rows


def deployment_text(runs: Sequence[str | Path], markdown: bool = False) -> str:
    """Returns the tables of these runs, each under its title; "" where nothing of it was measured."""
    parts = []
    for title, rows in deployment_tables(read_deployments(runs)):
        lines = markdown_rows(rows) if markdown else text_rows(rows)
        parts.append("\n".join([f"**{title}**\n" if markdown else title, *lines, ""]))
    return "".join(f"\n{part}" for part in parts)


def read_deployments(runs: Sequence[str | Path]) -> Measured:
    """Reads deployment.json of every evaluation that has one; errors as in `read_summaries`."""
    summaries = read_summaries(runs)
    several = len({summary["run"] for summary in summaries}) > 1
    files = {Path(run).name: Path(run) / "eval" for run in runs}
    places = [(label_of(each, several), files[each["run"]] / each["name"] / FILE) for each in summaries]
    return [(label, read_json(file)) for label, file in places if file.is_file()]


def deployment_tables(measured: Measured) -> list[Table]:
    """Returns those of the two tables that have rows."""
    return [table for table in (kept_table(measured), tasks_table(measured)) if len(table[1]) > 1]


def kept_table(measured: Measured) -> Table:
    """Returns a row for each model and mode that was compared along everyday answers."""
    rows = [
        ("Model, mode", "Divergence", "Answers unchanged", "Refusals kept", "Newly answered", "Newly refused")
    ]
    for label, found in measured:
        for mode, title in MODES.items():
            answers = (found["kept_answers"] or {}).get(mode)
            refusals = (found["kept_refusals"] or {}).get(mode)
            if answers:
                low, high = answers["divergence_ci95"]
                rows.append(
                    (
                        f"{label}, {title}",
                        f"{answers['divergence']:.4f} [{low:.4f}, {high:.4f}]",
                        cell(answers, "unchanged"),
                        cell(refusals, "rate"),
                        *(_of_asked(refusals, change) for change in ("newly_answered", "newly_refused")),
                    )
                )
    return (
        "What is kept: divergence from the vanilla model along its answers to everyday questions (nats a"
        " token), percent of them unchanged, percent of its refusals of harmful questions kept",
        rows,
    )


def tasks_table(measured: Measured) -> Table:
    """Returns a row for each model and task with the shares refused, before and after training."""
    blocks = [block for _, found in measured for block in (found["tasks"] or {}).values()]
    asked = [name for name in SETS if any(name in (block["after"] or {}) for block in blocks)]
    columns = [(name, when) for name in asked for when in ("before", "after")]
    rows = [("Model, task", *(f"{name.capitalize()} {when}" for name, when in columns))]
    for label, found in measured:
        for task, block in (found["tasks"] or {}).items():
            shares = (cell((block[when] or {}).get(name), "rate") for name, when in columns)
            rows.append((f"{label}, {task}", *shares))
    return "Tasks beside the clip: percent refused, by what is said in it", rows


def _of_asked(refusals: dict | None, change: str) -> str:
    return f"{refusals[change]} of {refusals['responses']}" if refusals else ABSENT
